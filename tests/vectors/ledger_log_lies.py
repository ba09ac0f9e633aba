"""Lies about the server's log: what it signed, who vouched for it, and what is kept."""

from __future__ import annotations

from privacy.crypto import SigningKey
from privacy.ledger import Reason
from privacy.ledger.checkpoint import (
    Checkpoint,
    Note,
    NoteSignature,
    log_origin,
    parse_note,
    sign_checkpoint,
)
from privacy.plan import SERVER
from tests.privacy.ledger.synthetic import RUN, make_key
from tests.vectors.ledger_lies import OTHER, STRANGER, damage, lie
from tests.vectors.ledger_runs import EARLIER
from tests.vectors.ledger_story import CHECKPOINT, Files, Record, Shown, Story

ORIGIN = log_origin(RUN)
# Sizes of the log in the run `cosigned`, as it was shown.
OPENED, ROUND, CLOSED = 1, 5, 6


def name_of(size: int) -> str:
    """Where a note lies."""
    return f"ledger/log/{size}.note"


def with_note(files: Files, size: int, data: bytes) -> Files:
    """Another note, also where it is the last."""
    files = files | {name_of(size): data}
    return files | ({CHECKPOINT: data} if size == CLOSED else {})


def signed_as(note: Note, name: str, key: SigningKey) -> Note:
    """The note with one more signature."""
    more = sign_checkpoint(note.checkpoint, name, key)
    return Note(note.checkpoint, (*note.signatures, more))


def refusal(story: Story, party: str = "alpha") -> Record:
    """A client's refusal of a server that signed two histories."""
    header = {n: story.records[party][0][n] for n in ("v", "party", "role", "run")}
    return header | {
        "kind": "refused",
        "round": 0,
        "attempt": 0,
        "reason": Reason.EQUIVOCATION.value,
        "offer_digest": None,
    }


# --- Rule 8: what a client writes of the log ------------------------------------------


@lie("cosigned", 8)
def cosigned_what_nobody_signed(story: Story) -> None:
    """A client vouches for a checkpoint with a signature that is not the server's."""
    story.of("alpha", "cosigned", 2)["signature"] = "ab" * 64


@lie("cosigned", 8)
def cosigned_backwards(story: Story) -> None:
    """A client vouches for a log that is shorter than the one before."""
    story.of("alpha", "cosigned", 2)["size"] = 3
    for size in (ROUND, CLOSED):
        story.notes[size] = [name for name in story.notes[size] if name != "alpha"]


@lie("cosigned", 8)
def joined_after_it_refused_the_server(story: Story) -> None:
    """A client refuses the server for two histories, and joins its next round."""
    records = story.records["alpha"]
    records.insert(2, refusal(story))
    records[-1]["records"] += 1
    story.leave_out("alpha", "cosigned")
    for signers in story.notes.values():
        signers.remove("alpha")


@lie("cosigned", 8)
def cosigned_after_it_refused_the_server(story: Story) -> None:
    """A client refuses the server for two histories, and vouches for a third."""
    records = story.records["alpha"]
    records.insert(-2, refusal(story))
    records[-1]["records"] += 1


@lie("second_run", 8)
def trusted_again_in_the_next_run(story: Story) -> None:
    """A client refused this server in one run, and joins its rounds in the next."""
    records = story.records["alpha"]
    records.insert(4, refusal(story))
    for closed in (records[5], records[-1]):
        closed["records"] += 1


@lie("cosigned", 2)
def cosigned_within_a_round(story: Story) -> None:
    """A client vouches for the log between its charge and its vector."""
    records = story.records["alpha"]
    place = records.index(story.of("alpha", "commit"))
    records.insert(place, story.of("alpha", "cosigned") | {"size": 3})


# --- Rule 14: notes, and what was vouched for -----------------------------------------


@damage("cosigned", 14)
def last_note_removed(files: Files) -> Files:
    """The note of the whole log is gone, and the one before stands for the last."""
    kept = {name: data for name, data in files.items() if name != name_of(CLOSED)}
    return kept | {CHECKPOINT: files[name_of(ROUND)]}


@damage("cosigned", 14)
def all_notes_removed(files: Files) -> Files:
    """There are no notes, though the clients vouched for some."""
    log = ("ledger/log/", CHECKPOINT)
    return {name: data for name, data in files.items() if not name.startswith(log)}


