"""Checking a run's folder: every ledger, and whether they tell the same story.

1. `plan.json` is a plan; its clients and the server are the parties.
2. `keys/` and `ledger/` hold one file for each party and nothing else.
3. Every ledger passes `verify`, under the key that the folder pins for its party.
4. All opened the same run, with the same plan and the same keys, and closed it.
5. Every round stands alike in the server's ledger and in the clients'.
6. The log's checkpoints, and what the clients vouched for, are of the server's ledger.
7. `summary.json` says what the ledgers add up to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

from privacy.crypto import VerifyKey
from privacy.errors import LedgerError, MalformedMessageError
from privacy.ledger.budget import Budget
from privacy.ledger.chain import Problem, split_lines
from privacy.ledger.checkpoint import Checkpoint
from privacy.ledger.durable import UNFINISHED_SUFFIX
from privacy.ledger.keyfiles import KEY_SUFFIX, parse_key_file
from privacy.ledger.payload import plan_digest
from privacy.ledger.pricing import Price, Pricing, price_charges
from privacy.ledger.reconcile import RunFile, reconcile
from privacy.ledger.records import Moved, Spend
from privacy.ledger.remembered import HEAD_SUFFIX, Head, parse_head
from privacy.ledger.shared_log import CHECKPOINT, LOG_FOLDER, is_note_name
from privacy.ledger.steps import Phase
from privacy.ledger.summary import load_json, wrong_in
from privacy.ledger.terms import Terms, read_terms
from privacy.ledger.verify import (
    MOST_LEDGER_BYTES,
    UNREADABLE,
    Run,
    VerifiedLedger,
    examine,
    read_regular,
)
from privacy.ledger.verify_log import (
    LogReport,
    SignedRoot,
    check_log,
    roots_of,
    roots_of_log,
)
from privacy.plan import SERVER
from privacy.wire import Json

LEDGER_SUFFIX = ".jsonl"
MOST_FILE_BYTES = 2**24


@dataclass(frozen=True, slots=True)
class Report:
    """What verifying a folder found.

    Attributes:
        problems: all that is wrong; empty means that the run verifies.
        run: the run's handle, if the server's ledger could be read.
        plan_digest: of plan.json, if it could be read.
        published: attempts that gave a sum, by the server's ledger.
        aborted: attempts that did not.
        spends: what each client whose ledger verifies has spent in this run.
        budgets: what its data set has spent by the end of this run, in all runs.
        log_size: lines of the server's ledger.
        log_root: of the Merkle tree over them, if it could be read.
        checkpoint: the last one of this run that was kept, None without one.
        cosigned: the largest size of it that each client cosigned.
        roots: all that the server signed of its log.
    """

    problems: tuple[Problem, ...]
    run: bytes | None = None
    plan_digest: bytes | None = None
    published: int = 0
    aborted: int = 0
    spends: Mapping[str, Spend] = field(default_factory=dict)
    budgets: Mapping[str, Budget] = field(default_factory=dict)
    log_size: int = 0
    log_root: bytes | None = None
    checkpoint: Checkpoint | None = None
    cosigned: Mapping[str, int] = field(default_factory=dict)
    roots: Sequence[SignedRoot] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


class _Check:
    """One pass over a folder, collecting problems.

    Args:
        directory: the run's folder.
        price: the accountant.
        unfinished: whether the run may still be going on.
        cohort: whether the ledgers of other cohorts are checked beside it.
    """

    def __init__(
        self, directory: Path, price: Price, *, unfinished: bool, cohort: bool
    ) -> None:
        self.directory = directory
        self.pricing = Pricing(price)
        self.unfinished = unfinished
        self.cohort = cohort
        self.problems: list[Problem] = []

    def report(self) -> Report:
        """Take all the steps."""
        plan, terms = self._plan()
        parties = terms.parties if terms else self._parties_by_file()
        keys = self._keys(parties)
        ledgers = self._ledgers(parties, keys)
        digest = plan_digest(plan) if terms and plan is not None else None
        runs = self._runs(ledgers, keys, digest)
        server = runs.pop(SERVER, None)
        if server is not None:
            self.problems += reconcile(server, runs, unfinished=self.unfinished)
            self._unexplained(server)
        log = self._log(server, runs, keys, ledgers)
        spends = {name: run.run.history.totals()[0] for name, run in runs.items()}
        budgets = {
            name: Budget.of(ledgers[name].runs_until(run.run))
            for name, run in runs.items()
        }
        whole = terms is not None and server is not None
        if whole and terms and server and spends.keys() == terms.clients:
            self._summary(terms, digest, server.run, spends)
        return Report(
            problems=tuple(self.problems),
            run=server.run.opened.run if server else None,
            plan_digest=digest,
            published=server.run.history.published if server else 0,
            aborted=server.run.history.aborted if server else 0,
            spends=spends,
            budgets=budgets,
            log_size=log.size,
            log_root=log.root,
            checkpoint=log.checkpoint,
            cosigned=log.cosigned,
            roots=log.roots,
        )

    def _note(self, file: str, what: str, line: int = 0) -> None:
        self.problems.append(Problem(file, line, what))

    def _read(self, file: str) -> bytes | None:
        is_ledger = file.endswith(LEDGER_SUFFIX)
        most = MOST_LEDGER_BYTES if is_ledger else MOST_FILE_BYTES
        data = read_regular(self.directory / file, most)
        if data is None:
            self._note(file, UNREADABLE)
        return data

    def _plan(self) -> tuple[dict[str, Json] | None, Terms | None]:
        data = self._read("plan.json")
        if data is None:
            return None, None
        try:
            plan = load_json(data)
            if not isinstance(plan, dict):
                raise TypeError
            plan_digest(plan)
        except (ValueError, TypeError, RecursionError):
            self._note("plan.json", "not a JSON object without fractions")
            return None, None
        try:
            return plan, read_terms(plan)
        except MalformedMessageError as error:
            self._note("plan.json", str(error))
            return None, None

    def _listed(self, folder: str) -> set[str]:
        try:
            return {path.name for path in (self.directory / folder).iterdir()}
        except OSError:
            self._note(folder, "missing, or not a folder that can be read")
            return set()

    def _parties_by_file(self) -> frozenset[str]:
        names = self._listed("ledger")
        return frozenset(
            name.removesuffix(LEDGER_SUFFIX)
            for name in names
            if name.endswith(LEDGER_SUFFIX)
        )

    def _keys(self, parties: frozenset[str]) -> dict[str, VerifyKey]:
        keys: dict[str, VerifyKey] = {}
        for extra in sorted(self._listed("keys") - {p + KEY_SUFFIX for p in parties}):
            self._note(f"keys/{extra!a}", "a file of no party of the plan")
        for party in sorted(parties):
            file = f"keys/{party}{KEY_SUFFIX}"
            data = self._read(file)
            if data is None:
                continue
            try:
                keys[party] = parse_key_file(data)
            except LedgerError as error:
                self._note(file, str(error))
        return keys

    def _ledgers(
        self, parties: frozenset[str], keys: Mapping[str, VerifyKey]
    ) -> dict[str, VerifiedLedger]:
        names = {party + LEDGER_SUFFIX for party in parties}
        heads = {name + HEAD_SUFFIX for name in names}
        present = self._listed("ledger")
        for extra in sorted(present - names - heads - {LOG_FOLDER, CHECKPOINT}):
            self._note(f"ledger/{extra!a}", "a file of no party of the plan")
        ledgers: dict[str, VerifiedLedger] = {}
        for party in sorted(parties):
            file = _ledger_file(party)
            data = self._read(file)
            if data is None or party not in keys:
                continue
            ledger, problems = examine(
                data,
                file,
                keys[party],
                self.pricing,
                closed=not self.unfinished,
                party=party,
            )
            self.problems += problems
            if ledger is None:
                continue
            if party + LEDGER_SUFFIX + HEAD_SUFFIX in present:
                self._remembered(file + HEAD_SUFFIX, ledger)
            ledgers[party] = ledger
        return ledgers

    def _remembered(self, file: str, ledger: VerifiedLedger) -> None:
        data = self._read(file)
        if data is None:
            return
        try:
            head = parse_head(data)
        except MalformedMessageError as error:
            self._note(file, str(error))
            return
        records = ledger.history.records
        ends = [Head(records, ledger.head)]
        if self.unfinished:
            # A running party is between the line and its acknowledgement at times.
            ends.append(Head(records - 1, ledger.head_before))
        if head not in ends:
            self._note(file, "it remembers another end of the ledger")

    def _runs(
        self,
        ledgers: Mapping[str, VerifiedLedger],
        keys: Mapping[str, VerifyKey],
        digest: bytes | None,
    ) -> dict[str, RunFile]:
        """The part of each ledger that belongs to the server's run."""
        server = ledgers.get(SERVER)
        if server is None:
            return {}
        handle = server.runs[0].opened.run
        pinned = {name: key.raw for name, key in keys.items()}
        runs: dict[str, RunFile] = {}
        for party, ledger in ledgers.items():
            file = _ledger_file(party)
            run = next((run for run in ledger.runs if run.opened.run == handle), None)
            if run is None:
                self._note(file, "it has no record of the run that the server opened")
                continue
            line = run.entries[0].line
            opened = run.opened
            if digest is not None and opened.plan_digest != digest:
                self._note(file, "opened under another plan than plan.json", line)
            if opened.plan_digest != server.runs[0].opened.plan_digest:
                self._note(file, "opened under another plan than the server's", line)
            if dict(opened.roster) != pinned:
                self._note(file, "it pins other keys than the folder keys/", line)
            if not self.unfinished and run.history.phase is not Phase.CLOSED:
                what = "its part of this run does not end in 'closed'"
                self._note(file, what, run.entries[-1].line)
            runs[party] = RunFile(file, run)
        return runs

    def _unexplained(self, server: RunFile) -> None:
        """Whether the adapter moved by sums that stand in no ledger here."""
        if self.cohort:
            return
        for entry in server.run.entries:
            if isinstance(entry.record, Moved):
                what = (
                    "the adapter was moved by other cohorts, whose ledgers are not "
                    "here; check the folder of the whole run"
                )
                self._note(server.file, what, entry.line)
                return

    def _log(
        self,
        server: RunFile | None,
        clients: Mapping[str, RunFile],
        keys: Mapping[str, VerifyKey],
        ledgers: Mapping[str, VerifiedLedger],
    ) -> LogReport:
        """The log's notes and what the clients vouched for."""
        # Also those of other runs: whoever has several ledgers can compare them.
        roots = [
            root
            for party, ledger in ledgers.items()
            for root in roots_of(_ledger_file(party), ledger.runs)
        ]
        if server is None:
            return LogReport(roots=roots)
        files = [f"ledger/{CHECKPOINT}"]
        if not (self.directory / files[0]).exists():
            files = []
        if (self.directory / "ledger" / LOG_FOLDER).exists():
            listed = self._listed(f"ledger/{LOG_FOLDER}")
            if self.unfinished:
                # What a process that died left of a file that it was about to replace.
                listed = {n for n in listed if not n.endswith(UNFINISHED_SUFFIX)}
            for name in sorted(listed):
                if is_note_name(name):
                    files.append(f"ledger/{LOG_FOLDER}/{name}")
                else:
                    what = "a note of another size than its name says"
                    self._note(f"ledger/{LOG_FOLDER}/{name!a}", what)
        notes = {file: self._read(file) or b"" for file in files}
        lines, _ = split_lines(self._read(server.file) or b"")
        report = check_log(
            lines,
            notes,
            server.run.opened.run,
            keys,
            clients,
            unfinished=self.unfinished,
        )
        self.problems += report.problems
        report.roots += roots + roots_of_log(server.file, lines, server.run.opened)
        return report

    def _summary(
        self,
        terms: Terms,
        digest: bytes | None,
        server: Run,
        spends: Mapping[str, Spend],
    ) -> None:
        file = "summary.json"
        if self.unfinished and not (self.directory / file).exists():
            return
        data = self._read(file)
        if data is None:
            return
        figures = {
            "delta": terms.delta,
            "target_epsilon": terms.epsilon,
            "rounds_completed": Decimal(server.history.published),
            "rounds_aborted": Decimal(server.history.aborted),
        }
        # These two may be left out, since they repeat what stands elsewhere.
        repeated: dict[str, object] = {
            "plan_digest": digest.hex() if digest else None,
            "survivors": list(server.history.last_survivors),
        }
        for what in wrong_in(data, figures, repeated, spends):
            self._note(file, what)


def verify_run(
    directory: Path,
    *,
    price: Price = price_charges,
    unfinished: bool = False,
    cohort: bool = False,
) -> Report:
    """Check a run's folder and collect all that is wrong with it.

    Args:
        directory: the folder that `fgrpo run` wrote.
        price: the accountant.
        unfinished: accept a run that has not ended: no `closed`, no summary.
        cohort: it is one of several, all of which are checked (`federation`), so that
            their sums may have moved the adapter.

    Guarantee:
        It returns a report for any bytes in the folder's files.
    """
    check = _Check(directory, price, unfinished=unfinished, cohort=cohort)
    return check.report()


def _ledger_file(party: str) -> str:
    return f"ledger/{party}{LEDGER_SUFFIX}"
