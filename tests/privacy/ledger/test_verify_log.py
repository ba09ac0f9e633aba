"""An auditor's view of the log: notes, cosignatures, split views."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from fgrpo_secure.cli import main
from privacy.errors import EquivocationError, RollbackError
from privacy.ledger import (
    ServerClosed,
    price_charges,
    roots_of,
    split_views,
    verify_ledger,
    verify_run,
)
from privacy.ledger.checkpoint import (
    Checkpoint,
    Note,
    log_origin,
    parse_note,
    sign_checkpoint,
)
from privacy.ledger.merkle import Tree
from privacy.ledger.records import Cosigned, Disputed
from privacy.plan import SERVER
from tests.privacy.ledger.synthetic import (
    CLIENTS,
    SyntheticRun,
    forge,
    make_key,
    payloads,
    price,
)
from tests.privacy.ledger.watched import ORIGIN, Watched

LAST = "ledger/checkpoint"


def finished(directory):
    one = Watched(directory)
    one.watched_rounds()
    history = one.server.history
    one.server.append(
        ServerClosed(history.records + 1, history.published, history.aborted)
    )
    one.close_clients()
    one.write_summary()
    one.close_files()
    return one


@pytest.fixture(scope="module")
def watched_run(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("watched") / "run")


@pytest.fixture
def run(watched_run, tmp_path):
    """A finished, honest run that a test may spoil."""
    shutil.copytree(watched_run.directory, tmp_path / "run")
    return tmp_path / "run"


def check(run, **options):
    return verify_run(run, price=price, **options)


def problems(run, **options):
    return [str(problem) for problem in check(run, **options).problems]


def note_path(run, size):
    return run / f"ledger/log/{size}.note"


def rewrite_note(run, size, note):
    """Replace a note, and the copy of the last one with it."""
    data = note if isinstance(note, bytes) else note.to_bytes()
    note_path(run, size).write_bytes(data)
    if size == 13:
        (run / LAST).write_bytes(data)


def server_lines(run):
    return (run / "ledger/server.jsonl").read_bytes().splitlines()


def test_an_honest_run_verifies_and_says_who_cosigned(run):
    report = check(run)
    assert report.ok, report.problems
    assert report.log_size == 13
    assert report.log_root == Tree(server_lines(run)).root()
    assert report.cosigned == dict.fromkeys(CLIENTS, 13)
    signed = [root for root in report.roots if "server.jsonl" not in root.where]
    assert {root.head.size for root in signed} == {1, 5, 8, 12, 13}
    assert len(report.roots) - len(signed) == 13


def test_a_run_whose_log_nobody_cosigned_verifies_without_notes(honest_run):
    report = check(honest_run)
    assert report.ok
    assert report.cosigned == {}


def test_the_last_checkpoint_is_that_of_this_run_and_of_no_earlier_one(run, tmp_path):
    """A client's ledger may hold a checkpoint of a longer log, of another run."""
    assert check(run).checkpoint.size == 13
    one = SyntheticRun(tmp_path)
    earlier = b"an earlier run.."
    head = Checkpoint(log_origin(earlier), 99, bytes(32))
    signature = sign_checkpoint(head, head.origin, one.keys[SERVER]).signature
    for client in one.clients.values():
        client.open(one.roster, run=earlier)
        client.ledger.append(Cosigned(head.size, head.root, signature))
        client.close()
    one.open()
    one.rounds()
    one.finish()
    one.close_files()
    report = check(tmp_path)
    assert report.ok, report.problems
    assert report.checkpoint is None
    assert max(root.head.size for root in report.roots) == 99


def test_a_server_that_died_between_its_two_copies_of_a_note_is_no_problem(run):
    shutil.copyfile(note_path(run, 12), run / LAST)
    assert check(run, unfinished=True).ok
    assert not check(run).ok