@damage("cosigned", 14)
def checkpoint_removed(files: Files) -> Files:
    """The last note does not stand beside the ledgers."""
    return {name: data for name, data in files.items() if name != CHECKPOINT}


@damage("cosigned", 14)
def checkpoint_of_an_older_size(files: Files) -> Files:
    """The note that stands for the last is an older one."""
    return files | {CHECKPOINT: files[name_of(ROUND)]}


@damage("cosigned", 14)
def checkpoint_with_fewer_cosignatures(files: Files) -> Files:
    """The note that stands for the last lacks a client."""
    note = parse_note(files[CHECKPOINT])
    fewer = Note(note.checkpoint, note.signatures[:-1])
    return files | {CHECKPOINT: fewer.to_bytes()}


@lie("no_round", 14)
def checkpoint_alone(story: Story) -> None:
    """A last note stands beside the ledgers, and no other is kept."""
    story.notes[1] = [SERVER]
    story.files[CHECKPOINT] = story.written()[CHECKPOINT]
    story.notes.clear()


@damage("cosigned", 14)
def note_under_another_size(files: Files) -> Files:
    """A note has the name of another size."""
    kept = {name: data for name, data in files.items() if name != name_of(ROUND)}
    return kept | {name_of(4): files[name_of(ROUND)]}


@damage("cosigned", 14)
def note_under_another_name(files: Files) -> Files:
    """A file among the notes is named like none."""
    return files | {"ledger/log/06.note": files[name_of(CLOSED)]}


@damage("cosigned", 14)
def half_a_note(files: Files) -> Files:
    """A process left half of a note, in a run that is finished."""
    return files | {"ledger/log/7.note.tmp": files[CHECKPOINT][:50]}


@damage("cosigned", 14)
def note_without_the_server(files: Files) -> Files:
    """A note has the clients' signatures and not the server's."""
    note = parse_note(files[name_of(ROUND)])
    return with_note(
        files, ROUND, Note(note.checkpoint, note.signatures[1:]).to_bytes()
    )


@damage("cosigned", 14)
def note_of_a_stranger(files: Files) -> Files:
    """A stranger signs a note under the server's name."""
    head = parse_note(files[name_of(ROUND)]).checkpoint
    forged = Note(head, (sign_checkpoint(head, ORIGIN, STRANGER),))
    return with_note(files, ROUND, forged.to_bytes())


@damage("cosigned", 14)
def note_with_a_flipped_signature(files: Files) -> Files:
    """One bit of a cosignature is another."""
    note = parse_note(files[name_of(ROUND)])
    first, second, *rest = note.signatures
    other = bytes([second.signature[0] ^ 1]) + second.signature[1:]
    flipped = NoteSignature(second.name, second.key_id, other)
    forged = Note(note.checkpoint, (first, flipped, *rest))
    return with_note(files, ROUND, forged.to_bytes())


@damage("cosigned", 14)
def cosignature_of_a_stranger(files: Files) -> Files:
    """A stranger cosigns in beta's name."""
    note = parse_note(files[name_of(ROUND)])
    forged = signed_as(note, "beta", STRANGER)
    return with_note(files, ROUND, forged.to_bytes())


@damage("cosigned", 14)
def cosignature_of_two_keys(files: Files) -> Files:
    """Alpha cosigned, and a stranger in alpha's name as well."""
    note = parse_note(files[name_of(ROUND)])
    forged = signed_as(note, "alpha", STRANGER)
    return with_note(files, ROUND, forged.to_bytes())


@damage("cosigned", 14)
def note_with_a_signature_twice(files: Files) -> Files:
    """A note has a signature line twice."""
    last = files[name_of(ROUND)].splitlines(keepends=True)[-1]
    return with_note(files, ROUND, files[name_of(ROUND)] + last)


@damage("cosigned", 14)
def note_with_an_extension(files: Files) -> Files:
    """The server signs a checkpoint with a line more than it has."""
    note = parse_note(files[name_of(ROUND)])
    text = note.checkpoint.text() + b"more\n"
    signature = make_key(SERVER).sign_raw(text)
    line = NoteSignature(ORIGIN, note.signatures[0].key_id, signature).line()
    return with_note(files, ROUND, text + f"\n{line}\n".encode())


