"""The benchmark of many clients, with few of them."""

import json
import weakref

import pytest

from benchmarks import scale, scale_run
from privacy.contribution import Contribution
from privacy.errors import PlanMismatchError

SMALL = scale_run.Size(clients=11, dimension=60, cohorts=2, dropouts=0.2)


@pytest.fixture(scope="module")
def measured():
    return scale_run.measure(SMALL)


def test_a_round_of_two_cohorts_sums_exactly_with_dropouts_in_each(measured):
    # Six and five clients, of which a fifth each, rounded down, is lost.
    assert (measured["survivors"], measured["exact"]) == (9, True)
    assert list(measured["steps"])[-1] == "published"
    assert measured["bytes_up"] > 4 * 61


def test_a_sum_that_is_not_the_sum_of_the_integers_stops_the_benchmark(
    monkeypatch, tmp_path
):
    federation = scale_run.Federation(SMALL, tmp_path)
    federation._expected[3] += 1
    with pytest.raises(RuntimeError, match="is not the sum"):
        federation.run()


def test_one_vector_is_held_at_a_time(monkeypatch, tmp_path):
    vectors, held, seal = [], [], Contribution.seal

    def spied(contribution):
        held.append(sum(vector() is not None for vector in vectors))
        noised, opening = seal(contribution)
        vectors.append(weakref.ref(noised.residues))
        return noised, opening

    monkeypatch.setattr(Contribution, "seal", spied)
    scale_run.Federation(SMALL, tmp_path).run()
    assert len(held) == SMALL.clients
    # That of the client before is let go when the next one has been made.
    assert max(held) <= 1


def test_noise_is_in_every_vector(monkeypatch, tmp_path):
    variances = []
    draw = scale_run.charge.__globals__["discrete_gaussian"]

    def spied(stream, variance, count):
        variances.append(variance)
        return draw(stream, variance, count)

    monkeypatch.setattr("privacy.contribution.discrete_gaussian", spied)
    federation = scale_run.Federation(SMALL, tmp_path)
    federation.run()
    shares = [
        plan.noise_share_variance
        for plan in federation.cohorts.plans
        for _ in plan.clients
    ]
    assert variances == shares
    assert min(shares) > 0


def test_more_than_200_clients_in_one_cohort_are_refused_with_the_reason():
    size = scale_run.Size(clients=201, dimension=10, cohorts=1, dropouts=0.0)
    with pytest.raises(PlanMismatchError, match="cuts some honest clients off"):
        scale_run.make_cohorts(size)
    several = scale_run.Size(clients=201, dimension=10, cohorts=2, dropouts=0.0)
    sizes = [len(plan.clients) for plan in scale_run.make_cohorts(several).plans]
    assert sizes == [101, 100]


def test_the_last_line_is_json_and_the_table_has_every_cell(
    measured, monkeypatch, tmp_path
):
    lines = []
    monkeypatch.setattr("builtins.print", lambda line, **_: lines.append(line))
    monkeypatch.setattr(scale, "measure", lambda *size: measured | {"clients": size[0]})
    given = ["--output", str(tmp_path), "--json"]
    for clients in ("11", "12"):
        assert scale.main(["--clients", clients, *given]) == 0
    last = json.loads(lines[-1])
    assert (last["clients"], last["exact"]) == (12, True)
    stored = json.loads((tmp_path / "scale.json").read_text("utf-8"))
    assert [cell["clients"] for cell in stored["cells"]] == [11, 12]
    text = (tmp_path / "scale.md").read_text("utf-8")
    assert lines[-2] == text
    assert "| 11 | 2 | 60 |" in text
    # A table with a hole would say of a step that it took nothing.
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 2 + 2 + len(measured["steps"])


def test_the_worker_says_in_a_line_what_is_refused(capsys):
    status = scale_run.main(
        '{"clients": 201, "dimension": 10, "cohorts": 1, "dropouts": 0.0}'
    )
    assert status == scale_run.REFUSED
    assert capsys.readouterr().err.startswith("201 clients: one cohort holds at most")
