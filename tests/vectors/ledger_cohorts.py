"""Folders of runs with several cohorts that verify, made as in `ledger_runs`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

from privacy.crypto import SigningKey
from privacy.ledger import price_charges
from privacy.plan import SERVER
from tests.plans import cohort
from tests.privacy.ledger.synthetic import SyntheticRun, make_key, make_plan
from tests.vectors.ledger_runs import Files, files_in

NAMES = (
    ("alpha", "beta", "gamma"),
    ("delta", "epsilon", "eta"),
    ("iota", "kappa", "lambda"),
)
ROUNDS = 3
# The third round moves nothing.
ADAPTERS = {1: "zero", 2: "one", 3: "two", 4: "two"}


class SyntheticCohorts:
    """All parties of all cohorts of one run.

    Args:
        directory: an empty folder.
        names: of the clients of each cohort.
        runs: handle of each cohort's run.
        keys: by cohort, who has another key than that of the party's name.
    """

    def __init__(
        self,
        directory: Path,
        names: Sequence[tuple[str, ...]] = NAMES,
        *,
        runs: Mapping[int, bytes] | None = None,
        keys: Mapping[int, Mapping[str, SigningKey]] | None = None,
    ) -> None:
        self.directory = directory
        self.cohorts = []
        for place, own in enumerate(names):
            folder = directory / f"cohort-{place + 1:04d}"
            folder.mkdir()
            pairs = {name: make_key(name) for name in (*own, SERVER)}
            clients = cohort(*[2000] * len(own), rate=Fraction(1, 50), names=own)
            one = SyntheticRun(
                folder,
                make_plan(clients=clients, rounds=ROUNDS),
                keys=pairs | dict((keys or {}).get(place, {})),
                price=price_charges,
                run=(runs or {}).get(place, bytes([place + 1]) * 16),
                adapters=ADAPTERS,
            )
            one.open()
            self.cohorts.append(one)

    def round(self, number: int, *summed: int) -> None:
        """A round in which only these cohorts, by their place, have a sum."""
        for place, one in enumerate(self.cohorts):
            one.gather(number)
            if place in summed:
                one.publish(number, one.names)
                continue
            one.abort(number)
            if summed:
                one.move(number)

    def finish(self) -> None:
        """Close every ledger, and write all summaries."""
        for one in self.cohorts:
            one.finish()
        told = [
            json.loads((one.directory / "summary.json").read_text())
            for one in self.cohorts
        ]
        summary = summary_of(
            {
                one.directory.name: own
                for one, own in zip(self.cohorts, told, strict=True)
            },
            completed=2,
            aborted=1,
        )
        (self.directory / "summary.json").write_text(json.dumps(summary, indent=2))


def summary_of(
    told: Mapping[str, dict], *, completed: int, aborted: int
) -> dict[str, object]:
    """What the run's summary says, given those of its cohorts by their folder."""
    first = next(iter(told.values()))
    clients = [client for own in told.values() for client in own["clients"]]
    figures = [client["epsilon"] for client in clients]
    return {
        "epsilon": None if None in figures else max(figures),
        "delta": first["delta"],
        "target_epsilon": first["target_epsilon"],
        "rounds_completed": completed,
        "rounds_aborted": aborted,
        "cohorts": [
            {"folder": name, "plan_digest": own["plan_digest"]}
            for name, own in told.items()
        ],
        "survivors": [name for own in told.values() for name in own["survivors"]],
        "clients": clients,
        "seconds": 2.5,
    }


def cohorts(run: SyntheticCohorts) -> None:
    """Three cohorts: a round with all sums, one with the last's, one with none."""
    run.round(1, 0, 1, 2)
    run.round(2, 2)
    run.round(3)
    run.finish()


def cohorts_unfinished(run: SyntheticCohorts) -> None:
    """The server is between two ledgers: one says that the adapter moved."""
    run.round(1, 0, 1, 2)
    for one in run.cohorts:
        one.gather(2)
    run.cohorts[0].abort(2)
    run.cohorts[0].move(2)
    run.cohorts[1].abort(2)
    run.cohorts[2].count(2, run.cohorts[2].names)


RUNS: tuple[Callable[[SyntheticCohorts], None], ...] = (cohorts, cohorts_unfinished)
UNFINISHED = {"cohorts_unfinished"}


def write(happens: Callable[[SyntheticCohorts], None], **how: object) -> Files:
    """The files of one run, by their path in its folder."""
    with tempfile.TemporaryDirectory() as name:
        run = SyntheticCohorts(Path(name), **how)
        happens(run)
        for one in run.cohorts:
            one.close_files()
        return files_in(Path(name))


def folders() -> dict[str, Files]:
    """Every run, by its name."""
    return {happens.__name__: write(happens) for happens in RUNS}