@damage("cosigned", 14)
def note_with_a_hyphen(files: Files) -> Files:
    """The signature lines begin with a hyphen and not with a dash."""
    data = files[name_of(ROUND)].decode().replace("\u2014", "-")
    return with_note(files, ROUND, data.encode())


@damage("cosigned", 14)
def note_with_a_signature_of_no_length(files: Files) -> Files:
    """Somebody whom nobody knows signed a note with nothing."""
    line = "\u2014 witness.example/1 AAAAAA==\n"
    return with_note(files, ROUND, files[name_of(ROUND)] + line.encode())


@damage("no_round", 14)
def log_that_is_a_file(files: Files) -> Files:
    """Where the notes are kept is a file."""
    return files | {"ledger/log": b"nothing"}


@damage("cosigned", 14)
def note_without_its_last_newline(files: Files) -> Files:
    """A note does not end with a newline."""
    return with_note(files, ROUND, files[name_of(ROUND)][:-1])


@damage("cosigned", 14)
def note_of_another_run(files: Files) -> Files:
    """The server signed the note, for the log of another run."""
    head = parse_note(files[name_of(ROUND)]).checkpoint
    origin = log_origin(EARLIER)
    other = Checkpoint(origin, head.size, head.root)
    forged = Note(other, (sign_checkpoint(other, origin, make_key(SERVER)),))
    return with_note(files, ROUND, forged.to_bytes())


@damage("cosigned", 14)
def note_of_more_lines_than_there_are(files: Files) -> Files:
    """The server signed a log that is longer than its ledger."""
    head = Checkpoint(ORIGIN, CLOSED + 1, bytes.fromhex(OTHER))
    note = Note(head, (sign_checkpoint(head, ORIGIN, make_key(SERVER)),)).to_bytes()
    return files | {name_of(head.size): note, CHECKPOINT: note}


@damage("cosigned", 14)
def note_of_another_history(files: Files) -> Files:
    """The server signed another log of as many lines, and nobody vouched for it."""
    head = Checkpoint(ORIGIN, 3, bytes.fromhex(OTHER))
    note = Note(head, (sign_checkpoint(head, ORIGIN, make_key(SERVER)),))
    return files | {name_of(3): note.to_bytes()}


@damage("cosigned", 14)
def cosigned_log_written_anew(files: Files) -> Files:
    """The server changed its ledger after the clients had vouched for it."""
    story = Story(files)
    story.of(SERVER, "roster")["roster_hash"] = OTHER
    written = story.written()
    server = {name: written[name] for name in written if "/server" in name}
    return files | server


@damage("cosigned", 14)
def client_ledger_older_than_its_cosignature(files: Files) -> Files:
    """A client cosigned, and its ledger no longer has it."""
    story = Story(files)
    del story.records["gamma"][-2]
    story.records["gamma"][-1]["records"] -= 1
    written = story.written()
    client = {name: written[name] for name in written if "/gamma" in name}
    return files | client


@lie("cosigned", 14)
def disputed_by_a_client(story: Story) -> None:
    """A client disputes what it was shown of the log, and refuses the server."""
    records = story.records["alpha"]
    disputed = story.of("alpha", "cosigned") | {"kind": "disputed", "size": 3}
    records[-1:-1] = [disputed, refusal(story)]
    records[-1]["records"] += 2


@lie("cosigned", 14)
def history_shown_to_one_client_alone(story: Story) -> None:
    """A client vouched for another history, which no note is of."""
    story.of("alpha", "cosigned", 1).update(root=OTHER, size=3)
    story.notes[ROUND].remove("alpha")


# --- Rule 15: two histories -----------------------------------------------------------


@lie("cosigned", 15)
def two_histories_of_one_size(story: Story) -> None:
    """The server signed another history of five lines for beta."""
    story.of("beta", "cosigned", 1)["root"] = OTHER


@lie("second_run", 15)
def two_histories_of_an_earlier_run(story: Story) -> None:
    """The ledgers of two clients have two histories of a run that is long over."""
    for name, root in (("alpha", OTHER), ("beta", "11" * 32)):
        records = story.records[name]
        header = {n: records[0][n] for n in ("v", "party", "role", "run")}
        cosigned = {"kind": "cosigned", "size": 4, "root": root, "signature": Shown()}
        records.insert(4, header | cosigned)
        for closed in (records[5], records[-1]):
            closed["records"] += 1