def test_a_missing_cosignature_is_no_problem_and_is_shown(run):
    note = parse_note(note_path(run, 13).read_bytes())
    kept = tuple(one for one in note.signatures if one.name != "beta")
    rewrite_note(run, 13, replace(note, signatures=kept))
    report = check(run)
    assert report.ok, report.problems
    assert report.cosigned == {"alpha": 13, "beta": 12, "gamma": 13}


def test_signatures_of_strangers_are_no_problem(run):
    note = parse_note(note_path(run, 13).read_bytes())
    # The server signs under the origin; its name in a plan is nobody's here.
    for name in ("witness.example", SERVER):
        extra = sign_checkpoint(note.checkpoint, name, make_key("zeta"))
        rewrite_note(run, 13, replace(note, signatures=(*note.signatures, extra)))
        assert check(run).ok


def signed(head, *names):
    """A note that these parties signed, each with its true key."""
    keys = {name: make_key(SERVER if name == ORIGIN else name) for name in names}
    return Note(head, tuple(sign_checkpoint(head, n, k) for n, k in keys.items()))


def tampered(size, change):
    """A note of the honest run, changed."""

    def act(run):
        note = parse_note(note_path(run, size).read_bytes())
        rewrite_note(run, size, change(note))

    return act


def with_signature(note, name, **changes):
    return replace(
        note,
        signatures=tuple(
            replace(one, **changes) if one.name == name else one
            for one in note.signatures
        ),
    )


def forged_cosignature(note):
    other = sign_checkpoint(note.checkpoint, "beta", make_key("mallory"))
    return with_signature(note, "beta", key_id=other.key_id, signature=other.signature)


def signed_by_mallory(note):
    other = sign_checkpoint(note.checkpoint, ORIGIN, make_key("mallory"))
    return replace(note, signatures=(other, *note.signatures[1:]))


def another_run(note):
    head = replace(note.checkpoint, origin=log_origin(b"\7" * 16))
    names = {head.origin: SERVER, "alpha": "alpha"}
    return Note(
        head,
        tuple(sign_checkpoint(head, n, make_key(k)) for n, k in names.items()),
    )


def remove(name):
    return lambda run: (run / name).unlink()


def unsigned_fork(run):
    head = replace(
        parse_note(note_path(run, 8).read_bytes()).checkpoint, root=bytes(32)
    )
    rewrite_note(run, 8, signed(head, "alpha"))


def longer_than_the_ledger(run):
    head = replace(parse_note(note_path(run, 13).read_bytes()).checkpoint, size=14)
    note = signed(head, ORIGIN)
    note_path(run, 14).write_bytes(note.to_bytes())
    (run / LAST).write_bytes(note.to_bytes())


