"""What `engine.py` puts into the engine's own processes, and leaves nothing else in.

Two kinds of run. In one the learner is replaced, at the server and at the sites, by
stand-ins that send and answer the right number of bytes at once; controller, executor,
courier, desk, signatures, certificates and NVFlare are the product's. In the other
nothing is replaced, and some functions note when they began and ended.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.machinery import ModuleSpec
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

# "stand-in" or "timeline"; nothing is done without it.
KIND = "FGRPO_BENCHMARK"
# A file that says what to do, and where results go.
ORDER = "FGRPO_BENCHMARK_ORDER"
STAND_IN, TIMELINE = "stand-in", "timeline"

PHASES = ("offer", "roster", "shares", "survivors", "quorum", "published")
_WORD_BYTES = 4
_DEADLINE_SECONDS = 560.0
_KINDS = {
    "nvflare_processes": "engine",
    "engine_parts": "learner",
    "multiprocessing": "learner",
    "worker_process": "job",
    "runner_process": "job",
}


def sizes(dimension: int, clients: int) -> dict[str, tuple[int, int]]:
    """Bytes down to a client and up from it, by phase of a round.

    The adapter goes down with the offer and the masked vector up with the key shares,
    both in words of four bytes. The rest are those of a round of the tiny model, which
    rise with the clients as its lists do.
    """
    vector = _WORD_BYTES * dimension
    return {
        "offer": (vector + 600, 254),
        "roster": (320 * clients, 212 * clients),
        "shares": (518 * clients, vector + 308),
        "survivors": (313, 259),
        "quorum": (254 * clients, 90 * clients),
        "published": (345, 70),
    }


class _Messages(Mapping[str, bytes]):
    """A message for each client, made as it is sent, as the product makes offers."""

    def __init__(self, names: Sequence[str], down: int, up: int) -> None:
        self._names = names
        self._down, self._up = down, up

    def __getitem__(self, name: str) -> bytes:
        from privacy.wire import Writer  # noqa: PLC0415

        # Random, since a vector is: nothing on the way can make it smaller.
        body = _random(self._down)
        return Writer().integer(self._up).field(body).finish()

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@functools.lru_cache(maxsize=16)
def _random(size: int) -> bytes:
    return os.urandom(size)


class StandIn:
    """A site's client that answers at once, with as many bytes as it is told."""

    def handle(self, phase: str, name: str, payload: bytes) -> bytes:
        """The answer to one phase."""
        from privacy.wire import Reader  # noqa: PLC0415

        del phase, name
        return _random(Reader(payload).integer())


def play(
    engine: Any,  # noqa: ANN401
    names: Sequence[str],
    dimension: int,
    rounds: Sequence[int],
) -> list[dict[str, Any]]:
    """Have rounds of one size carried; returns the coordinator's note of each."""
    from fgrpo_secure.rounds import Meter  # noqa: PLC0415

    notes = []
    for number in rounds:
        engine.gather(number, {tuple(names): len(names)})
        meter = Meter(engine)
        for phase in PHASES:
            messages = _Messages(names, *sizes(dimension, len(names))[phase])
            answers = meter.exchange(phase, messages, _DEADLINE_SECONDS)
            missing = sorted(set(names) - answers.keys())
            if missing:
                msg = f"no answer to {phase!r} from {', '.join(missing)}"
                raise RuntimeError(msg)
            del answers
        note = meter.noted(number, published=True, survivors=len(names), weights=1.0)
        notes.append(asdict(note))
    return notes


