"""The server's side of a pilot: one run, over whatever carries it to the sites.

All its state is the run's folder in the server's home. A process that takes up a run
that another left goes on from there.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from fgrpo_secure.agreement import Agreement
from fgrpo_secure.course import Finished, Part, conduct
from fgrpo_secure.display import RoundReport
from fgrpo_secure.errors import ConfigurationError, StateError
from fgrpo_secure.folders import RunFolder, held
from fgrpo_secure.home import Home
from fgrpo_secure.preparation import (
    check_folder,
    make_plans,
    open_server_ledger,
    prepare_folders,
)
from fgrpo_secure.rounds import RoundNote, read_notes, write_note
from fgrpo_secure.runtime.courier import Courier, Patience, Post
from fgrpo_secure.runtime.engine_job import Progress
from fgrpo_secure.runtime.envelope import LEDGER, OPEN, Opening
from fgrpo_secure.runtime.posting import posted
from fgrpo_secure.secrets import (
    private_directory,
    remove_unfinished,
    write_atomically,
)
from fgrpo_secure.tracking import tracked
from privacy.ledger import Reason
from privacy.ledger.durable import make_directory
from privacy.plan import SERVER, Plan
from privacy.wire import canonical_json, encode

_AGREEMENT = "agreement.toml"
# A site that gives one of these may well open a moment later.
_PASSING = frozenset({Reason.STOPPED, Reason.INTERRUPTED})
_PAUSE_SECONDS = 2.0


class Board:
    """What a run in a pilot shows of itself: lines, and where it stands.

    Args:
        say: takes a line, for the server's log.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._shown = Progress("waiting", 0, (), "0", "", (), "")

    @property
    def progress_text(self) -> str:
        """Where the run stands; nothing in it is private."""
        return self._shown.to_text()

    def begin(self, plan: Plan, notes: Sequence[RoundNote]) -> None:
        """Show the terms, and the rounds that are over."""
        shown = tuple((note.round, note.published, note.survivors) for note in notes)
        self._shown = replace(
            self._shown, rounds=plan.rounds, target=plan.epsilon, notes=shown
        )

    def end(self, *, finished: bool, words: str) -> None:
        """Show how it ended."""
        state = "finished" if finished else "refused"
        self._shown = replace(self._shown, state=state, last=words)

    def present(self, names: Collection[str], missing: Collection[str]) -> None:
        """Show which sites are there."""
        self._shown = replace(self._shown, present=tuple(sorted(names)))
        gone = ", ".join(sorted(missing))
        self.say(f"missing: {gone}" if gone else "all sites are there")

    def say(self, text: str) -> None:
        """Say one line."""
        self._say(text)
        self._shown = replace(self._shown, last=text)

    def progress(self, label: str, done: int, total: int) -> None:
        """Sites do not tell how far they are: who draws more would show it."""

    def round_done(self, report: RoundReport) -> None:
        """Say how a round ended."""
        note = (report.number, report.published, report.survivors)
        self._shown = replace(
            self._shown,
            notes=(*self._shown.notes, note),
            spent=f"{report.spent:.3f}",
        )
        self.say(f"round {report.number}/{report.rounds}: {report.outcome}")

    @contextmanager
    def running(self, rounds: int, done: int) -> Iterator[None]:
        """Show that the rounds are under way."""
        del rounds, done
        self._shown = replace(self._shown, state="running")
        yield