NOTES = {
    "a note that is none": (lambda run: rewrite_note(run, 8, b"junk"), "8.note"),
    "an empty note": (lambda run: rewrite_note(run, 8, b""), "8.note"),
    "a note without the server": (
        tampered(8, lambda note: replace(note, signatures=note.signatures[1:])),
        "8.note",
    ),
    "a note that only a client signed": (unsigned_fork, "8.note"),
    "a server's signature of another key": (
        tampered(8, signed_by_mallory),
        "8.note",
    ),
    "a server's signature that is wrong": (
        tampered(8, lambda note: with_signature(note, ORIGIN, signature=bytes(64))),
        "8.note",
    ),
    "a cosignature that is wrong": (
        tampered(8, lambda note: with_signature(note, "beta", signature=bytes(64))),
        "8.note: a signature in the name of 'beta'",
    ),
    "a cosignature of another key": (
        tampered(8, forged_cosignature),
        "8.note: a signature in the name of 'beta'",
    ),
    "a cosignature of another size": (
        tampered(
            8,
            lambda note: with_signature(
                note,
                "beta",
                signature=make_key("beta").sign_raw(
                    replace(note.checkpoint, size=5).text()
                ),
            ),
        ),
        "8.note: a signature in the name of 'beta'",
    ),
    "a root that is not the ledger's": (
        tampered(
            8, lambda note: signed(replace(note.checkpoint, root=bytes(32)), ORIGIN)
        ),
        "8.note: not the root of the 8 lines",
    ),
    "a size beyond the ledger": (
        longer_than_the_ledger,
        "14.note: not the root of the 14",
    ),
    "a note of another run": (
        tampered(
            8,
            another_run,
        ),
        "8.note: a checkpoint of another run's log",
    ),
    "a note under another name": (
        lambda run: note_path(run, 8).rename(note_path(run, 9)),
        "9.note: a note of another size",
    ),
    "a file that is no note": (
        lambda run: (run / "ledger/log/readme").write_bytes(
            note_path(run, 8).read_bytes()
        ),
        "readme': a note of another size",
    ),
    "no last note": (remove(LAST), "checkpoint: missing, or not"),
    "an older last note": (
        lambda run: shutil.copyfile(note_path(run, 12), run / LAST),
        "checkpoint: missing, or not",
    ),
    "the last note without its copy": (
        remove("ledger/log/13.note"),
        "checkpoint: missing, or not",
    ),
    "no notes at all": (
        lambda run: (shutil.rmtree(run / "ledger/log"), (run / LAST).unlink()),
        "clients vouched for 13 lines, and no note has as many",
    ),
    "no last notes": (
        lambda run: (
            note_path(run, 13).unlink(),
            shutil.copyfile(note_path(run, 12), run / LAST),
        ),
        "clients vouched for 13 lines, and no note has as many",
    ),
}


@pytest.mark.parametrize("name", NOTES)
def test_a_note_that_was_tampered_with_is_found(run, name):
    act, what = NOTES[name]
    act(run)
    found = problems(run)
    assert any(what in problem for problem in found), found


def test_every_byte_of_the_last_note_counts(run):
    path = run / LAST
    data = path.read_bytes()
    for place in range(0, len(data), 7):
        spoilt = bytearray(data)
        spoilt[place] ^= 1
        rewrite_note(run, 13, bytes(spoilt))
        report = check(run)
        # Who spoils a stranger's name or key id takes a signature away.
        assert (
            report.problems
            or len(report.cosigned) < 3
            or 12 in (report.cosigned.values())
        ), place


# Two histories.


def rewritten(run, place, **changes):
    """The server changes a record, signs its ledger again, and its notes with it."""
    records = payloads(run / "ledger/server.jsonl")
    records[place] |= changes
    data = forge(records, make_key(SERVER))
    (run / "ledger/server.jsonl").write_bytes(data)
    (run / "ledger/server.jsonl.head").unlink(missing_ok=True)
    for path in [*(run / "ledger/log").iterdir(), run / LAST]:
        head = parse_note(path.read_bytes()).checkpoint
        root = Tree(data.splitlines()[: head.size]).root()
        path.write_bytes(signed(replace(head, root=root), ORIGIN).to_bytes())


def test_a_server_that_rewrites_what_nobody_else_wrote_is_found(run):
    """No client's ledger says who dropped out; what they vouched for does."""
    rewritten(run, 7, dropouts=["alpha"])
    report = check(run)
    split = [p for p in report.problems if p.error is EquivocationError]
    assert {problem.file for problem in split} == {
        f"ledger/{name}.jsonl" for name in CLIENTS
    }
    assert all("another history of" in problem.what for problem in split)


def split_run(directory):
    """A server shows gamma another history than the others, in one folder."""
    one = Watched(directory)
    one.show()
    one.gather(1)
    one.abort(1)
    records = payloads(one.path(SERVER))
    records[-1]["dropouts"] = ["alpha"]
    lines = forge(records, one.keys[SERVER]).splitlines()
    # What gamma was told of is the line of its own history.
    one.show(["alpha", "beta"])
    return one, lines


def vouch_for(one, name, lines):
    witness = one.witnesses[name]
    return witness.vouch(witness.check(one.sealed(one.update_of(lines, 1), name)))


