import errno
import os
import resource
import signal
from pathlib import Path

import pytest

from privacy.errors import (
    BadSignatureError,
    BrokenChainError,
    BudgetExceededError,
    DisagreementError,
    LedgerError,
)
from privacy.ledger import (
    Joined,
    Ledger,
    Phase,
    Reason,
    Refused,
    Resumed,
    Role,
    ServerOpened,
    Status,
    filter_epsilon,
    verify_ledger,
)
from privacy.ledger.chain import read_chain
from privacy.ledger.envelope import line_hash
from privacy.plan import SERVER
from tests.privacy.ledger.synthetic import (
    CLIENTS,
    RUN,
    SOFTWARE,
    SyntheticClient,
    digest,
    event_of,
    make_key,
    make_plan,
    price,
)

KEY = make_key("alpha")
PLAN = make_plan()
ROSTER = {name: make_key(name).verify_key.raw for name in (*CLIENTS, SERVER)}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "alpha.jsonl"


def open_ledger(path, key=KEY):
    return Ledger.open(path, key, party="alpha", role=Role.CLIENT)


def begun(path):
    """A ledger with an open run and one joined round; 2 records."""
    client = SyntheticClient(open_ledger(path), PLAN)
    client.open(ROSTER)
    client.join(1)
    return client


def head_file(path):
    return path.with_name(path.name + ".head")


def records_of(path):
    chain = read_chain(path.read_bytes(), "alpha", KEY.verify_key)
    assert not chain.problems
    return [entry.record for entry in chain.entries]


def check_reopens(path, kinds):
    """Open again, look at what is there, and write one more record."""
    with open_ledger(path) as ledger:
        found = [record.kind for record in records_of(path)]
        assert found == [*kinds, "resumed"]
        ledger.append(Refused(0, 0, Reason.STOPPED, None))
    verify_ledger(path, key=KEY.verify_key, price=price, closed=False)


def test_a_new_ledger_is_empty_and_a_reopened_one_continues_its_chain(path):
    with open_ledger(path) as ledger:
        assert ledger.history.phase is Phase.CLOSED
        assert ledger.head == bytes(32)
    client = begun(path)
    head = client.ledger.head
    client.ledger.close()
    with open_ledger(path) as ledger:
        assert records_of(path)[-1] == Resumed("joined", 1, 1, 0)
        assert ledger.history.phase is Phase.JOINED
        assert (ledger.history.round, ledger.history.run) == (1, RUN)
        assert ledger.head != head
    verify_ledger(path, key=KEY.verify_key, price=price, closed=False)


def test_append_returns_the_hash_of_the_line_that_it_wrote(path):
    client = begun(path)
    head = client.intent(1)
    assert line_hash(path.read_bytes().splitlines()[-1]) == head
    assert client.ledger.head == head


def test_a_closed_run_is_not_resumed_and_another_run_may_follow(path):
    client = begun(path)
    client.intent(1)
    client.outcome(1, Status.MISSED, Reason.DEADLINE)
    client.close()
    client.ledger.close()
    with open_ledger(path) as ledger:
        client = SyntheticClient(ledger, PLAN)
        client.open(ROSTER, run=b"another run here")
        assert ledger.history.charges == ()
        client.join(1)
        client.intent(1)
        assert ledger.history.spend.charges == 1
        assert ledger.history.lifetime_spend.charges == 2
        client.outcome(1, Status.MISSED, Reason.DEADLINE)
        client.close()
    kinds = [record.kind for record in records_of(path)]
    assert "resumed" not in kinds
    ledger = verify_ledger(path, key=KEY.verify_key, price=price)
    assert [run.opened.run for run in ledger.runs] == [RUN, b"another run here"]


def test_the_lifetime_cap_counts_the_runs_before(path):
    client = begun(path)
    client.intent(1)
    client.outcome(1, Status.MISSED, Reason.DEADLINE)
    opened = client.ledger.history.opened
    first = ((event_of(PLAN), PLAN.rounds),)
    # Room for what the first run registers, of which one round was charged.
    cap = filter_epsilon(first, opened.cap_delta, opened.cap_order)
    client.open(ROSTER, run=b"another run here", cap_epsilon=cap)
    for number in (1, 2):
        client.join(number)
        client.intent(number)
        client.outcome(number, Status.MISSED, Reason.DEADLINE)
    client.join(3)
    size = path.stat().st_size
    with pytest.raises(BudgetExceededError, match="own cap"):
        client.intent(3)
    assert path.stat().st_size == size
    client.outcome(3, Status.MISSED, Reason.BUDGET_EXCEEDED)


