import torch

from fgrpo_secure.grpo.packing import (
    WIDTH_STEP,
    Columns,
    left_padded,
    microbatches,
    packed_columns,
    packed_inputs,
    padded_width,
    step_inputs,
)


def test_microbatches_hold_one_key_and_every_item_once():
    keys = [32, 64, 32, 32, 64, 32, 32]
    made = list(microbatches(keys, 2))
    assert sorted(i for _, chosen in made for i in chosen) == list(range(7))
    assert all(keys[i] == key for key, chosen in made for i in chosen)
    assert all(len(chosen) <= 2 for _, chosen in made)


def test_a_width_is_a_multiple_of_the_step_up_to_the_limit():
    step = WIDTH_STEP
    limit = 3 * step + 4
    lengths = (0, 1, step, step + 1, 3 * step + 1, 500)
    assert [padded_width(n, limit) for n in lengths] == [
        *(step, step, step, 2 * step, limit, limit)
    ]
    assert padded_width(3 * step + 1) == 4 * step


def test_prompts_stand_at_the_right_and_dummies_have_one_real_token():
    ids, mask = left_padded([[5, 6], [1, 2, 3, 4, 5]], 4, 3, 9)
    assert ids.tolist() == [[9, 9, 5, 6], [2, 3, 4, 5], [9, 9, 9, 9]]
    assert mask.sum(-1).tolist() == [2, 4, 1]


def test_a_packed_completion_sees_the_prompt_and_itself_only():
    ids, mask = left_padded([[5, 6]], 3, 1, 0)
    completions = torch.arange(9).reshape(1, 3, 3)
    lengths = torch.tensor([3, 1, 3])
    shown = (torch.arange(3) < lengths[:, None])[None]
    columns = Columns.of(shown, 5)
    inputs = packed_inputs(ids, mask, completions, columns, torch.float32)
    # Two tokens of the first completion, none of the second, two of the third; the
    # last one pads.
    assert inputs.ids.tolist()[0][3:7] == [0, 1, 6, 7]
    assert columns.present.tolist() == [[True, True, True, True, False]]
    seen = (inputs.mask[0, 0] == 0).int()
    assert seen[:7].tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 0, 0, 0],
        [0, 1, 1, 1, 1, 0, 0, 0],
        [0, 1, 1, 0, 0, 1, 0, 0],
        [0, 1, 1, 0, 0, 1, 1, 0],
    ]
    assert seen[7, :3].tolist() == [0, 1, 1]
    assert inputs.positions.tolist()[0][:7] == [0, 0, 1, 2, 3, 2, 3]


def test_the_last_token_of_a_completion_takes_no_column():
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]]).bool()
    assert packed_columns(mask) == 2 + 0 + 3
    assert packed_columns(mask[:, :1]) == 0


def test_a_step_sees_the_prompt_and_its_own_earlier_tokens():
    _, mask = left_padded([[5, 6]], 3, 1, 0)
    going, owners = torch.tensor([0, 2]), torch.tensor([0, 1, 2, 0, 2])
    inputs = step_inputs(torch.tensor([[7, 8]]), mask, 1, going, owners, torch.float32)
    seen = (inputs.mask[0, 0] == 0).int().tolist()
    assert seen == [[0, 1, 1, 1, 0, 0, 1, 0], [0, 1, 1, 0, 0, 1, 0, 1]]
    assert inputs.positions.tolist() == [[3, 3]]