class PilotEngine:
    """An `Engine` over a courier: waits for sites, and opens the run at each.

    Args:
        courier: carries the phases.
        openings: what each client is asked to open, by name.
        deadline: seconds for a phase.
        patience: how long to wait for sites.
        is_begun: whether any round was begun.
        keep_ledger: takes a client's ledger, by its name.
    """

    def __init__(
        self,
        *,
        courier: Courier,
        openings: Mapping[str, bytes],
        deadline: float,
        patience: Patience,
        is_begun: Callable[[], bool],
        keep_ledger: Callable[[str, bytes], None],
    ) -> None:
        self._courier = courier
        self._openings = openings
        self._deadline = deadline
        self._patience = patience
        self._is_begun = is_begun
        self._keep_ledger = keep_ledger
        self._opened: dict[str, bytes] = {}
        self._refused: dict[str, tuple[bytes, Reason]] = {}
        self._closed: set[str] = set()
        self._began = time.monotonic()

    def exchange(
        self, phase: str, messages: Mapping[str, bytes], deadline: float
    ) -> dict[str, bytes]:
        """Carry one phase; see `Exchange`."""
        answers = self._courier.exchange(phase, messages, deadline)
        if phase == "close":
            self._closed |= answers.keys()
        return answers

    def gather(self, number: int, cohorts: Mapping[tuple[str, ...], int]) -> None:
        """Wait for the sites, and open the run at those that have not.

        Once enough are there for a sum, the others have some time yet, and the round
        begins without them; a site that comes later joins the next one. Outside of
        rounds nothing is charged for who is missing, so that nothing is given up.

        Raises:
            StateError: a site refuses a run that has not begun, too few are left that
                do not refuse, or too few have come for a long time.
        """
        self._courier.begin(number)
        began = time.monotonic()
        while True:
            self._open_at_those_who_are_there()
            self._courier.tell_absent()
            ready = self._ready()
            if ready >= self._openings.keys():
                return
            refused = self._refusing()
            if refused and not self._is_begun():
                raise _refused(refused)
            enough = all(len(ready & set(names)) >= n for names, n in cohorts.items())
            waited = time.monotonic() - began
            self._end_for_who_came_back(ready | refused.keys(), waited, enough=enough)
            nobody_to_wait_for = ready | refused.keys() >= self._openings.keys()
            if enough and (nobody_to_wait_for or waited >= self._patience.straggler):
                return
            if nobody_to_wait_for or waited >= self._patience.enough:
                if not number:
                    return
                if refused:
                    raise _refused(refused)
                raise _missing(self._openings.keys() - ready)
            self._courier.wait_for(self._has_news, _PAUSE_SECONDS)

    def evaluating(self, public: Collection[str]) -> Collection[str]:
        """All clients: each says for itself whether it has a public evaluation set."""
        del public
        return sorted(self._ready())

    def collect_ledgers(self) -> None:
        """Ask the clients that have closed the run for their ledgers."""
        asked = dict.fromkeys(sorted(self._closed), b"")
        if asked:
            ledgers = self.exchange(LEDGER, asked, self._deadline)
            for name, ledger in ledgers.items():
                self._keep_ledger(name, ledger)

    def _open_at_those_who_are_there(self) -> None:
        lives = self._courier.lives()
        asked = {
            name: self._openings[name]
            for name, nonce in lives.items()
            if self._opened.get(name) != nonce
            and self._refused.get(name, (b"", None))[0] != nonce
        }
        if not asked:
            return
        answers = self._courier.exchange(OPEN, asked, self._deadline)
        for name in answers:
            self._opened[name] = lives[name]
        for name, reason in self._courier.refused.items():
            if reason not in _PASSING:
                self._refused[name] = (lives[name], reason)

    def _end_for_who_came_back(
        self, settled: Collection[str], waited: float, *, enough: bool
    ) -> None:
        """End this job where a site can only take part in another one.

        An engine starts a site's process with the job and never again. Where enough
        others are there, the job is given some time, so that a site whose process
        does not start cannot keep the rest from every round.

        Raises:
            StateError: a site is back.
        """
        uptime = time.monotonic() - self._began
        if enough and uptime < self._patience.together:
            return
        if waited < self._patience.absent and not enough:
            return
        back = [
            name
            for name in sorted(self._openings.keys() - settled)
            if self._courier.is_back(name)
        ]
        if back:
            raise StateError(
                f"{', '.join(back)} came back, and can take part only in a new job.",
                "Submit the run again, as `fgrpo pilot submit` does by itself: it goes "
                "on from here.",
            )

    def _ready(self) -> set[str]:
        """The clients whose processes are there and have opened the run."""
        lives = self._courier.lives()
        return {name for name, life in lives.items() if self._opened.get(name) == life}

    def _refusing(self) -> dict[str, Reason]:
        """The clients whose processes are there and have refused the run."""
        lives = self._courier.lives()
        return {
            name: reason
            for name, (life, reason) in self._refused.items()
            if lives.get(name) == life
        }

    def _has_news(self) -> bool:
        """Whether a site is there that was not asked yet."""
        known = self._opened, {name: life for name, (life, _) in self._refused.items()}
        return any(
            all(seen.get(name) != life for seen in known)
            for name, life in self._courier.lives().items()
        )


def _refused(reasons: Mapping[str, Reason]) -> StateError:
    said = ", ".join(f"{name}: {why.value}" for name, why in sorted(reasons.items()))
    return StateError(
        f"The run was refused by {said}.",
        "The site's own log and ledger say more. Where it mends what is in the way, or "
        "its operator approves, submit the run again.",
    )


