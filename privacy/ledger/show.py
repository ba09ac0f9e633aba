"""A ledger in words, one line a record, for people."""

from __future__ import annotations

from pathlib import Path

from privacy.ledger.chain import Entry, read_chain
from privacy.ledger.codes import Claim
from privacy.ledger.fields import decimal_text
from privacy.ledger.history import claimed_epsilon
from privacy.ledger.records import (
    Aborted,
    ClientClosed,
    ClientOpened,
    Commit,
    Cosigned,
    Declined,
    Disputed,
    Intent,
    Joined,
    Lifetime,
    Moved,
    Outcome,
    Published,
    Record,
    Refused,
    Resumed,
    Roster,
    RoundOpened,
    ServerClosed,
    ServerOpened,
    Shown,
    Spend,
    Survivors,
)
from privacy.ledger.verify import read_file

_SHORT = 12


def show(path: Path) -> list[str]:
    """Describe every record of a ledger.

    A line that is damaged is named as such; that the rest is shown does not mean that
    it verifies.

    Raises:
        LedgerError: the file cannot be read.
    """
    chain = read_chain(read_file(path, path.name), path.name, None)
    described = {entry.line: _describe(entry) for entry in chain.entries}
    lines = list(described.items())
    lines += [(problem.line, f"! {problem.what}") for problem in chain.problems]
    ordered = sorted(lines, key=lambda pair: pair[0])
    if chain.entries and chain.key is not None:
        first = chain.entries[0].header
        title = f"{first.party} ({first.role.value}), key {chain.key.fingerprint}"
        return [title, *(f"{number:5d}  {text}" for number, text in ordered)]
    return [f"{number:5d}  {text}" for number, text in ordered]


def _describe(entry: Entry) -> str:
    record = entry.record
    text = _of_client(record) or _of_a_round(record)
    text = text or _of_server(record) or _of_either(record)
    number = getattr(record, "round", 0)
    place = f" {number}.{getattr(record, 'attempt', 0)}" if number else ""
    return f"{_short(entry.head)}  {record.kind}{place}: {text.removeprefix(', ')}"


def _of_client(record: Record) -> str:
    match record:
        case ClientOpened():
            return (
                f"run {record.run.hex()}, plan {_short(record.plan_digest)},"
                f" cap epsilon {decimal_text(record.cap_epsilon)}"
                f" at delta {decimal_text(record.cap_delta)},"
                f" filter at order {record.cap_order}"
            )
        case Intent():
            return _spent(record.spend) + _of_all_runs(record.spend, record.lifetime)
        case ClientClosed():
            return (
                f"{record.published} published, {record.aborted} aborted,"
                f" {record.missed} missed; {_spent(record.spend)}"
                f"{_of_all_runs(record.spend, record.lifetime)}"
            )
    return ""


def _of_a_round(record: Record) -> str:
    """A client's part of one, but for what it cost."""
    match record:
        case Shown():
            return (
                f"roster {_short(record.roster_hash)},"
                f" sharers {_short(record.sharers_hash)}"
            )
        case Commit():
            return (
                f"{record.length} words of {record.modulus_bits} bits,"
                f" commitment {_short(record.commitment)}"
            )
        case Outcome():
            why = f" ({record.reason.value})" if record.reason else ""
            return record.status.value + why + _listed("survivors", record.survivors)
    return ""


def _of_server(record: Record) -> str:
    match record:
        case ServerOpened():
            return f"run {record.run.hex()}, plan {_short(record.plan_digest)}"
        case Roster(members=names) | Survivors(survivors=names):
            return " ".join(names) or "nobody"
        case Published() | Moved():
            by = ", by other cohorts"
            if isinstance(record, Published):
                by = _listed("survivors", record.survivors)
            return f"adapter {_short(record.adapter_after)}{by}"
        case Aborted():
            return record.reason.value + _listed("dropouts", record.dropouts)
        case ServerClosed():
            return f"{record.published} published, {record.aborted} aborted"
    return ""


def _of_either(record: Record) -> str:
    match record:
        case Joined() | RoundOpened():
            return (
                f"offer {_short(record.offer_digest)},"
                f" adapter {_short(record.adapter_digest)}"
            )
        case Refused():
            return record.reason.value
        case Declined():
            return (
                f"{record.reason.value}: run {record.run.hex()},"
                f" plan {_short(record.plan_digest)}"
            )
        case Cosigned() | Disputed():
            return (
                f"{record.size} lines of the server's log, root {_short(record.root)}"
            )
        case Resumed():
            cut = f", {record.torn_bytes} bytes of a torn line cut"
            return f"after {record.last!r}{cut if record.torn_bytes else ''}"
    return ""


def _spent(spend: Spend) -> str:
    return (
        f"charge {spend.charges}: epsilon {decimal_text(spend.epsilon_pld)} (PLD),"
        f" {decimal_text(spend.epsilon_rdp)} (RDP) at delta {decimal_text(spend.delta)}"
    )


def _of_all_runs(spend: Spend, lifetime: Lifetime) -> str:
    """The ledger's whole spend, where it is not that of this one run."""
    same = (spend.charges, spend.delta) == (lifetime.charges, lifetime.delta)
    if same and lifetime.claimed is Claim.PLD:
        return ""
    by = "by PLD" if lifetime.claimed is Claim.PLD else "as the filter counts"
    return (
        f"; of all runs: charge {lifetime.charges}, epsilon"
        f" {decimal_text(claimed_epsilon(lifetime))} {by}"
        f" at delta {decimal_text(lifetime.delta)}"
    )


def _listed(what: str, names: tuple[str, ...]) -> str:
    return f", {what} {' '.join(names)}" if names else ""


def _short(digest: bytes) -> str:
    return digest.hex()[:_SHORT]