def show_a_fork(directory):
    """As `split_run`, and gamma has vouched for the other history."""
    one = Watched(directory)
    for client in one.clients.values():
        client.price = price_charges
    one.show()
    one.gather(1, ("alpha", "beta"))
    one.abort(1, ("alpha", "beta"))
    records = payloads(one.path(SERVER))
    records[-1]["dropouts"] = ["alpha"]
    lines = forge(records, one.keys[SERVER]).splitlines()
    one.show(["alpha", "beta"])
    note = vouch_for(one, "gamma", lines)
    one.close_files()
    return one, lines, note


def test_two_histories_shown_to_two_clients_are_found_in_their_folder(tmp_path):
    one, _, note = show_a_fork(tmp_path / "run")
    # The server keeps back what gamma answered.
    assert parse_note(note).require("gamma", one.keys["gamma"].verify_key)
    report = verify_run(one.directory, unfinished=True)
    (problem,) = report.problems
    assert problem.file == "ledger/gamma.jsonl"
    assert "the server signed another history of 4 lines to this client" in str(problem)


def test_two_histories_are_found_in_two_sites_ledgers_without_the_servers(
    tmp_path, capsys
):
    one, lines, _ = show_a_fork(tmp_path / "run")
    alpha, gamma = (tmp_path / f"{name}/ledger" for name in ("alpha", "gamma"))
    for place, name in ((alpha, "alpha"), (gamma, "gamma")):
        place.mkdir(parents=True)
        shutil.copyfile(one.path(name), place / f"{name}.jsonl")
    each = [str(alpha / "alpha.jsonl"), str(gamma / "gamma.jsonl")]
    verify = ["ledger", "verify", "--unfinished"]
    for path in each:
        assert main([*verify, path]) == 0
    capsys.readouterr()
    assert main([*verify, *each]) == 1
    shown = capsys.readouterr().out
    assert "the server signed two histories of 4 lines" in shown
    assert all(path in shown for path in each)
    # The same in two copies of the folder, each with a server's ledger of its own.
    other = tmp_path / "other"
    shutil.copytree(one.directory, other)
    (other / "ledger/server.jsonl").write_bytes(b"".join(x + b"\n" for x in lines))
    (other / "ledger/server.jsonl.head").unlink()
    capsys.readouterr()
    assert main([*verify, str(one.directory), str(other)]) == 1
    assert "signed two histories of 4 lines" in capsys.readouterr().out


@pytest.fixture(scope="module")
def staggered(tmp_path_factory):
    """Two histories whose checkpoints, of 4 and 7 lines and of 5, share no size.

    The server says to gamma that it was restarted, so that all its sizes are others.
    Each site has a folder, with the server's ledger as it was shown to that site.
    """
    place = tmp_path_factory.mktemp("staggered")
    one = Watched(place / "run")
    for client in one.clients.values():
        client.price = price_charges
    one.gather(1, ("alpha", "beta"))
    one.abort(1, ("alpha", "beta"))
    one.show(["alpha", "beta"])
    records = payloads(one.path(SERVER))
    first, *rest = records
    begun = {"last": "opened", "round": 0, "attempt": 0, "torn_bytes": 0}
    header = {name: first[name] for name in ("v", "party", "role", "run", "seq")}
    resumed = header | {"kind": "resumed", "prev": ""} | begun
    lines = forge([first, resumed, *rest], one.keys[SERVER]).splitlines()
    witness = one.witnesses["gamma"]
    witness.vouch(witness.check(one.sealed(one.update_of(lines), "gamma")))
    one.gather(2, ("alpha", "beta"))
    one.abort(2, ("alpha", "beta"))
    one.show(["alpha", "beta"])
    assert [len(lines), len(one.lines())] == [5, 7]
    one.close_files()
    other = place / "other"
    shutil.copytree(one.directory, other)
    (other / "ledger/server.jsonl").write_bytes(b"".join(x + b"\n" for x in lines))
    for path in (other / "ledger").glob("*.head"):
        path.unlink()
    return one.directory, other