def _missing(names: Collection[str]) -> StateError:
    return StateError(
        f"Too few sites for a sum: {', '.join(sorted(names))} did not come.",
        "See that `fgrpo site start` runs there, and submit the run again: it goes on "
        "from here.",
    )


def serve(
    home: Home,
    name: str,
    agreement: Agreement,
    digest: str,
    *,
    job: str,
    post: Post,
    ready: Callable[[Courier], None],
    stopped: Callable[[], bool],
    board: Board,
    patience: Patience,
) -> Finished:
    """Run one run of a pilot to its end, or go on with it.

    Args:
        home: the server's.
        name: of the run.
        agreement: what all parties share.
        digest: hex, of the plan that the lead read.
        job: what the engine calls this job.
        post: brings bytes to sites.
        ready: is given the courier, which takes what sites say.
        stopped: whether the engine wants this process to end.
        board: shows it.
        patience: how long to wait for sites.

    Raises:
        StateError: the run is finished, is another one, or too few sites came.
        FgrpoError, PrivacyError: what went wrong; the run can be submitted again.
    """
    started = time.monotonic()
    root = home.run(name)
    check_folder(root)
    config = agreement.at_server(home)
    board.say("Registering the plan: sizes, model, noise for the target epsilon ...")
    plans, policy = make_plans(config)
    if len(plans) > 1:
        raise ConfigurationError(
            f"A pilot has one cohort, and these are {len(plans)}.",
            "Take fewer clients, or several pilots.",
        )
    plan = plans[0]
    if plan.digest != digest:
        raise ConfigurationError(
            f"The agreement makes plan {plan.digest[:16]} here, and the lead read "
            f"{digest[:16]}.",
            "Compare the base model and the versions at the lead and at the server.",
        )
    make_directory(root)
    with ExitStack() as opened:
        opened.enter_context(held(root))
        # Who had it until now may have finished in it.
        check_folder(root)
        roster = home.roster()
        text = _pinned(root, agreement.text.encode())
        resumed = prepare_folders(root, config, plans, roster)
        private = private_directory(root / SERVER)
        key = home.identity()
        remove_unfinished(private)
        folder = RunFolder.of(root, config)
        ledger = opened.enter_context(
            open_server_ledger(folder, plan, private, policy, key)
        )
        history = ledger.history
        board.begin(plan, list(read_notes(private).values()))
        opened.enter_context(posted(lambda: board.progress_text, private))
        board.say(
            f"plan {plan.digest[:16]}: epsilon {plan.epsilon} at delta {plan.delta} "
            f"over {plan.rounds} rounds; {root}"
        )
        tracking = opened.enter_context(
            tracked(
                config.machine.tracking, root, history.run, history.round, board.say
            )
        )
        names = [client.name for client in plan.clients]
        courier = Courier(
            post=post,
            job=job,
            run=history.run,
            key=key,
            sites={client: roster[client] for client in names},
            patience=patience,
            on_silence=lambda client, why: board.say(f"client {client}: {why}"),
            on_absence=board.present,
            stopped=stopped,
        )
        ready(courier)
        opening = Opening(name, text, canonical_json(plan.to_json()))
        engine = PilotEngine(
            courier=courier,
            openings=dict.fromkeys(names, encode(opening)),
            deadline=config.machine.deadline_seconds,
            patience=patience,
            is_begun=lambda: ledger.history.round > 0,
            keep_ledger=lambda client, data: write_atomically(
                folder.ledger(client), data
            ),
        )
        return conduct(
            config,
            root,
            [Part(plan, folder, ledger)],
            policy,
            key,
            engine,
            board,
            tracking,
            resumed=resumed,
            started=started,
        )


def _pinned(root: Path, text: bytes) -> bytes:
    """Hold a run to the agreement that it was begun with.

    Raises:
        StateError: it was begun with another.
    """
    path = root / _AGREEMENT
    if not path.exists():
        write_atomically(path, text)
    elif path.read_bytes() != text:
        raise StateError(
            f"{root} holds a run that was begun with another agreement.",
            "Submit what it was begun with, or submit this one under another name.",
        )
    return text


def lay_out(run: Path, place: Path) -> None:
    """Copy what others may have of a finished run, as `fgrpo run` lays it out.

    The server's private folder stays where it is. Of its notes go those that may be
    sent: what a round took depends on what was drawn.

    Args:
        run: the run's folder.
        place: a new folder.
    """
    shutil.copytree(run, place, ignore=shutil.ignore_patterns(SERVER))
    notes = private_directory(place / SERVER)
    for _, note in sorted(read_notes(run / SERVER).items()):
        write_note(notes, replace(note, seconds={}))
