import pytest
import torch

from fgrpo_secure.grpo.logps import ChosenLogps, packed_logps, row_logps
from fgrpo_secure.grpo.packing import Columns, left_padded, packed_inputs


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


@pytest.mark.parametrize("packed", [True, False])
def test_a_place_without_a_token_is_zero_but_for_the_first(packed):
    """What is said of `packed_logps`; the row layout looks padding up everywhere."""
    generator = torch.Generator().manual_seed(4)
    ids = torch.zeros((1, 2, 3), dtype=torch.int64)
    mask = torch.tensor([[[True, True, False], [False, False, False]]])
    logits = torch.randn((2, 4, 7), generator=generator)
    if packed:
        made = packed_logps(logits[:1], ids, Columns.of(mask, 3), 1.0)
        assert made[0].ne(0).tolist() == [[True, True, False], [True, False, False]]
    else:
        assert row_logps(logits, ids, 1.0).ne(0).all()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("table", [1, 2 * 33 * 3, 2**21])
def test_chosen_log_probabilities_and_their_gradient_are_autograds(
    monkeypatch, temperature, table
):
    """Also where completions start with the same token, and where some have none."""
    monkeypatch.setattr("fgrpo_secure.grpo.logps._TABLE", table)
    logits, first, following, gains = chosen_tokens(torch.float32)
    gains[0, 6] = 0
    (made, one), (wanted, two) = (
        function(logits, first, following, gains, temperature)
        for function in (chosen_logps, plain_logps)
    )
    assert torch.allclose(made, wanted, atol=1e-5)
    assert torch.allclose(one, two, atol=1e-6)
    assert not one[0, 2].any()


@pytest.mark.parametrize("table", [1, 2**21])
def test_the_gradient_of_likely_tokens_survives_numbers_of_16_bits(monkeypatch, table):
    """1 - p of a token that is almost certain is lost where p is rounded first."""
    monkeypatch.setattr("fgrpo_secure.grpo.logps._TABLE", table)
    logits, first, following, gains = chosen_tokens(torch.bfloat16)
    following[:] = 3
    first[:] = 3
    logits[:, :, 3] = logits.amax(-1) + 4
    for temperature in (1.0, 0.7):
        _, one = chosen_logps(logits, first, following, gains, temperature)
        exact = plain_logps(logits.double(), first, following, gains, temperature)[1]
        assert one.dtype == torch.bfloat16
        assert (exact[:, 1:, 3] / gains[:, 5:]).max() < 0.1 / temperature
        # The dtype of the gradient keeps 8 bits, which half a last one may be off.
        error = (one.double() - exact).abs() / exact.abs()
        assert error.max() < 2**-8


def test_no_addition_of_the_backward_pass_meets_a_place_twice(monkeypatch):
    """On a GPU the order of such addends, and so the rounding, is another each time."""
    scatter, seen = torch.Tensor.scatter_add_, []

    def watched(self, axis, index, source):
        ordered = index.sort(axis).values
        seen.append(index.shape[axis])
        assert not (ordered.diff(dim=axis) == 0).any()
        return scatter(self, axis, index, source)

    monkeypatch.setattr(torch.Tensor, "scatter_add_", watched)
    logits, first, following, gains = chosen_tokens(torch.float32)
    first[:] = 4
    chosen_logps(logits, first, following, gains, 1.0)
    assert seen


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_slots_that_hold_the_same_get_the_same_bits(monkeypatch, threads, temperature):
    """A part of one row would be summed by all threads together, and others not."""
    slots, rows, vocabulary = 2, 21, 50_257
    # One slot's rows, and all but one of the other's.
    monkeypatch.setattr(
        "fgrpo_secure.grpo.logps._TABLE", (slots * rows - 1) * vocabulary
    )
    generator = torch.Generator().manual_seed(8)
    logits = torch.zeros((slots, rows, vocabulary))
    first = torch.full((slots, 1), 5)
    following = torch.full((slots, rows - 1), 5)
    gains = torch.ones((slots, rows))
    for _ in range(40):
        logits[:, -1] = 3 * torch.randn(vocabulary, generator=generator)
        made, gradient = chosen_logps(logits, first, following, gains, temperature)
        assert torch.equal(made[0], made[1])
        assert torch.equal(gradient[0], gradient[1])


def test_a_rows_log_probabilities_do_not_depend_on_other_rows():
    generator = torch.Generator().manual_seed(6)
    logits = torch.randn((3, 5, 37), generator=generator)
    first = torch.randint(37, (3, 2), generator=generator)
    following = torch.randint(37, (3, 4), generator=generator)
    bad = logits.clone()
    bad[1] = torch.nan

    def bits(table, chosen):
        found, gradient = chosen_logps(
            table[chosen],
            first[chosen],
            following[chosen],
            torch.ones((len(chosen), 6)),
            1.0,
        )
        return [
            (f.numpy().tobytes(), g.numpy().tobytes())
            for f, g in zip(found, gradient, strict=True)
        ]

    base = bits(logits, [0, 1, 2])
    assert [base[i] for i in (0, 2)] == [bits(bad, [0, 1, 2])[i] for i in (0, 2)]
    assert base[::-1] == bits(logits, [2, 1, 0])


def chosen_tokens(dtype):
    """Logits, tokens of which two completions share the first, and gains."""
    generator = torch.Generator().manual_seed(5)
    logits = (5 * torch.randn((2, 4, 33), generator=generator)).to(dtype)
    first = torch.randint(33, (2, 5), generator=generator)
    first[0, 1] = first[0, 0]
    first[0, 4] = first[0, 0]
    following = torch.randint(33, (2, 3), generator=generator)
    return logits, first, following, torch.rand((2, 8), generator=generator) + 0.5


def chosen_logps(logits, first, following, gains, temperature):
    """Log-probabilities, and the gradient of their sum weighted by gains."""
    leaf = logits.clone().requires_grad_()
    made = ChosenLogps.apply(leaf, first, following, temperature)
    (made * gains).sum().backward()
    return made.detach(), leaf.grad


def plain_logps(logits, first, following, gains, temperature):
    """The same by autograd."""
    leaf = logits.clone().requires_grad_()
    table = (leaf / temperature).log_softmax(-1)
    made = torch.cat(
        [
            table[:, 0].gather(1, first),
            table[:, 1:].gather(2, following[:, :, None])[:, :, 0],
        ],
        1,
    )
    (made * gains).sum().backward()
    return made.detach(), leaf.grad