def test_two_histories_whose_sizes_never_meet_are_found_with_a_servers_ledger(
    staggered, tmp_path, capsys
):
    ours, theirs = staggered
    verify = ["ledger", "verify", "--unfinished"]
    clients = []
    for folder, name in ((ours, "alpha"), (theirs, "gamma")):
        clients.append(tmp_path / name / f"ledger/{name}.jsonl")
        clients[-1].parent.mkdir(parents=True)
        shutil.copyfile(folder / f"ledger/{name}.jsonl", clients[-1])
    # No size that both vouched for: two clients alone can prove nothing.
    assert main([*verify, *map(str, clients)]) == 0
    # With what the server gave either of them they can.
    for folder in staggered:
        copied = tmp_path / folder.name / "ledger/server.jsonl"
        copied.parent.mkdir(parents=True)
        shutil.copyfile(folder / "ledger/server.jsonl", copied)
        capsys.readouterr()
        assert main([*verify, *map(str, [*clients, copied])]) == 1
        assert "signed two histories of" in capsys.readouterr().out
    both = [tmp_path / f"{folder.name}/ledger/server.jsonl" for folder in staggered]
    capsys.readouterr()
    assert main([*verify, *map(str, both)]) == 1
    # Once, where they part ways, and not at every size from there on.
    shown = capsys.readouterr().out
    assert shown.count("signed two histories of") == 1
    assert "server.jsonl:2 and" in shown


def test_ledgers_of_one_history_are_no_split(run):
    paths = [str(run / f"ledger/{name}.jsonl") for name in CLIENTS]
    roots = []
    for path in paths:
        ledger = verify_ledger(Path(path), key=None, price=price)
        roots += roots_of(path, ledger.runs)
    assert len(roots) == 15
    assert split_views(roots) == []
    # Another run's log, and another server's, may have any root.
    elsewhere = [
        replace(roots[0], head=replace(roots[0].head, root=bytes(32), origin="x")),
        replace(roots[0], head=replace(roots[0].head, root=bytes(32)), server=b"y"),
    ]
    assert split_views(roots + elsewhere) == []
    forked = replace(roots[0], head=replace(roots[0].head, root=bytes(32)))
    assert len(split_views([*roots, forked])) == 1


def test_a_client_that_refused_the_server_is_a_problem(tmp_path):
    one, lines = split_run(tmp_path / "run")
    with pytest.raises(EquivocationError):
        one.witnesses["beta"].check(one.sealed(one.update_of(lines, 1), "beta"))
    one.close_files()
    found = problems(one.directory, unfinished=True)
    # What beta refused is the proof, beside what alpha vouched for.
    runs = {
        name: verify_ledger(one.path(name), key=None, price=price, closed=False).runs
        for name in ("alpha", "beta")
    }
    roots = [root for name in runs for root in roots_of(name, runs[name])]
    assert len(split_views(roots)) == 1
    (problem,) = [each for each in found if "disputes the server's log" in each]
    assert "not of the 4 lines of the server's ledger" in problem


def test_a_dispute_of_what_the_servers_ledger_holds_is_shown_as_that(tmp_path):
    """A client can say what it likes; the server's signature does not make it so."""
    one = Watched(tmp_path / "run")
    one.show()
    kept = one.clients["beta"].ledger.history.checked[-1]
    signature = one.clients["beta"].ledger.entries[-1].record.signature
    one.clients["beta"].ledger.append(Disputed(*kept, signature))
    one.close_files()
    (problem,) = problems(one.directory, unfinished=True)
    assert problem.startswith("ledger/beta.jsonl:3: it disputes the server's log")
    assert "or the dispute is a false one" in problem


# Lost lines.