def test_a_charge_beyond_the_target_is_refused_before_anything_is_written(tmp_path):
    for changes in ({"epsilon": "1.6"}, {"rounds": 1}):
        path = tmp_path / f"{next(iter(changes))}.jsonl"
        plan = make_plan(**{"rounds": 3} | changes)
        client = SyntheticClient(open_ledger(path), plan)
        client.open(ROSTER)
        client.join(1)
        client.intent(1)
        client.ledger.close()
        ledger = open_ledger(path)
        client = SyntheticClient(ledger, plan)
        size = path.stat().st_size
        with pytest.raises(BudgetExceededError):
            client.intent(1)
        assert path.stat().st_size == size
        assert ledger.history.spend.charges == 1
        client.outcome(1, Status.MISSED, Reason.BUDGET_EXCEEDED)
        ledger.close()


def test_a_record_that_may_not_follow_is_refused_and_the_ledger_stays_usable(path):
    client = begun(path)
    size = path.stat().st_size
    with pytest.raises(BrokenChainError, match="cannot follow"):
        client.commit(1)
    with pytest.raises(DisagreementError, match="another round"):
        client.intent(2)
    with pytest.raises(ValueError, match="no reader would accept"):
        client.ledger.append(Refused(-1, 0, Reason.STOPPED, None))
    with pytest.raises(ValueError, match="no reader would accept"):
        client.ledger.append(Joined(2, 1, b"short", bytes(32)))
    assert path.stat().st_size == size
    client.intent(1)


def test_a_ledger_takes_only_records_of_its_own_side_and_key(path):
    ledger = open_ledger(path)
    opened = ServerOpened(RUN, SOFTWARE, PLAN.to_json(), PLAN.digest_bytes, ROSTER)
    with pytest.raises(ValueError, match="no reader"):
        ledger.append(opened)
    with pytest.raises(DisagreementError, match="pins another key"):
        SyntheticClient(ledger, PLAN).open(ROSTER | {"alpha": bytes(32)})
    assert path.stat().st_size == 0


def test_the_record_is_synced_before_it_is_remembered_and_before_append_returns(
    path, monkeypatch
):
    client = begun(path)
    calls = []
    names = {}

    def named(descriptor):
        return Path(os.readlink(f"/proc/self/fd/{descriptor}")).name

    real = {name: getattr(os, name) for name in ("write", "fsync")}

    def write(descriptor, data):
        calls.append(("write", named(descriptor)))
        return real["write"](descriptor, data)

    def fsync(descriptor):
        calls.append(("fsync", named(descriptor)))
        names[named(descriptor)] = path.stat().st_size
        return real["fsync"](descriptor)

    replace = Path.replace

    def renamed(self, target):
        calls.append(("replace", Path(target).name))
        return replace(self, target)

    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", renamed)
    before = path.stat().st_size
    client.intent(1)
    calls.append(("returned", ""))
    folder = path.parent.name
    assert calls[:6] == [
        ("write", "alpha.jsonl"),
        ("fsync", "alpha.jsonl"),
        ("write", "alpha.jsonl.head.tmp"),
        ("fsync", "alpha.jsonl.head.tmp"),
        ("replace", "alpha.jsonl.head"),
        ("fsync", folder),
    ]
    assert calls[-1] == ("returned", "")
    assert names["alpha.jsonl"] > before


