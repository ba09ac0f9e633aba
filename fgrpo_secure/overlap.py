"""Whether two data sets of one store hold the same units.

A budget goes by the name of its data set. Under another name, or at a renamed client,
the same units would be spent a second time. So a store remembers, for each data set
that a run was opened with, which units it had: not their ids but keyed digests, of
which nobody can tell a unit without the key that lies in the store.

What it cannot see: units that changed their ids, and a data set in another store.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterable
from pathlib import Path

from fgrpo_secure.errors import StateError
from fgrpo_secure.folders import RunFolder
from fgrpo_secure.secrets import private_directory, store_key, write_atomically
from privacy.crypto import Label, hmac_sha256
from privacy.ledger import HANDLE_BYTES

SUFFIX = ".units"

# No client has a name that begins so.
_KEY = ".units.key"

# No two of 2**32 units have the same digest, but with a probability below 2**-64.
_DIGEST_BYTES = 16


def claim_units(folder: RunFolder, name: str, units: Iterable[str], run: bytes) -> None:
    """Note which units a client's data set has, unless another one had them before.

    Units may come and go under one name: all that it ever had stay noted. Data sets
    that were both opened first by this run may share units, since its plan names their
    clients side by side: a unit at several clients has the sum of their epsilons.

    Args:
        folder: whose store is looked at; nothing is done where no other run sees it.
        name: the client.
        units: the ids of its data set.
        run: handle of the run that is about to be opened.

    Raises:
        StateError: another data set of the store has had a unit that is new here. The
            text says which data set, and neither the unit nor how many.
    """
    if not folder.is_shared:
        return
    path = folder.store / _KEY
    key = store_key(path)
    own = {_digest(key, unit) for unit in units}
    with path.open("rb") as lock:
        # Of two runs that begin at once, the later one has to see the earlier's units.
        fcntl.flock(lock, fcntl.LOCK_EX)
        _claim(folder, name, own, run)


def _claim(folder: RunFolder, name: str, own: set[bytes], run: bytes) -> None:
    path = folder.own_ledger(name).with_suffix(SUFFIX)
    first, known = _read(path)
    fresh = own - known
    for other in sorted(folder.store.glob(f"*/{path.parent.name}/*{SUFFIX}")):
        opened_by, theirs = _read(other)
        if other == path or opened_by == run or fresh.isdisjoint(theirs):
            continue
        client, data_set = other.parent.parent.name, other.stem
        raise StateError(
            f"Client {name}: units of this data set are in data set {data_set} of "
            f"client {client}, which has a budget of its own in the same store.",
            f'Go on with that budget by data_set = "{data_set}" in the [[client]] '
            f"table of {client}, or take out the rows that both have.",
        )
    private_directory(path.parent)
    whole = b"".join([first or run, *sorted(known | own)])
    write_atomically(path, whole, private=True)


def _digest(key: bytes, unit: str) -> bytes:
    return hmac_sha256(key, Label.DATA_SET_UNIT, unit.encode())[:_DIGEST_BYTES]


def _read(path: Path) -> tuple[bytes, frozenset[bytes]]:
    """The run that a data set was first opened by, and the digests of its units."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return b"", frozenset()
    if len(data) < HANDLE_BYTES or (len(data) - HANDLE_BYTES) % _DIGEST_BYTES:
        raise StateError(
            f"{path} is damaged, so that nobody can tell which units were spent.",
            "Restore it from a backup, together with the ledger beside it.",
        )
    places = range(HANDLE_BYTES, len(data), _DIGEST_BYTES)
    digests = frozenset(data[place : place + _DIGEST_BYTES] for place in places)
    return data[:HANDLE_BYTES], digests