def test_a_clients_ledger_that_is_an_older_copy_is_found_by_its_cosignature(tmp_path):
    one = Watched(tmp_path / "run")
    one.show()
    one.round(1)
    saved = one.save("beta")
    one.show()
    one.close_files()
    saved()
    report = check(one.directory, unfinished=True)
    # The note and its copy, which is the last one.
    assert [p.file for p in report.problems] == [LAST, "ledger/log/5.note"]
    for problem in report.problems:
        assert problem.error is RollbackError
        assert "'beta' cosigned it, and the ledger of 'beta'" in problem.what


def test_a_servers_ledger_that_is_an_older_copy_is_found_by_the_clients(tmp_path):
    one = Watched(tmp_path / "run")
    one.show()
    saved = one.save(SERVER)
    one.round(1)
    one.show()
    one.close_files()
    saved()
    shutil.rmtree(one.directory / "ledger/log")
    (one.directory / LAST).unlink()
    found = problems(one.directory, unfinished=True)
    assert any("another history of 5 lines" in problem for problem in found)
    assert any("vouched for 5 lines" in problem for problem in found)


def test_what_a_process_left_that_died_is_no_problem_before_the_end(run, tmp_path):
    one = Watched(tmp_path / "unfinished")
    one.show()
    one.close_files()
    (one.directory / "ledger/log/5.note.tmp").write_bytes(b"half")
    assert check(one.directory, unfinished=True).ok
    (run / "ledger/log/5.note.tmp").write_bytes(b"half")
    assert "5.note.tmp" in "\n".join(problems(run))


# Lies in a client's own ledger.


def changed_checkpoint(**changes):
    def act(records):
        place = next(n for n, r in enumerate(records) if r["kind"] == "cosigned")
        records[place] |= changes

    return act


LIES = {
    "another root": changed_checkpoint(root="77" * 32),
    "another size": changed_checkpoint(size=2),
    "a size of zero": changed_checkpoint(size=0),
    "another signature": changed_checkpoint(signature="77" * 64),
    "its own signature": changed_checkpoint(
        signature=make_key("beta").sign_raw(b"").hex()
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_a_client_cannot_make_up_what_the_server_signed(run, name):
    path = run / "ledger/beta.jsonl"
    records = payloads(path)
    LIES[name](records)
    path.write_bytes(forge(records, make_key("beta")))
    (run / "ledger/beta.jsonl.head").unlink()
    assert any(p.startswith("ledger/beta.jsonl:") for p in problems(run))


def test_a_checkpoint_that_is_vouched_for_twice_is_found(run):
    path = run / "ledger/beta.jsonl"
    records = payloads(path)
    first = next(r for r in records if r["kind"] == "cosigned")
    records.insert(2, dict(first))
    records[-1]["records"] += 1
    path.write_bytes(forge(records, make_key("beta")))
    (run / "ledger/beta.jsonl.head").unlink()
    assert any("not longer than before" in problem for problem in problems(run))


def test_a_round_after_a_refusal_for_two_histories_is_found(run):
    path = run / "ledger/beta.jsonl"
    records = payloads(path)
    refusal = {
        key: records[1][key] for key in ("v", "seq", "prev", "party", "role", "run")
    } | {
        "kind": "refused",
        "round": 0,
        "attempt": 0,
        "reason": "equivocation",
        "offer_digest": None,
    }
    records.insert(2, refusal)
    records[-1]["records"] += 1
    path.write_bytes(forge(records, make_key("beta")))
    (run / "ledger/beta.jsonl.head").unlink()
    assert any("has refused" in problem for problem in problems(run))


def test_no_bytes_in_any_note_crash_the_verifier(run):
    for data in (b"\n\n", b"\xff", "\u2014".encode(), bytes(2**21), b"\n" * 99):
        for size in (5, 13):
            rewrite_note(run, size, data)
        assert problems(run)
    note_path(run, 5).unlink()
    note_path(run, 5).mkdir()
    assert problems(run)


def test_a_log_folder_that_is_a_file_is_a_problem(run):
    shutil.rmtree(run / "ledger/log")
    (run / "ledger/log").write_bytes(b"")
    assert any("ledger/log" in problem for problem in problems(run))
