"""Every boundary that a process of a run passes, by name, and how to die there.

Nothing of this is in the program. A process of the tests wraps the system calls by
which files are changed, the ends of the pipes, and the four functions that draw or
release; each call is a boundary, named after what it is about to do. So the list of
names is recorded and not typed in: a durable write that is new gets a new name.

A name is what is about to happen: a kill at "client sync line intent" is a kill between
the write of that line and its sync. "tear" stands for a write of which half was done.
"""

from __future__ import annotations

import base64
import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import privacy.contribution
from fgrpo_secure.runtime import local, worker
from privacy.contribution import Contribution
from privacy.wire import Reader
from tests.crash.power import Journal, content

# Whatever changes from run to run is left out of a name.
_VARIABLE = (
    (re.compile(r"\b[0-9a-f]{16,}\b"), "DIGEST"),
    (re.compile(r"\b\d{5}\b"), "ROUND"),
    (re.compile(r"\b\d+\.note\b"), "SIZE.note"),
)


_CALLS = ("write", "fsync", "replace", "rename", "unlink", "mkdir", "ftruncate", "open")


class Boundaries:
    """Names what this process is about to do.

    Args:
        folders: whose files count, each with what it is called in a name.
        clients: names that stand for "CLIENT" in a path.
        passed: called with each name before the call; it returns what is to happen
            in place of the call, or None where the process goes on.
        noted: called with what was drawn or released, for the witness.
        journal: is told of changes and syncs.
    """

    def __init__(
        self,
        folders: dict[str, Path],
        clients: tuple[str, ...],
        passed: Callable[[str], Callable[[], None] | None],
        noted: Callable[[dict[str, object]], None],
        journal: Journal,
    ) -> None:
        self._folders = folders
        self._clients = clients
        self._judge = passed
        self._noted = noted
        self._journal = journal
        # By ledger file: the kind of its last line.
        self._lines: dict[str, str] = {}
        self._last = ""
        self._phase = ""

    def install(self) -> None:
        """Wrap, in this process, everything that is a boundary."""
        self._wrap_files()
        self._wrap_pipes()
        self._wrap_releases()

    def _name(self, path: str | Path) -> str | None:
        """What a file is called; None for one that is no part of the run."""
        whole = os.path.abspath(path)
        for place, folder in self._folders.items():
            if not (whole == str(folder) or whole.startswith(f"{folder}/")):
                continue
            ledger = whole.removesuffix(".tmp").removesuffix(".head")
            if self._is_ledger(ledger):
                what = "line" if whole == ledger else "head"
                of = re.search(
                    r" of cohort-\d+|$", whole.replace("/cohort-", " of cohort-")
                )
                return f"{what} {self._lines.get(ledger, 'opening')}{of[0]}"
            parts = Path(whole).relative_to(folder).parts
            parts = [self._without_client(part) for part in parts]
            text = "/".join([place, *parts]).removesuffix(".tmp")
            for pattern, instead in _VARIABLE:
                text = pattern.sub(instead, text)
            return text
        return None

    def _is_ledger(self, path: str) -> bool:
        """Whether this is where a party writes its ledger, and no copy of it."""
        if not path.endswith(".jsonl") or Path(path).parent.name != "ledger":
            return False
        within = self._folders["run"] in Path(path).parents
        return not within or Path(path).stem not in self._clients

    def _without_client(self, part: str) -> str:
        for client in self._clients:
            if part == client or part.startswith(f"{client}."):
                return "CLIENT" + part[len(client) :]
        return part

    def _passed(self, name: str) -> None:
        instead = self._judge(name)
        if instead is not None:
            instead()

    def _wrap_files(self) -> None:  # noqa: PLR0915
        real = {name: getattr(os, name) for name in _CALLS}

        def path_of(descriptor: int) -> str:
            return os.readlink(f"/proc/self/fd/{descriptor}")

        def do(verb: str, path: str | Path) -> None:
            name = self._name(path)
            if name is not None:
                self._last = name
                self._passed(f"{verb} {name}")

        def open_(path, flags, mode=0o777, *, dir_fd=None):
            fresh = flags & os.O_CREAT and self._name(path) and not Path(path).exists()
            if self._is_ledger(os.path.abspath(path)) and flags & os.O_CREAT:
                self._lines[os.path.abspath(path)] = "opening"
            descriptor = real["open"](path, flags, mode, dir_fd=dir_fd)
            if fresh:
                self._journal.note("created", path)
            return descriptor

        def write(descriptor, data):
            path = path_of(descriptor)
            if self._name(path) is None:
                return real["write"](descriptor, data)
            if self._is_ledger(path):
                self._lines[path] = _kind(bytes(data))
            do("write", path)
            instead = self._judge(f"tear {self._name(path)}")
            size = os.fstat(descriptor).st_size
            taken = bytes(data) if instead is None else bytes(data)[: len(data) // 2]
            written = real["write"](descriptor, taken)
            self._journal.note("wrote", path, size=size)
            if instead is not None:
                instead()
            return written

        def fsync(descriptor):
            path = path_of(descriptor)
            if self._name(path) is None:
                real["fsync"](descriptor)
                # The folder in which a run's folder was made is no part of the run.
                self._journal.note("named", path)
                return
            # What a killed process wrote stays in the system's memory, so that to wait
            # for the disk would change nothing but the time that a test takes.
            if Path(path).is_dir():
                self._passed(f"sync folder of {self._last}")
                self._journal.note("named", path)
            else:
                do("sync", path)
                self._journal.note("synced", path)

        def ftruncate(descriptor, size):
            do("cut", path_of(descriptor))
            real["ftruncate"](descriptor, size)

        def moving(call: str):
            def move(source, target, **how):
                if self._name(target) is None:
                    real[call](source, target, **how)
                    return
                do("rename", target)
                old = content(target)
                real[call](source, target, **how)
                source = os.path.abspath(source)
                self._journal.note("renamed", target, source=source, old=old)

            return move

        def mkdir(path, *arguments, **how):
            if self._name(path) is None:
                real["mkdir"](path, *arguments, **how)
                return
            do("make", path)
            real["mkdir"](path, *arguments, **how)
            self._journal.note("made", path)

        def unlink(path, *, dir_fd=None):
            if dir_fd is not None or self._name(path) is None:
                real["unlink"](path, dir_fd=dir_fd)
                return
            do("remove", path)
            old = content(path)
            real["unlink"](path)
            self._journal.note("removed", path, old=old)

        os.open, os.write, os.fsync, os.ftruncate = open_, write, fsync, ftruncate
        os.replace, os.rename = moving("replace"), moving("rename")
        os.unlink, os.mkdir = unlink, mkdir

    def _wrap_pipes(self) -> None:
        pipe = local.Connection
        send, receive = pipe.send_bytes, pipe.recv_bytes

        def send_bytes(connection, data, *rest):
            what = self._message(data)
            if what is not None:
                self._passed(f"send {what}")
            return send(connection, data, *rest)

        def recv_bytes(connection, *rest):
            data = receive(connection, *rest)
            what = self._message(data)
            if what is not None:
                self._passed(f"receive {what}")
            return data

        pipe.send_bytes, pipe.recv_bytes = send_bytes, recv_bytes

    def _message(self, data: bytes) -> str | None:
        """What a message of the pipes is; both directions are told apart by form."""
        reader = Reader(bytes(data))
        first = reader.integer()
        if first in {worker.Kind.READY, worker.Kind.PROGRESS, worker.Kind.FAILED}:
            # A worker's, which no phase of a round waits for; the server's messages
            # count from `FIRST_SEQUENCE`.
            return worker.Kind(first).name.lower()
        if first in {worker.Kind.ANSWER, worker.Kind.SILENCE}:
            return f"{worker.Kind(first).name.lower()} to {self._phase}"
        self._phase = reader.text()
        return self._phase

    def _wrap_releases(self) -> None:
        """Tell the witness of whatever a charge is for."""
        here: list[Contribution] = []
        begin = Contribution.__init__
        seal = Contribution.seal

        def note(what: str, **more: object) -> None:
            intent = here[-1]._intent
            place = {"client": here[-1]._name, "round": intent.round}
            self._passed(what)
            self._noted({"what": what, **place, "attempt": intent.attempt, **more})

        def __init__(contribution, *arguments, **how) -> None:  # noqa: N807
            here.append(contribution)
            begin(contribution, *arguments, **how)

        def sealed(contribution):
            vector, opening = seal(contribution)
            words = vector.residues.astype("<u4").tobytes()
            note("vector", words=words.hex(), opening=opening.hex())
            return vector, opening

        def witnessed(what: str, function: Callable) -> Callable:
            def run(*arguments, **how):
                note(what)
                return function(*arguments, **how)

            return run

        Contribution.__init__, Contribution.seal = __init__, sealed
        for what, name in (
            ("draw", "poisson_draw"),
            ("statistic", "noised_mean"),
            ("noise", "discrete_gaussian"),
        ):
            module = privacy.contribution
            setattr(module, name, witnessed(what, getattr(module, name)))


def number_from(exchange_type: type, first: int) -> None:
    """Have an exchange count its messages from a number that no kind has."""
    begin = exchange_type.__init__

    def __init__(exchange, *arguments, **how) -> None:  # noqa: N807
        begin(exchange, *arguments, **how)
        exchange._sequence = first

    exchange_type.__init__ = __init__


def die(*, machine: bool) -> None:
    """End this process as `kill -9` does, or all processes of the run at once."""
    if machine:
        os.killpg(os.getpgid(0), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


def _kind(line: bytes) -> str:
    payload = base64.b64decode(json.loads(line)["payload"])
    return str(json.loads(payload)["kind"])