def serve_rounds(
    home: Any,  # noqa: ANN401
    name: str,
    agreement: Any,  # noqa: ANN401
    digest: str,
    **given: Any,  # noqa: ANN401
) -> None:
    """What the server's process runs in place of a run: the exchange, and no learner.

    Args:
        home: the server's.
        name: of the run.
        agreement: not looked at.
        digest: likewise.
        given: as `fgrpo_secure.runtime.serving.serve` takes it.
    """
    from fgrpo_secure.runtime.courier import Courier  # noqa: PLC0415
    from fgrpo_secure.runtime.envelope import Opening  # noqa: PLC0415
    from fgrpo_secure.runtime.serving import PilotEngine  # noqa: PLC0415
    from privacy.ledger import HANDLE_BYTES  # noqa: PLC0415
    from privacy.plan import SERVER  # noqa: PLC0415
    from privacy.wire import encode  # noqa: PLC0415

    del agreement, digest
    order = json.loads(Path(os.environ[ORDER]).read_text("utf-8"))
    (home.run(name) / SERVER).mkdir(parents=True, exist_ok=True)
    roster = home.roster()
    names = sorted(set(roster) - {SERVER})
    board, patience = given["board"], given["patience"]
    courier = Courier(
        post=given["post"],
        job=given["job"],
        run=os.urandom(HANDLE_BYTES),
        key=home.identity(),
        sites={site: roster[site] for site in names},
        patience=patience,
        on_silence=lambda client, why: board.say(f"client {client}: {why}"),
        on_absence=board.present,
        stopped=given["stopped"],
    )
    given["ready"](courier)
    opening = encode(Opening(name, b"", b"{}"))
    engine = PilotEngine(
        courier=courier,
        openings=dict.fromkeys(names, opening),
        deadline=_DEADLINE_SECONDS,
        patience=patience,
        is_begun=lambda: False,
        keep_ledger=lambda _client, _data: None,
    )
    homes = home.root.parent
    engine.gather(1, {tuple(names): len(names)})
    result: dict[str, Any] = {"idle": peaks(homes), "sizes": {}}
    following = 1
    for dimension, count in order["rounds"]:
        wire = bytes_on_the_wire(home.port)
        try:
            notes = play(engine, names, dimension, range(following, following + count))
            failed = ""
        except RuntimeError as error:
            notes, failed = [], str(error)
        after = bytes_on_the_wire(home.port)
        result["sizes"][str(dimension)] = {
            "notes": notes,
            "failed": failed,
            "wire": [there - then for there, then in zip(after, wire, strict=True)],
            "peaks": peaks(homes),
        }
        following += count
        Path(order["result"]).write_text(json.dumps(result), "utf-8")
        if failed:
            break


