"""Phases over pipes: full ones, late answers, false ones, and workers that end."""

import shutil
import threading
import time
from multiprocessing import Pipe
from types import SimpleNamespace

import pytest

from fgrpo_secure.config import load_config
from fgrpo_secure.runtime import local, worker
from fgrpo_secure.runtime.local import LocalExchange, _Worker
from fgrpo_secure.runtime.worker import Kind
from fgrpo_secure.secrets import private_directory
from privacy.wire import Reader, Writer, canonical_json
from tests.end_to_end.program import write_config
from tests.plans import make_plan

PATIENCE = 10.0
ENDLESS = 60.0
STOP = b"stop"


def answer(pipe, sequence, name, value):
    message = Writer().integer(Kind.ANSWER).integer(sequence).text(name)
    pipe.send_bytes(message.field(value).finish())


class Fakes:
    """An exchange whose workers are threads of this process."""

    def __init__(self):
        self.silences, self.progress = {}, []
        self.ends, self.threads = [], []
        self.exchange = object.__new__(LocalExchange)
        self.exchange._sequence = 0
        self.exchange._workers = []
        self.exchange._on_progress = lambda *said: self.progress.append(said)
        self.exchange._on_silence = self.silences.__setitem__

    def add(self, names, behave):
        """Add a worker; `behave` gets its pipe and each message that it reads."""
        ours, theirs = Pipe()
        self.exchange._workers.append(_Worker(None, ours, tuple(names)))
        self.ends += [ours, theirs]

        def live():
            while True:
                try:
                    received = theirs.recv_bytes()
                    if received == STOP:
                        theirs.close()
                        return
                    reader = Reader(received)
                    sequence, phase, name = (
                        reader.integer(),
                        reader.text(),
                        reader.text(),
                    )
                    behave(theirs, sequence, phase, name, reader.field())
                except (OSError, EOFError):
                    return

        thread = threading.Thread(target=live, daemon=True)
        thread.start()
        self.threads.append(thread)
        return ours

    def end(self, number):
        """End a worker that waits for its next message."""
        self.exchange._workers[number].pipe.send_bytes(STOP)
        self.threads[number].join(PATIENCE)
        assert not self.threads[number].is_alive()

    def ask(self, phase, messages, deadline=ENDLESS):
        """Carry a phase in a thread, so that a deadlock fails and does not hang."""
        found = []

        def carry():
            found.append(self.exchange.exchange(phase, messages, deadline))

        thread = threading.Thread(target=carry, daemon=True)
        thread.start()
        thread.join(PATIENCE)
        assert not thread.is_alive(), "the exchange does not come to an end"
        return found[0]


@pytest.fixture
def fakes():
    made = Fakes()
    yield made
    ours, theirs = made.ends[::2], made.ends[1::2]
    for end in ours:
        end.close()
    # A worker may be closing its end itself, and two at once would close it twice.
    for thread in made.threads:
        thread.join(PATIENCE)
    for end in theirs:
        end.close()


def echo(pipe, sequence, phase, name, payload):
    answer(pipe, sequence, name, payload)


def silent(*message):
    """Read a message and never answer it."""


def test_messages_and_answers_beyond_a_pipes_buffer_do_not_block(fakes):
    names = [f"client{number:02d}" for number in range(30)]
    messages = {name: bytes([number]) * 200_000 for number, name in enumerate(names)}

    def large(pipe, sequence, phase, name, payload):
        assert payload == messages[name]
        answer(pipe, sequence, name, payload[:1] * 1_000_000)

    fakes.add(names, large)
    answers = fakes.ask("shares", messages)
    assert answers.keys() == messages.keys()
    for name, value in answers.items():
        assert value == messages[name][:1] * 1_000_000
    assert fakes.silences == {}


def test_the_deadline_holds_for_a_worker_that_never_answers(fakes):
    names = [f"client{number}" for number in range(5)]
    ended = threading.Event()

    def stuck(*message):
        # It reads no more: whoever sends to it now waits for ever.
        ended.wait(PATIENCE)

    fakes.add(names, stuck)
    fakes.add(["other"], echo)
    messages = dict.fromkeys([*names, "other"], bytes(2_000_000))
    # In the second phase the worker still has not answered the first.
    for phase in ("shares", "survivors"):
        fakes.silences.clear()
        began = time.monotonic()
        answers = fakes.ask(phase, messages, deadline=0.2)
        assert 0.2 <= time.monotonic() - began < 2
        assert answers.keys() == {"other"}
        assert fakes.silences.keys() == set(names)
        assert all("no answer" in why for why in fakes.silences.values())
    ended.set()


def test_word_of_progress_is_passed_on_and_is_no_answer(fakes):
    def chatty(pipe, sequence, phase, name, payload):
        message = Writer().integer(Kind.PROGRESS).text("rollouts").integer(3)
        pipe.send_bytes(message.integer(10).finish())
        answer(pipe, sequence, name, payload)

    fakes.add(["a", "b"], chatty)
    assert fakes.ask("offer", {"a": b"1", "b": b"2"}) == {"a": b"1", "b": b"2"}
    assert fakes.progress == [("rollouts", 3, 10)] * 2


def test_a_late_answer_is_not_taken_for_one_of_this_phase(fakes):
    late = threading.Event()

    def slow(pipe, sequence, phase, name, payload):
        if phase == "roster":
            late.wait(PATIENCE)
        answer(pipe, sequence, name, phase.encode())

    fakes.add(["a", "b"], slow)
    messages = {"a": b"", "b": b""}
    assert fakes.ask("roster", messages, deadline=0.1) == {}
    late.set()
    assert fakes.ask("shares", messages) == {"a": b"shares", "b": b"shares"}


