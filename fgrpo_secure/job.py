"""A whole run on one machine, from a configuration to a summary."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from fgrpo_secure.admission import Ask, admit, site_rules
from fgrpo_secure.budget import check_budgets
from fgrpo_secure.config import RunConfig
from fgrpo_secure.course import RESUME, Finished, Part, Watcher, conduct
from fgrpo_secure.errors import StateError
from fgrpo_secure.folders import RunFolder, cohort_roots, held
from fgrpo_secure.grpo.policy import Policy
from fgrpo_secure.preparation import (
    check_folder,
    make_plans,
    open_server_ledger,
    prepare_folders,
)
from fgrpo_secure.runtime.local import LocalExchange, WorkerOrder, accepted
from fgrpo_secure.secrets import (
    identity_key,
    private_directory,
    remove_unfinished,
    write_atomically,
)
from fgrpo_secure.tracking import tracked
from privacy.ledger.durable import make_directory
from privacy.plan import SERVER, Plan


def run(
    config: RunConfig, root: Path, watcher: Watcher, ask: Ask | None = None
) -> Finished:
    """Run to the end, or go on with a run that was interrupted.

    Args:
        config: the configuration.
        root: the run's folder; made if missing.
        watcher: who shows it.
        ask: asks a site's operator where its policy does; None asks nobody, so that
            only what was approved before may run.

    Raises:
        StateError: the folder holds a finished run, or one of another plan, or another
            process runs in it.
        FgrpoError, PrivacyError: what went wrong; the folder can be resumed.
    """
    started = time.monotonic()
    check_folder(root)
    watcher.say("Registering the plan: sizes, model, noise for the target epsilon ...")
    plans, policy = make_plans(config)
    make_directory(root)
    with held(root):
        # Who had it until now may have finished in it.
        check_folder(root)
        return _run_alone(config, root, watcher, plans, policy, started, ask)


def _run_alone(
    config: RunConfig,
    root: Path,
    watcher: Watcher,
    plans: Sequence[Plan],
    policy: Policy,
    started: float,
    ask: Ask | None,
) -> Finished:
    """Run, or go on, in a folder that no other process runs in."""
    resumed = prepare_folders(root, config, plans)
    private = private_directory(root / SERVER)
    key = identity_key(private)
    digests = ", ".join(plan.digest[:16] for plan in plans)
    terms = plans[0]
    watcher.say(
        f"plan {digests}: epsilon {terms.epsilon} at delta {terms.delta} over "
        f"{terms.rounds} rounds; {root}"
    )
    remove_unfinished(private)
    with ExitStack() as opened:
        parts = []
        for plan, place in zip(plans, cohort_roots(root, len(plans)), strict=True):
            folder = RunFolder.of(place, config)
            ledger = opened.enter_context(
                open_server_ledger(folder, plan, private, policy, key)
            )
            _admit_all(config, plan, folder, ledger.history.run, ask)
            check_budgets(config, plan, folder, ledger.history.run)
            parts.append(Part(plan, folder, ledger))
        history = parts[0].ledger.history
        tracking = opened.enter_context(
            tracked(
                config.machine.tracking, root, history.run, history.round, watcher.say
            )
        )
        engine = opened.enter_context(
            LocalEngine(
                [
                    WorkerOrder(
                        str(part.folder.root),
                        tuple(part.names),
                        part.ledger.history.run,
                        accepted(config, part.plan),
                    )
                    for part in parts
                ],
                workers=config.machine.workers,
                on_progress=watcher.progress,
                on_silence=lambda name, why: watcher.say(f"client {name}: {why}"),
                copy_ledgers=lambda: _copy_ledgers(parts),
            )
        )
        engine.wait_ready()
        return conduct(
            config,
            root,
            parts,
            policy,
            key,
            engine,
            watcher,
            tracking,
            resumed=resumed,
            started=started,
        )


class LocalEngine(LocalExchange):
    """The workers of this machine, which do not come back once they have ended.

    Args:
        cohorts: as `LocalExchange` takes them.
        workers: likewise.
        on_progress: likewise.
        on_silence: likewise.
        copy_ledgers: brings ledgers that are kept elsewhere into the run's folder.
    """

    def __init__(
        self,
        cohorts: Sequence[WorkerOrder],
        *,
        workers: int,
        on_progress: Callable[[str, int, int], None],
        on_silence: Callable[[str, str], None],
        copy_ledgers: Callable[[], None],
    ) -> None:
        super().__init__(
            cohorts, workers=workers, on_progress=on_progress, on_silence=on_silence
        )
        self._copy_ledgers = copy_ledgers

    def gather(self, number: int, cohorts: Mapping[tuple[str, ...], int]) -> None:
        """Stop where the processes that are left cannot make a sum.

        To go on would use the plan's rounds up one by one.

        Raises:
            StateError: too few clients are left.
        """
        present = self.present
        for names, least in cohorts.items():
            if number and len(set(names) & present) < least:
                gone = ", ".join(sorted(set(names) - present))
                raise StateError(
                    f"The processes of {gone} have ended, and too few are left for a "
                    "sum.",
                    f"See what ended them, then go on: {RESUME}",
                )

    def evaluating(self, public: Collection[str]) -> Collection[str]:
        """Those that have a public evaluation set: this machine knows all of them."""
        return public

    def collect_ledgers(self) -> None:
        """Bring ledgers that are kept elsewhere into the run's folder."""
        self._copy_ledgers()


def _copy_ledgers(parts: Sequence[Part]) -> None:
    for part in parts:
        for name in part.names:
            own, here = part.folder.own_ledger(name), part.folder.ledger(name)
            if own != here and own.exists():
                write_atomically(here, own.read_bytes())


def _admit_all(
    config: RunConfig, plan: Plan, folder: RunFolder, run: bytes, ask: Ask | None
) -> None:
    """Have every site's policy look at a run before any client opens it.

    Each site looks again by itself when it opens. A run that some had opened and
    others declined could never be finished.
    """
    names = [client.name for client in plan.clients]
    for rules in site_rules(config, plan, folder, names).values():
        admit(rules, plan, folder, run, ask)