def test_the_folder_is_synced_when_the_ledger_is_created(path, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(
        os,
        "fsync",
        lambda descriptor: (
            synced.append(os.readlink(f"/proc/self/fd/{descriptor}")),
            fsync(descriptor),
        )[1],
    )
    open_ledger(path).close()
    assert str(path.parent) in synced
    assert str(path) in synced


def test_a_second_writer_is_refused(path):
    with open_ledger(path):
        with pytest.raises(LedgerError, match="in use by another process"):
            open_ledger(path)
        child = os.fork()
        if child == 0:
            try:
                open_ledger(path)
            except LedgerError:
                os._exit(7)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    open_ledger(path).close()


def test_a_forked_child_cannot_write_to_its_parents_ledger(path):
    client = begun(path)
    child = os.fork()
    if child == 0:
        try:
            client.intent(1)
        except RuntimeError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    client.intent(1)


def test_a_torn_last_line_is_cut_and_the_resumption_says_so(path):
    client = begun(path)
    client.intent(1)
    client.ledger.close()
    whole = path.read_bytes()
    for torn in (b"{", b'{"payload":"eyJ', b"\0" * 300, b"\xff"):
        path.write_bytes(whole + torn)
        with open_ledger(path) as ledger:
            assert ledger.history.phase is Phase.INTERRUPTED
        assert records_of(path)[-1].torn_bytes == len(torn)
        verify_ledger(path, key=KEY.verify_key, price=price, closed=False)
        whole = path.read_bytes()


def test_a_torn_first_line_leaves_an_empty_ledger(path):
    open_ledger(path).close()
    path.write_bytes(b'{"payload')
    with open_ledger(path) as ledger:
        assert ledger.history.records == 0
    assert path.read_bytes() == b""
    begun(path)


def test_an_acknowledged_line_that_is_cut_is_never_taken_for_a_torn_one(path):
    client = begun(path)
    client.intent(1)
    client.ledger.close()
    whole = path.read_bytes()
    start = whole[:-1].rindex(b"\n") + 1
    for end in (start, start + 1, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(BrokenChainError, match="older copy"):
            open_ledger(path)
        assert path.read_bytes() == whole[:end]


def test_an_older_copy_of_the_ledger_is_refused(path):
    client = begun(path)
    older = path.read_bytes()
    client.intent(1)
    client.ledger.close()
    path.write_bytes(older)
    with pytest.raises(BrokenChainError, match="older copy"):
        open_ledger(path)
    path.unlink()
    with pytest.raises(BrokenChainError, match="older copy"):
        open_ledger(path)


def test_a_ledger_without_its_remembered_head_is_refused(path):
    begun(path).ledger.close()
    head_file(path).unlink()
    with pytest.raises(BrokenChainError, match="is missing"):
        open_ledger(path)


@pytest.mark.parametrize("data", [b"", b"{}", b"{}\n", b"\xff\n", b'{"records":-1}\n'])
def test_a_damaged_remembered_head_is_refused(path, data):
    begun(path).ledger.close()
    head_file(path).write_bytes(data)
    with pytest.raises(BrokenChainError, match="damaged"):
        open_ledger(path)


def test_an_older_remembered_head_is_refused(path):
    client = begun(path)
    older = head_file(path).read_bytes()
    client.intent(1)
    client.outcome(1, Status.MISSED, Reason.STOPPED)
    client.ledger.close()
    head_file(path).write_bytes(older)
    with pytest.raises(DisagreementError, match="more lines"):
        open_ledger(path)


def test_a_torn_line_after_one_that_nobody_acknowledged_is_refused(path):
    client = begun(path)
    older = head_file(path).read_bytes()
    client.intent(1)
    client.ledger.close()
    head_file(path).write_bytes(older)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"payload')
    with pytest.raises(DisagreementError, match="more lines"):
        open_ledger(path)
    path.write_bytes(whole)
    open_ledger(path).close()


def test_a_rewritten_ledger_of_the_same_length_is_refused(path, tmp_path):
    begun(path).ledger.close()
    other = tmp_path / "other"
    other.mkdir()
    client = SyntheticClient(open_ledger(other / path.name), PLAN)
    client.open(ROSTER)
    client.join(2)
    client.ledger.close()
    path.write_bytes((other / path.name).read_bytes())
    with pytest.raises(BrokenChainError, match="rewritten"):
        open_ledger(path)


def test_a_changed_byte_is_found_when_the_ledger_is_opened(path):
    begun(path).ledger.close()
    whole = path.read_bytes()
    for place in range(0, len(whole), 97):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(LedgerError):
            open_ledger(path)
    path.write_bytes(whole)
    open_ledger(path).close()


def test_another_signer_or_party_is_found_when_the_ledger_is_opened(path):
    begun(path).ledger.close()
    with pytest.raises(BadSignatureError):
        open_ledger(path, make_key("beta"))
    with pytest.raises(BrokenChainError, match="another party"):
        Ledger.open(path, KEY, party="beta", role=Role.CLIENT)


class Killed(BaseException):
    """What stands for kill -9: nothing in the program expects it."""


def crash_points():
    """Before and after each of the system calls of one append.

    They are write and fsync of the ledger, write and fsync of the remembered head, and
    fsync of the folder twice.
    """
    return [(place, when) for place in range(6) for when in (0, 1)]


@pytest.mark.parametrize(("place", "when"), crash_points())
@pytest.mark.parametrize("kind", [Killed, KeyboardInterrupt])
def test_a_crash_at_any_step_leaves_all_of_a_record_or_nothing(
    path, monkeypatch, place, when, kind
):
    client = begun(path)
    counter = {"calls": 0}
    real = {"write": os.write, "fsync": os.fsync}

    def wrapped(call):
        def run(*arguments):
            mine = counter["calls"]
            counter["calls"] += 1
            if mine == place and not when:
                raise kind
            result = real[call](*arguments)
            if mine == place:
                raise kind
            return result

        return run

    monkeypatch.setattr(os, "write", wrapped("write"))
    monkeypatch.setattr(os, "fsync", wrapped("fsync"))
    with pytest.raises(kind):
        client.intent(1)
    monkeypatch.undo()
    with pytest.raises(LedgerError, match="open it again"):
        client.intent(1)
    client.ledger.close()
    written = (place, when) != (0, 0)
    check_reopens(path, ["opened", "joined"] + ["intent"] * written)


def test_a_kill_in_the_middle_of_the_write_is_a_torn_line(path, monkeypatch):
    client = begun(path)
    write = os.write

    def half(descriptor, data):
        write(descriptor, data[: len(data) // 2])
        raise Killed

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(Killed):
        client.intent(1)
    monkeypatch.undo()
    client.ledger.close()
    check_reopens(path, ["opened", "joined"])


@pytest.mark.parametrize("taken", [0, 1, 200])
def test_a_short_write_is_taken_back_and_reported(path, monkeypatch, taken):
    client = begun(path)
    whole = path.read_bytes()
    write = os.write
    monkeypatch.setattr(
        os, "write", lambda descriptor, data: write(descriptor, data[:taken])
    )
    with pytest.raises(LedgerError, match="only a part"):
        client.intent(1)
    monkeypatch.undo()
    assert path.read_bytes() == whole
    client.ledger.close()
    check_reopens(path, ["opened", "joined"])


@pytest.mark.parametrize("place", range(6))
def test_a_full_disk_at_any_step_is_reported_and_nothing_is_acknowledged(
    path, monkeypatch, place
):
    client = begun(path)
    head = client.ledger.head
    counter = {"calls": 0}
    real = {"write": os.write, "fsync": os.fsync}

    def wrapped(call):
        def run(*arguments):
            counter["calls"] += 1
            if counter["calls"] == place + 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real[call](*arguments)

        return run

    monkeypatch.setattr(os, "write", wrapped("write"))
    monkeypatch.setattr(os, "fsync", wrapped("fsync"))
    with pytest.raises(LedgerError, match="No space left"):
        client.intent(1)
    monkeypatch.undo()
    assert client.ledger.head == head
    client.ledger.close()
    written = place > 1
    check_reopens(path, ["opened", "joined"] + ["intent"] * written)


def test_a_real_short_write_of_the_kernel_is_taken_back(path):
    client = begun(path)
    size = path.stat().st_size
    client.ledger.close()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        ledger = open_ledger(path)
        full = path.stat().st_size + 100
        resource.setrlimit(resource.RLIMIT_FSIZE, (full, full))
        try:
            SyntheticClient(ledger, PLAN).intent(1)
        except LedgerError:
            os._exit(7 if path.stat().st_size == full - 100 else 8)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert path.stat().st_size > size
    check_reopens(path, ["opened", "joined", "resumed"])


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path):
    with pytest.raises(LedgerError, match=r"alpha\.jsonl cannot be opened"):
        open_ledger(tmp_path / "missing" / "alpha.jsonl")


def test_a_charge_that_was_lost_may_be_charged_again_and_both_count(path):
    client = begun(path)
    client.intent(1)
    client.ledger.close()
    client = SyntheticClient(open_ledger(path), PLAN)
    client.intent(1)
    assert client.ledger.history.spend.charges == 2
    client.commit(1)
    client.ledger.close()
    client = SyntheticClient(open_ledger(path), PLAN)
    with pytest.raises(BrokenChainError, match="cannot follow"):
        client.intent(1)
    client.outcome(1, Status.MISSED, Reason.INTERRUPTED)
    client.close()
    verify_ledger(path, key=KEY.verify_key, price=price)


def test_the_remembered_head_may_be_kept_elsewhere(path, tmp_path):
    private = tmp_path / "private"
    private.mkdir()
    arguments = {
        "party": "alpha",
        "role": Role.CLIENT,
        "head_path": private / "head",
    }
    with Ledger.open(path, KEY, **arguments) as ledger:
        SyntheticClient(ledger, PLAN).open(ROSTER)
    assert not head_file(path).exists()
    with Ledger.open(path, KEY, **arguments) as ledger:
        assert ledger.history.records == 2


def test_a_closed_ledger_takes_no_more(path):
    client = begun(path)
    client.ledger.close()
    client.ledger.close()
    with pytest.raises(LedgerError):
        client.intent(1)
    assert digest("x") != digest("y")