def test_an_answer_in_the_name_of_another_workers_client_is_ignored(fakes):
    def forging(pipe, sequence, phase, name, payload):
        answer(pipe, sequence, "theirs", b"forged")
        answer(pipe, sequence, name, b"own")

    fakes.add(["own"], forging)
    fakes.add(["theirs"], silent)
    answers = fakes.ask("shares", {"own": b"", "theirs": b""}, deadline=0.3)
    assert answers == {"own": b"own"}
    assert fakes.silences.keys() == {"theirs"}


def test_an_answer_that_nobody_asked_for_is_ignored(fakes):
    def forging(pipe, sequence, phase, name, payload):
        answer(pipe, sequence, "idle", b"unasked")
        answer(pipe, sequence, name, b"own")

    fakes.add(["own", "idle"], forging)
    assert fakes.ask("shares", {"own": b""}) == {"own": b"own"}


def test_the_clients_of_a_worker_that_ends_are_reported_at_once(fakes):
    def dying(pipe, *message):
        pipe.close()

    fakes.add(["a", "b", "c"], dying)
    fakes.add(["other"], echo)
    messages = dict.fromkeys(("a", "b", "other"), b"x")
    # A second phase meets a worker that was dead before it.
    for phase in ("shares", "survivors"):
        fakes.silences.clear()
        assert fakes.ask(phase, messages) == {"other": b"x"}
        assert fakes.silences.keys() == {"a", "b"}
        assert all("has ended" in why for why in fakes.silences.values())


def test_a_worker_that_ended_between_two_phases_is_reported(fakes):
    fakes.add(["a"], echo)
    fakes.add(["other"], echo)
    messages = {"a": b"x", "other": b"y"}
    assert fakes.ask("offer", messages) == messages
    fakes.end(0)
    assert fakes.ask("roster", messages) == {"other": b"y"}
    assert fakes.silences == {"a": "its process has ended"}


def test_what_an_unexpected_error_says_stays_in_the_clients_folder(
    tmp_path, monkeypatch
):
    path = write_config(tmp_path / "given")
    root = tmp_path / "run"
    private_directory(root / "clients")
    shutil.copy(path, root / "config.toml")

    def bug(*arguments):
        message = "a value of the data"
        raise TypeError(message)

    monkeypatch.setattr(local, "open_site", bug)
    monkeypatch.setattr(local.Plan, "from_json", lambda value: None)
    monkeypatch.setattr(worker.signal, "signal", lambda *arguments: None)
    (root / "plan.json").write_bytes(b"{}")
    ours, theirs = Pipe()
    monkeypatch.setattr(local, "accepted", lambda config, plan: "all of it")
    order = local.WorkerOrder(str(root), ("count",), bytes(16), "all of it")
    local._work(theirs, order)
    reader = Reader(ours.recv_bytes())
    assert reader.integer() == Kind.FAILED
    _, what, fix = reader.text(), reader.text(), reader.text()
    assert "TypeError" in what
    assert "a value of the data" not in what + fix
    log = root / "clients" / "crash.log"
    assert "a value of the data" in log.read_text("utf-8")
    assert log.stat().st_mode & 0o077 == 0


@pytest.fixture
def admitted(tmp_path):
    """A run's folder as its parent writes it, and what it admitted."""
    config, _ = load_config(str(write_config(tmp_path / "given")))
    root = tmp_path / "run"
    plan = make_plan()
    private_directory(root / "clients")
    (root / "config.toml").write_text(config.to_toml())
    (root / "plan.json").write_bytes(canonical_json(plan.to_json()))
    return root, local.WorkerOrder(
        str(root), ("count",), bytes(16), local.accepted(config, plan)
    )


def opened(order, monkeypatch):
    """What a worker says first, and whether it came to open its clients."""
    reached = []

    def open_site(*given):
        reached.append(given)
        return SimpleNamespace(policy=None)

    monkeypatch.setattr(local, "open_site", open_site)
    monkeypatch.setattr(worker.signal, "signal", lambda *arguments: None)
    ours, theirs = Pipe()
    thread = threading.Thread(target=local._work, args=(theirs, order), daemon=True)
    thread.start()
    reader = Reader(ours.recv_bytes())
    ours.close()
    thread.join(PATIENCE)
    return reader, bool(reached)


def test_a_worker_opens_what_its_parent_admitted(admitted, monkeypatch):
    _, order = admitted
    reader, reached = opened(order, monkeypatch)
    assert reader.integer() == Kind.READY
    assert reached


@pytest.mark.parametrize("name", ["config.toml", "plan.json"])
def test_files_that_are_exchanged_after_admission_are_not_opened(
    admitted, monkeypatch, name
):
    """The parent has asked each site's policy about what it read, and about no more."""
    root, order = admitted
    if name == "plan.json":
        other = canonical_json(make_plan(rounds=9).to_json())
        (root / name).write_bytes(other)
    else:
        config, _ = load_config(str(root / name))
        table = config.client[0].model_copy(update={"policy": "/elsewhere.toml"})
        changed = config.model_copy(update={"client": (table, *config.client[1:])})
        (root / name).write_text(changed.to_toml())
    reader, reached = opened(order, monkeypatch)
    assert reader.integer() == Kind.FAILED
    _code, what = reader.text(), reader.text()
    assert "another configuration or plan" in what
    assert not reached
