"""What leaves a site that declines: a code, and none of its words."""

import shutil
import threading
from multiprocessing import Pipe

import pytest

from fgrpo_secure.errors import DataError, StateError
from fgrpo_secure.refusals import silence_of
from fgrpo_secure.runtime import local
from fgrpo_secure.runtime import worker as worker_module
from fgrpo_secure.runtime.worker import Kind
from fgrpo_secure.secrets import private_directory
from fgrpo_secure.site_policy import Refusal, SitePolicyError
from privacy.errors import (
    BudgetExceededError,
    FaultyClientError,
    LedgerError,
    MalformedMessageError,
    PrivacyError,
    ReplayError,
)
from privacy.ledger import Reason
from privacy.wire import Reader, Writer
from tests.adversary.test_site_policy import NAME, Guarded
from tests.app.test_messages import offer_of
from tests.end_to_end.program import write_config

CAP = "77.125"

ERRORS = [
    *(
        SitePolicyError("north", [Refusal(reason, f"allows {CAP}", "raise it")])
        for reason in Reason
    ),
    BudgetExceededError(f"above its cap {CAP}; raise it"),
    FaultyClientError("north", CAP),
    LedgerError(CAP),
    MalformedMessageError(CAP),
    ReplayError(CAP),
    PrivacyError(CAP),
    DataError(f"{CAP} is not there.", "Look."),
    StateError(f"/home/north/{CAP}", "Look."),
    OSError(2, "No such file", CAP),
    RuntimeError(CAP),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_server_is_told_a_code_and_no_word_of_the_site(error):
    found = silence_of(error)
    assert found.reason in set(Reason)
    assert CAP not in found.reason.value


def test_the_operator_is_told_all_but_what_other_libraries_say():
    for error in ERRORS:
        kept = not isinstance(error, OSError | RuntimeError)
        assert (CAP in silence_of(error).said_to_operator) == kept
        assert "\n" not in silence_of(error).said_to_operator


def test_of_several_rules_the_server_is_told_the_first():
    rules = [Refusal(r, "a", "b") for r in (Reason.POLICY_UNIT, Reason.POLICY_EPSILON)]
    found = silence_of(SitePolicyError("north", rules))
    assert found.reason is Reason.POLICY_UNIT


def test_two_caps_that_both_refuse_look_alike_from_outside(tmp_path):
    """Whoever proposes plans learns no more than that they are refused."""
    guarded = Guarded(tmp_path)
    seen = set()
    for cap in (0.5, 3.25, 49):
        guarded.tables["data_set"][0]["epsilon"] = cap
        guarded.write()
        offer = offer_of(guarded.one, 1, guarded.one.server.adapter, str(cap))
        with pytest.raises(SitePolicyError) as caught:
            guarded.one.exchange.clients[NAME].handle("offer", offer)
        assert str(cap) in silence_of(caught.value).said_to_operator
        seen.add(silence_of(caught.value).reason)
    guarded.one.close()
    assert seen == {Reason.POLICY_EPSILON}


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """A worker process's loop in a thread, over a site that tests make."""
    path = write_config(tmp_path / "given")
    root = tmp_path / "run"
    private_directory(root / "clients")
    shutil.copy(path, root / "config.toml")
    (root / "plan.json").write_bytes(b"{}")
    monkeypatch.setattr(local.Plan, "from_json", lambda value: None)
    monkeypatch.setattr(worker_module.signal, "signal", lambda *arguments: None)
    ends = []

    def make(site):
        monkeypatch.setattr(local, "open_site", lambda *arguments: site)
        ours, theirs = Pipe()
        monkeypatch.setattr(local, "accepted", lambda config, plan: "all of it")
        order = local.WorkerOrder(str(root), (NAME,), bytes(16), "all of it")
        thread = threading.Thread(target=local._work, args=(theirs, order), daemon=True)
        thread.start()
        ends.append((ours, thread))
        assert Reader(ours.recv_bytes()).integer() == Kind.READY
        return ours

    yield make
    for ours, thread in ends:
        ours.close()
        thread.join(10)
        assert not thread.is_alive()


def test_a_worker_keeps_what_is_for_others_and_for_its_operator_apart(worker):
    class Declining:
        policy = None

        def handle(self, phase, name, payload):
            rule = Refusal(Reason.POLICY_DELTA, CAP + "ü" * 10_000, "")
            raise SitePolicyError(name, [rule])

    pipe = worker(Declining())
    pipe.send_bytes(Writer().integer(1).text("offer").text(NAME).field(b"").finish())
    reader = Reader(pipe.recv_bytes())
    assert reader.integer() == Kind.SILENCE
    assert (reader.integer(), reader.text()) == (1, NAME)
    said, words = reader.text(), reader.text()
    reader.finish()
    assert said == "policy_delta"
    assert CAP in words
