import torch

from fgrpo_secure.grpo.packing import (
    group_inputs,
    left_padded,
    microbatches,
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
    assert [padded_width(n, 100) for n in (0, 1, 32, 33, 97, 500)] == [
        *(32, 32, 32, 64, 100, 100)
    ]


def test_prompts_stand_at_the_right_and_dummies_have_one_real_token():
    ids, mask = left_padded([[5, 6], [1, 2, 3, 4, 5]], 4, 3, 9)
    assert ids.tolist() == [[9, 9, 5, 6], [2, 3, 4, 5], [9, 9, 9, 9]]
    assert mask.sum(-1).tolist() == [2, 4, 1]


def test_a_packed_completion_sees_the_prompt_and_itself_only():
    ids, mask = left_padded([[5, 6]], 3, 1, 0)
    completions = torch.arange(4).reshape(1, 2, 2)
    inputs = group_inputs(
        ids, mask, completions, torch.ones_like(completions).bool(), torch.float32
    )
    seen = (inputs.mask[0, 0] == 0).int().tolist()
    assert seen == [
        [1, 0, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 1, 0, 0],
        [0, 1, 1, 0, 0, 1, 0],
        [0, 1, 1, 0, 0, 1, 1],
    ]
    assert inputs.positions.tolist() == [[0, 0, 1, 2, 3, 2, 3]]


def test_a_step_sees_the_prompt_and_its_own_earlier_tokens():
    _, mask = left_padded([[5, 6]], 3, 1, 0)
    inputs = step_inputs(torch.tensor([[7, 8]]), mask, 1, torch.float32)
    seen = (inputs.mask[0, 0] == 0).int().tolist()
    assert seen == [[0, 1, 1, 1, 0, 1, 0], [0, 1, 1, 0, 1, 0, 1]]
    assert inputs.positions.tolist() == [[3, 3]]
