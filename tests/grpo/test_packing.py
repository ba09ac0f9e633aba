import pytest
import torch

from fgrpo_secure.grpo.logps import ChosenLogps, packed_logps, row_logps
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


@pytest.mark.parametrize("width", [5, 8, 15])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_packed_columns_give_the_log_probabilities_of_their_rows(width, temperature):
    """Each token is looked up in the logits of the column before it."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.tensor([[3, 1, 4], [2, 4, 2]])
    mask = torch.arange(4) < lengths[:, :, None]
    ids = torch.randint(11, (2, 3, 4), generator=generator)
    rows = torch.randn((2, 3, 5, 11), generator=generator)
    # What the prompt predicts is the same in every row of a group.
    rows[:, :, 0] = rows[:, :1, 0]
    wanted = row_logps(rows.flatten(0, 1), ids, temperature)
    columns = Columns.of(mask, width)
    behind = (
        rows[:, :, 1:]
        .flatten(1, 2)
        .gather(1, columns.place[:, :, None].expand(-1, -1, 11))
    )
    logits = torch.cat([rows[:, 0, :1], behind], 1)
    made = packed_logps(logits, ids, columns, temperature)
    assert torch.allclose(made[mask], wanted[mask], atol=1e-6)
    assert not made[~mask].any()


def test_a_completion_of_one_token_needs_the_prompt_alone():
    ids, mask = left_padded([[5, 6]], 3, 1, 0)
    one = torch.tensor([[[4], [2]]])
    columns = Columns.of(torch.ones_like(one).bool(), 0)
    inputs = packed_inputs(ids, mask, one, columns, torch.float32)
    assert inputs.ids.shape == (1, 3)
    table = torch.randn((1, 1, 9), generator=torch.Generator().manual_seed(1))
    made = packed_logps(table, one, columns, 1.0)
    assert torch.allclose(made[0, :, 0], table[0, 0].log_softmax(-1)[[4, 2]])


def test_a_step_sees_the_prompt_and_its_own_earlier_tokens():
    _, mask = left_padded([[5, 6]], 3, 1, 0)
    going, owners = torch.tensor([0, 2]), torch.tensor([0, 1, 2, 0, 2])
    inputs = step_inputs(torch.tensor([[7, 8]]), mask, 1, going, owners, torch.float32)
    seen = (inputs.mask[0, 0] == 0).int().tolist()
    assert seen == [[0, 1, 1, 1, 0, 0, 1, 0], [0, 1, 1, 0, 0, 1, 0, 1]]
    assert inputs.positions.tolist() == [[3, 3]]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("table", [1, 2**21])
def test_chosen_log_probabilities_and_their_gradient_are_autograds(
    monkeypatch, temperature, table
):
    """Also where many tokens are predicted by one row, and some rows predict none."""
    monkeypatch.setattr("fgrpo_secure.grpo.logps._TABLE", table)
    generator = torch.Generator().manual_seed(5)
    logits = (5 * torch.randn((2, 4, 33), generator=generator)).requires_grad_()
    rows = torch.tensor([[0, 0, 0, 1, 3], [0, 1, 1, 2, 2]])
    ids = torch.randint(33, rows.shape, generator=generator)
    ids[0, 1] = ids[0, 0]
    made = ChosenLogps.apply(logits, rows, ids, temperature)
    every = (logits / temperature).log_softmax(-1)
    wanted = every[torch.arange(2)[:, None], rows, ids]
    assert torch.allclose(made, wanted, atol=1e-5)
    gains = torch.randn(rows.shape, generator=generator)
    (one,) = torch.autograd.grad((made * gains).sum(), logits)
    (two,) = torch.autograd.grad((wanted * gains).sum(), logits)
    assert torch.allclose(one, two, atol=1e-6)
    assert not one[0, 2].any()


def test_a_rows_log_probabilities_do_not_depend_on_other_rows():
    generator = torch.Generator().manual_seed(6)
    logits = torch.randn((3, 5, 37), generator=generator)
    rows = torch.arange(5).expand(3, -1)
    ids = torch.randint(37, rows.shape, generator=generator)
    bad = logits.clone()
    bad[1] = torch.nan

    def bits(table, chosen):
        leaf = table[chosen].requires_grad_()
        found = ChosenLogps.apply(leaf, rows[chosen], ids[chosen], 1.0)
        found.sum().backward()
        return [
            (f.numpy().tobytes(), g.numpy().tobytes())
            for f, g in zip(found.detach(), leaf.grad, strict=True)
        ]

    base = bits(logits, [0, 1, 2])
    assert [base[i] for i in (0, 2)] == [bits(bad, [0, 1, 2])[i] for i in (0, 2)]
    assert base[::-1] == bits(logits, [2, 1, 0])
