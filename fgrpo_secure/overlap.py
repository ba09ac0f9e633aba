"""Whether two data sets of one store hold the same units.

A budget goes by the name of its data set. Under another name, or at a renamed client,
the same units would be spent a second time. So a store remembers, for each data set
that a run was opened with, which units it had: not their ids but keyed digests, of
which nobody can tell a unit without the key that lies in the store.

What it cannot see: units that changed their ids, the same rows as units of another
kind, and a data set in another store.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterable, Iterator
from pathlib import Path

from fgrpo_secure.errors import StateError
from fgrpo_secure.folders import RunFolder
from fgrpo_secure.secrets import private_directory, store_key, write_atomically
from privacy.crypto import Label, hmac_sha256
from privacy.ledger import HANDLE_BYTES, Declined
from privacy.ledger.chain import read_chain

SUFFIX = ".units"

# No client has a name that begins so.
_KEY = ".units.key"

# No two of 2**32 units have the same digest, but with a probability below 2**-64.
_DIGEST_BYTES = 16
# A file that was cut short does not pass for a smaller one.
_COUNT_BYTES = 8
_HEADER_BYTES = HANDLE_BYTES + _COUNT_BYTES


def claim_units(
    folder: RunFolder,
    name: str,
    units: Iterable[str],
    run: bytes,
    agreed: Iterable[str] = (),
) -> None:
    """Note which units a client's data set has, unless another one had them before.

    Units may come and go under one name: all that it ever had stay noted. Data sets
    that were both opened first by this run may share units, since its plan names their
    clients side by side: a unit at several clients has the sum of their epsilons.

    Args:
        folder: whose store is looked at; nothing is done where no other run sees it.
        name: the client.
        units: the ids of its data set.
        run: handle of the run that is about to be opened.
        agreed: data sets as "CLIENT/DATA_SET" of which it is known that units are in
            both, or that ids of different people are alike.

    Raises:
        StateError: another data set of the store has had a unit that is new here. The
            text says which data set, and neither the unit nor how many.
    """
    if not folder.is_shared:
        return
    path = folder.store / _KEY
    if not path.exists() and next(_all_units(folder, name), None) is not None:
        raise StateError(
            f"{path} is gone, so that nobody can tell which units were spent.",
            "Restore it from a backup; a copy of a store has to hold hidden files too.",
        )
    for ledger in folder.store.glob(f"*/{folder.own_ledger(name).parent.name}/*.jsonl"):
        if not ledger.with_suffix(SUFFIX).exists() and _had_a_run(ledger):
            raise StateError(
                f"{ledger.with_suffix(SUFFIX)} is gone, so that nobody can tell which "
                "units were spent.",
                "Restore it from a backup, together with the ledger beside it.",
            )
    key = store_key(path)
    own = {_digest(key, unit) for unit in units}
    with path.open("rb") as lock:
        # Of two runs that begin at once, the later one has to see the earlier's units.
        fcntl.flock(lock, fcntl.LOCK_EX)
        _claim(folder, name, own, run, frozenset(agreed))


def had_units(folder: RunFolder, name: str) -> bool:
    """Whether a run was ever about to be opened on a client's data set."""
    return folder.own_ledger(name).with_suffix(SUFFIX).exists()


def _had_a_run(ledger: Path) -> bool:
    """Whether a ledger says more than which plans its client declined."""
    data = ledger.read_bytes()
    chain = read_chain(data, ledger.name, None)
    declined = all(isinstance(entry.record, Declined) for entry in chain.entries)
    return bool(data) and not (declined and not chain.problems)


def _claim(
    folder: RunFolder, name: str, own: set[bytes], run: bytes, agreed: frozenset[str]
) -> None:
    path = folder.own_ledger(name).with_suffix(SUFFIX)
    first, known = _read(path)
    fresh = own - known
    for other in sorted(_all_units(folder, name)):
        opened_by, theirs = _read(other)
        if other == path or opened_by == run or fresh.isdisjoint(theirs):
            continue
        client, data_set = other.parent.parent.name, other.stem
        if f"{client}/{data_set}" in agreed:
            continue
        raise StateError(
            f"Client {name}: units of this data set are in data set {data_set} of "
            f"client {client}, which has a budget of its own in the same store.",
            f'Go on with that budget by data_set = "{data_set}" in the [[client]] '
            f"table of {client}, or take out the rows that both have. Where these are "
            "ids of other people, or their owner agrees that what both spend adds up, "
            f'write shares_units_with = ["{client}/{data_set}"].',
        )
    private_directory(path.parent)
    every = sorted(known | own)
    count = len(every).to_bytes(_COUNT_BYTES, "big")
    whole = b"".join([first or run, count, *every])
    write_atomically(path, whole, private=True)


def _all_units(folder: RunFolder, name: str) -> Iterator[Path]:
    """What is noted of every data set in the store."""
    place = folder.own_ledger(name).parent.name
    return folder.store.glob(f"*/{place}/*{SUFFIX}")


def _digest(key: bytes, unit: str) -> bytes:
    return hmac_sha256(key, Label.DATA_SET_UNIT, unit.encode())[:_DIGEST_BYTES]


def _read(path: Path) -> tuple[bytes, frozenset[bytes]]:
    """The run that a data set was first opened by, and the digests of its units."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return b"", frozenset()
    count = int.from_bytes(data[HANDLE_BYTES:_HEADER_BYTES], "big")
    if len(data) != _HEADER_BYTES + count * _DIGEST_BYTES:
        raise StateError(
            f"{path} is damaged, so that nobody can tell which units were spent.",
            "Restore it from a backup, together with the ledger beside it.",
        )
    places = range(_HEADER_BYTES, len(data), _DIGEST_BYTES)
    digests = frozenset(data[place : place + _DIGEST_BYTES] for place in places)
    return data[:HANDLE_BYTES], digests
