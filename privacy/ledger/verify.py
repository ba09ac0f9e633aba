"""Checking one ledger: intact, in order, true to its plan, and priced right.

1. Every line is canonical and signed by the one key; numbers and links are whole.
2. The records follow each other as `history` allows, within the plan and the cap.
3. Every cumulative epsilon is computed again and must be equal to the digit.
4. No run is open at the end, so that nothing was cut off the end of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from privacy.crypto import VerifyKey
from privacy.errors import (
    BrokenChainError,
    DisagreementError,
    LedgerError,
    PrivacyError,
)
from privacy.ledger.chain import Entry, Problem, read_chain, split_lines
from privacy.ledger.codes import Role
from privacy.ledger.envelope import GENESIS
from privacy.ledger.history import History
from privacy.ledger.pricing import Price, Pricing, price_charges
from privacy.ledger.records import ClientOpened, Declined, Intent, ServerOpened
from privacy.ledger.remembered import EMPTY, HEAD_SUFFIX, load_head
from privacy.ledger.steps import Phase

MOST_LEDGER_BYTES = 2**30
UNREADABLE = "missing, too large, or not a file that can be read"


@dataclass(frozen=True, slots=True)
class Run:
    """The records of one run within a ledger.

    Attributes:
        opened: the record that opened it.
        entries: its records, `opened` first.
        history: the ledger's state after the last of them.
    """

    opened: ClientOpened | ServerOpened
    entries: tuple[Entry, ...]
    history: History


@dataclass(frozen=True, slots=True)
class VerifiedLedger:
    """A ledger in which nothing is wrong.

    Attributes:
        party: whose it is.
        role: client or server.
        key: who signed it. Whether that is the party is for the caller to know.
        runs: in order; a server has one.
        history: its state at the end.
        head: hash of its last line, 32 bytes.
        head_before: of the line before, 32 zero bytes if there is none.
        declined: the records of runs that were not opened, in order; part of no run.
    """

    party: str
    role: Role
    key: VerifyKey
    runs: tuple[Run, ...]
    history: History
    head: bytes
    head_before: bytes
    declined: tuple[Declined, ...]

    def runs_until(self, last: Run) -> tuple[Run, ...]:
        """The runs up to this one, which is among them."""
        return self.runs[: self.runs.index(last) + 1]


def verify_ledger(
    source: Path | bytes,
    *,
    key: VerifyKey | None,
    price: Price = price_charges,
    closed: bool = True,
) -> VerifiedLedger:
    """Check one ledger by itself.

    Args:
        source: the file, or its bytes.
        key: whose signature is asked for. None takes the key that the first record
            names, which cannot tell a ledger from one that was forged as a whole.
        price: the accountant.
        closed: whether the last run must have ended.

    Raises:
        LedgerError: the first thing that is wrong, as `file:line: what`.

    Guarantee:
        Any byte changed, any line dropped, swapped, repeated or cut off, a signature
        of another key, an epsilon that is not the charges' price, and a spend above
        the plan's target or the cap raise.
    """
    if isinstance(source, bytes):
        data, file = source, "ledger"
    else:
        file = source.name
        data = read_file(source, file)
    ledger, problems = examine(data, file, key, Pricing(price), closed=closed)
    if ledger is None or problems:
        raise problems[0].as_error()
    return ledger


def read_history(path: Path, key: VerifyKey | None, party: str) -> History:
    """What a ledger says, without a lock, a price computed again or a byte written.

    Args:
        path: the file; beside it lies its remembered head.
        key: whose signature is asked for, as for `verify_ledger`.
        party: whose ledger it has to be.

    Raises:
        LedgerError: the chain or a record is wrong, or lines that were acknowledged
            are gone.
    """
    # The head is read first: whoever writes meanwhile makes the file longer only.
    head = load_head(path.with_name(path.name + HEAD_SUFFIX))
    data = read_file(path, path.name)
    lines, torn = split_lines(data)
    if not lines and (head is None or head == EMPTY):
        # A first run was refused, or died, before its first line was whole.
        return History(party, Role.CLIENT)
    whole = data[: len(data) - len(torn)]
    ledger, problems = examine(whole, path.name, key, None, closed=False, party=party)
    if ledger is None:
        raise problems[0].as_error()
    known = EMPTY.records if head is None else head.records
    if known > len(lines) or (head is None and len(lines) > 1):
        msg = f"{path.name} is not as long as its remembered head says; restore both"
        raise BrokenChainError(msg)
    return ledger.history


def read_file(path: Path, file: str) -> bytes:
    """The bytes of a regular file.

    Raises:
        LedgerError: it cannot be read.
    """
    data = read_regular(path, MOST_LEDGER_BYTES)
    if data is None:
        msg = f"{file}: {UNREADABLE}"
        raise LedgerError(msg)
    return data


def read_regular(path: Path, most: int) -> bytes | None:
    """The bytes of a regular file that has at most so many; None of anything else.

    Whoever may put a file into a folder could else take all memory of its reader.
    """
    try:
        if path.is_file() and path.stat().st_size <= most:
            return path.read_bytes()
    except (OSError, ValueError):
        pass
    return None


def examine(
    data: bytes,
    file: str,
    key: VerifyKey | None,
    pricing: Pricing | None,
    *,
    closed: bool,
    party: str | None = None,
) -> tuple[VerifiedLedger | None, tuple[Problem, ...]]:
    """Check one ledger and collect all that is wrong; without prices where None.

    Returns:
        The ledger if nothing is wrong, else None, and the problems in order.
    """
    chain = read_chain(data, file, key)
    problems = list(chain.problems)
    # What follows a damaged line has lost its context; its form was checked above.
    end = problems[0].line if problems else len(chain.entries) + 1
    entries = [entry for entry in chain.entries if entry.line < end]
    if not entries or chain.key is None:
        return None, tuple(problems)
    first = entries[0].header
    history = History(party or first.party, first.role)
    parts: list[tuple[ClientOpened | ServerOpened, list[Entry], History]] = []
    for entry in entries:
        try:
            following = history.after(entry.header, entry.record)
            if pricing is not None:
                _check_prices(following, entry, pricing)
            _check_signer(entry, following, chain.key)
        except PrivacyError as error:
            kind = type(error) if isinstance(error, LedgerError) else DisagreementError
            problems.append(Problem(file, entry.line, str(error), kind))
            return None, tuple(sorted(problems, key=lambda problem: problem.line))
        history = following
        if isinstance(entry.record, ClientOpened | ServerOpened):
            parts.append((entry.record, [], history))
        # What was declined is no part of the run that it stands in or after.
        if not isinstance(entry.record, Declined):
            opened, members, _ = parts[-1]
            parts[-1] = (opened, [*members, entry], history)
    if not problems and closed and history.phase is not Phase.CLOSED:
        what = "the last record is not 'closed': unfinished, or lines were cut off"
        problems.append(Problem(file, len(entries), what, BrokenChainError))
    if problems:
        return None, tuple(problems)
    runs = tuple(Run(opened, tuple(members), end) for opened, members, end in parts)
    heads = [GENESIS, *(entry.head for entry in entries)]
    ledger = VerifiedLedger(
        party=history.party,
        role=history.role,
        key=chain.key,
        runs=runs,
        history=history,
        head=heads[-1],
        head_before=heads[-2],
        declined=tuple(e.record for e in entries if isinstance(e.record, Declined)),
    )
    return ledger, ()


def _check_prices(history: History, entry: Entry, pricing: Pricing) -> None:
    record = entry.record
    if isinstance(record, Intent) and history.terms is not None:
        registered = history.terms.registered_charges
        pricing.check(record.spend, history.charges, registered)
        # Over several runs the filter's figure counts, which `History` has checked.
        if len(history.runs) == 1:
            pricing.check(record.lifetime, history.lifetime, registered)


def _check_signer(entry: Entry, history: History, key: VerifyKey) -> None:
    declined = entry.record if isinstance(entry.record, Declined) else None
    opened = declined or history.opened
    if opened is None or opened.roster[entry.header.party] != key.raw:
        msg = "the roster pins another key for this party than the one that signed"
        raise DisagreementError(msg)