def bytes_on_the_wire(port: int) -> list[int]:
    """What has gone over the connections to a server's port: from it, and to it.

    Those between its own processes go elsewhere. TCP's own headers are not in it, TLS's
    are.
    """
    text = subprocess.run(  # noqa: S603
        ["ss", "-tinH", "state", "established", f"sport = :{port}"],  # noqa: S607
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    return [
        sum(map(int, re.findall(rf"\b{what}:(\d+)", text)))
        for what in ("bytes_sent", "bytes_received")
    ]


def peaks(homes: Path) -> dict[str, dict[str, int]]:
    """The most memory that each kind of process of each party ever held, in bytes."""
    found: dict[str, dict[str, int]] = {}
    for place in Path("/proc").iterdir():
        if not place.name.isdigit():
            continue
        try:
            environment = (place / "environ").read_bytes().split(b"\0")
            command = (place / "cmdline").read_bytes().decode("utf-8", "replace")
            status = (place / "status").read_text("ascii")
        except OSError:
            continue
        mark = f"FGRPO_HOME={homes}/".encode()
        party = next((v[len(mark) :] for v in environment if v.startswith(mark)), None)
        kind = next((k for word, k in _KINDS.items() if word in command), None)
        peak = re.search(r"VmHWM:\s+(\d+)", status)
        if party is None or kind is None or peak is None:
            continue
        own = found.setdefault(party.decode(), {})
        own[kind] = max(own.get(kind, 0), 1024 * int(peak[1]))
    return found


def work_here(pipe: Connection, *orders: Any) -> None:  # noqa: ANN401
    """A worker of the local exchange whose clients are stand-ins."""
    from fgrpo_secure.runtime.worker import work  # noqa: PLC0415

    names = [name for order in orders for name in order.names]
    work(
        pipe,
        lambda _progress: dict.fromkeys(names, StandIn()),
        lambda: Path(os.devnull),
    )


def main(arguments: Sequence[str]) -> None:
    """Be a site's process that learns, with nothing to learn."""
    from fgrpo_secure.home import open_home  # noqa: PLC0415
    from fgrpo_secure.runtime.worker import end_with, work  # noqa: PLC0415

    pipe, lifeline = Connection(int(arguments[0])), int(arguments[1])
    end_with(lifeline)
    pipe.recv_bytes()
    name = open_home(Path(arguments[2])).party
    work(pipe, lambda _progress: {name: StandIn()}, lambda: Path(os.devnull))


# Putting it in place.


def _replace_trainer(module: ModuleType) -> None:
    module._MODULE = "benchmarks.engine_parts"


def _replace_serve(module: ModuleType) -> None:
    module.serve = serve_rounds


def _timed(place: Any, name: str, label: str | None = None) -> None:  # noqa: ANN401
    """Have a function note when it began and ended; a phase where no label is given."""
    plain = getattr(place, name)

    @functools.wraps(plain)
    def timed(*given: Any, **named: Any) -> Any:  # noqa: ANN401
        began = time.monotonic()
        try:
            return plain(*given, **named)
        finally:
            what = label or f"{place.__name__}.{given[1]}"
            _note(what, began, time.monotonic())

    setattr(place, name, timed)


_lock = threading.Lock()


def _note(what: str, began: float, ended: float) -> None:
    order = json.loads(Path(os.environ[ORDER]).read_text("utf-8"))
    party = Path(os.environ.get("FGRPO_HOME", "nobody")).name
    line = json.dumps([party, what, round(began, 5), round(ended, 5)])
    with _lock, Path(order["events"]).open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def _time_rounds(module: ModuleType) -> None:
    _timed(module.Meter, "exchange")


def _time_server(module: ModuleType) -> None:
    _timed(module.Server, "run_round", "round")


def _time_site(module: ModuleType) -> None:
    _timed(module.Site, "handle")


def _time_draws(module: ModuleType) -> None:
    _timed(module, "generate", "rollouts")
    _timed(module.Draws, "make", "draw and rollouts")
    _timed(module.Draws, "add_gradients", "gradients")


def _time_learner(module: ModuleType) -> None:
    _timed(module.Learner, "contribute", "contribute")


_PATCHES: Mapping[str, Mapping[str, Callable[[ModuleType], None]]] = {
    STAND_IN: {
        "fgrpo_secure.runtime.trainer": _replace_trainer,
        "fgrpo_secure.runtime.serving": _replace_serve,
    },
    TIMELINE: {
        "fgrpo_secure.rounds": _time_rounds,
        "fgrpo_secure.server": _time_server,
        "fgrpo_secure.site": _time_site,
        "fgrpo_secure.draws": _time_draws,
        "fgrpo_secure.learner": _time_learner,
    },
}


class _Finder(importlib.abc.MetaPathFinder):
    """Changes some modules once they are loaded, whoever loads them."""

    def __init__(self, patches: Mapping[str, Callable[[ModuleType], None]]) -> None:
        self._patches = dict(patches)

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """The module as it is found otherwise, with a loader that changes it."""
        del path, target
        # Out of the way of its own question.
        patch = self._patches.pop(fullname, None)
        if patch is None:
            return None
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_patch(module: ModuleType) -> None:
                load(module)
                patch(module)

            spec.loader.exec_module = load_and_patch  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Have modules changed as they are loaded in this process."""
    patches = _PATCHES.get(os.environ.get(KIND, ""))
    if patches is not None:
        sys.meta_path.insert(0, _Finder(patches))


if __name__ == "__main__":
    main(sys.argv[1:])
