"""A run's public numbers for TensorBoard and MLflow.

Only what `METRICS` names leaves by this door, and it is made of what a run publishes
anyway. No number gets a time of day: how long a round took depends on what was drawn.
No file gets the name of a machine or of a person.
"""

# ruff: noqa: PLC0415

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from fgrpo_secure.errors import ConfigurationError
from fgrpo_secure.rounds import RoundNote

# Of a round, by its number; of the run, at its last round. A client's name follows
# those of the second line after a slash.
METRICS = frozenset(
    {
        *("epsilon", "published", "survivors", "sum_of_weights", "bytes", "aborted"),
        *("reward_before", "reward_after"),
    }
)

# Within a run's folder.
FOLDER = "tracking"


class Sink(Protocol):
    """Where numbers go."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Keep the numbers of one step."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


class Tracking:
    """What a run tells of itself while it goes on.

    Args:
        sinks: where it is told.
        on_failure: called with words once a sink fails, which ends that sink alone.
    """

    def __init__(
        self, sinks: Sequence[Sink], on_failure: Callable[[str], None]
    ) -> None:
        self._sinks = list(sinks)
        self._on_failure = on_failure

    def round_done(self, noted: RoundNote, spent: float) -> None:
        """Tell of a round.

        Args:
            noted: by the coordinator.
            spent: epsilon so far, of a client that was charged every round.
        """
        values = {
            "epsilon": spent,
            "published": float(noted.published),
            "survivors": float(noted.survivors),
            "bytes": float(sum(noted.down.values()) + sum(noted.up.values())),
        }
        if noted.weights:
            values["sum_of_weights"] = noted.weights
        self._tell(noted.round, values)

    def run_done(self, rounds: int, summary: Mapping[str, Any]) -> None:
        """Tell of a run: the scores of public sets, where there are any."""
        values = {"aborted": float(summary["rounds_aborted"])}
        for name in ("reward_before", "reward_after"):
            for client in summary["clients"]:
                if client[name] is not None:
                    values[f"{name}/{client['name']}"] = float(client[name])
        self._tell(rounds, values)

    def close(self) -> None:
        """Close all sinks."""
        for sink in self._sinks:
            self._safely(sink, sink.close)

    def _tell(self, step: int, values: Mapping[str, float]) -> None:
        """Hand numbers on.

        Raises:
            ValueError: one that is not among those that may be shown.
        """
        for name in values:
            if name.partition("/")[0] not in METRICS:
                msg = "a number that is not public"
                raise ValueError(msg)
        for sink in list(self._sinks):
            self._safely(sink, lambda sink=sink: sink.write(step, values))

    def _safely(self, sink: Sink, act: Callable[[], None]) -> None:
        """What is shown of a run must not end it."""
        try:
            act()
        except Exception as error:
            if sink in self._sinks:
                self._sinks.remove(sink)
            name = type(sink).__name__
            self._on_failure(
                f"{name} failed ({type(error).__name__}); the run goes on."
            )


class TensorBoard:
    """An event file.

    TensorBoard's own writer puts the hour and the machine into the file's name and the
    hour into every event; here the number of the round stands in for it.

    Args:
        folder: where the file is to lie.
        done: rounds that were done before, which tells the files of a run apart that
            was interrupted.
    """

    def __init__(self, folder: Path, done: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"events.out.tfevents.{done:010d}.fgrpo"
        self._records = RecordWriter(path.open("wb"))
        self._write(Event(file_version="brain.Event:2", wall_time=float(done)))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One event for each number."""
        for name, value in sorted(values.items()):
            shown = self._summary.Value(tag=name, simple_value=value)
            summary = self._summary(value=[shown])
            self._write(self._event(step=step, wall_time=float(step), summary=summary))

    def close(self) -> None:
        """Close the file."""
        self._records.close()

    def _write(self, event: Any) -> None:  # noqa: ANN401
        self._records.write(event.SerializeToString())
        self._records.flush()


class Mlflow:
    """A run in an MLflow store.

    Args:
        store: where MLflow keeps it: a folder, or what MLFLOW_TRACKING_URI names.
        run: the run's handle, by which one that was interrupted is found again.
    """

    def __init__(self, store: str, run: str) -> None:
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=store)
        known = self._client.get_experiment_by_name(_EXPERIMENT)
        experiment = (
            known.experiment_id
            if known is not None
            else self._client.create_experiment(_EXPERIMENT)
        )
        found = self._client.search_runs([experiment], f"tags.`{_TAG}` = '{run}'")
        self._run = (
            found[0]
            if found
            else self._client.create_run(
                experiment, start_time=_NO_TIME, tags={_TAG: run}, run_name=run
            )
        ).info.run_id

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One metric for each number; MLflow has no place for infinity."""
        for name, value in sorted(values.items()):
            if math.isfinite(value):
                self._client.log_metric(
                    self._run, name, value, timestamp=step, step=step
                )

    def close(self) -> None:
        """End the run."""
        self._client.set_terminated(self._run, end_time=_NO_TIME)


_EXPERIMENT = "fgrpo-secure"
_TAG = "fgrpo.run"
# MLflow takes 0 for none, and puts the hour in its place.
_NO_TIME = 1


@contextmanager
def tracked(
    names: Sequence[str],
    folder: Path,
    run: bytes,
    done: int,
    on_failure: Callable[[str], None],
) -> Iterator[Tracking]:
    """Track a run while the block runs.

    Args:
        names: "tensorboard", "mlflow", both or none.
        folder: the run's.
        run: its handle.
        done: rounds that were done before.
        on_failure: called with words where a sink fails.

    Raises:
        ConfigurationError: a package is missing that a name needs.
    """
    place = folder / FOLDER
    sinks: list[Sink] = []
    for name in names:
        try:
            if name == "tensorboard":
                sinks.append(TensorBoard(place / name, done))
            else:
                sinks.append(Mlflow(_mlflow_store(place), run.hex()))
        except ImportError:
            raise ConfigurationError(
                f"[machine] tracking names {name}, whose package is not installed.",
                f"Install it by `pip install 'fgrpo-secure[{name}]'`, or take it out.",
            ) from None
    tracking = Tracking(sinks, on_failure)
    try:
        yield tracking
    finally:
        tracking.close()


def _mlflow_store(place: Path) -> str:
    """What MLflow's own variable names, else a folder of the run."""
    named = os.environ.get("MLFLOW_TRACKING_URI")
    if named:
        return named
    # MLflow prefers databases, and opens folders only for those who say so.
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    return (place / "mlflow").resolve().as_uri()
