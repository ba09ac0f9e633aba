"""The process in which a site learns: `python -m fgrpo_secure.runtime.training`.

Its supervisor starts it, tells it which run to open, and then asks it phase by phase.
What it is told came from the server, signed; here it is held to what lies in the site's
own home, and to what was opened under the same name before.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path

from fgrpo_secure.agreement import read_agreement
from fgrpo_secure.budget import own_history
from fgrpo_secure.config import RunConfig
from fgrpo_secure.errors import StateError
from fgrpo_secure.folders import RunFolder
from fgrpo_secure.home import Home, open_home
from fgrpo_secure.refusals import sign_refusal
from fgrpo_secure.runtime.envelope import LEDGER, Opening
from fgrpo_secure.runtime.orphans import end_group, end_with
from fgrpo_secure.runtime.worker import Progress, work
from fgrpo_secure.secrets import write_atomically
from fgrpo_secure.site import Site, open_site
from fgrpo_secure.site_policy import Refusal, SitePolicyError
from privacy.errors import PlanMismatchError
from privacy.ledger import Phase, Reason
from privacy.ledger.durable import make_directory
from privacy.plan import Plan
from privacy.wire import Json, Reader, canonical_json, decode, parse_canonical_json

_OPENED = "opened.json"


class PilotSite:
    """One site's client, and what a pilot asks of it besides.

    Args:
        site: holds the client.
        config: the site's own.
        folder: where its ledger is.
        run: the run's handle.
    """

    def __init__(
        self, site: Site, config: RunConfig, folder: RunFolder, run: bytes
    ) -> None:
        self._site = site
        self._config = config
        self._folder = folder
        self._run = run

    def handle(self, phase: str, name: str, payload: bytes) -> bytes:
        """Answer one phase; see `Site.handle`."""
        client = self._config.client_named(name)
        if phase == LEDGER:
            return self._ledger(name)
        if phase == "evaluate" and not (client.eval_public and client.eval_data):
            return json.dumps(None).encode()
        return self._site.handle(phase, name, payload)

    def _ledger(self, name: str) -> bytes:
        """The data set's ledger, once this run is closed in it.

        Raises:
            StateError: it is not.
        """
        history = own_history(self._folder, name)
        if history.run != self._run or history.phase is not Phase.CLOSED:
            raise StateError(
                "The ledger was asked for before this run is closed in it.",
                "The server closes a run first.",
            )
        return self._folder.own_ledger(name).read_bytes()


def open_pilot_site(
    root: Path, run: bytes, opening: Opening, progress: Progress
) -> PilotSite:
    """Open the client of one site for a run that the server proposes.

    Args:
        root: the site's home.
        run: the run's handle.
        opening: what is proposed.
        progress: for the operator's eyes.

    Raises:
        FgrpoError: what the site's operator can mend.
        PrivacyError: as `open_site` raises it, and where the same run was opened with
            other terms; whatever the site declines stands in its ledger.
    """
    home = open_home(root)
    config = read_agreement(opening.agreement.decode("utf-8")).at_site(home)
    plan = Plan.from_json(parse_canonical_json(opening.plan))
    place = home.run(opening.name)
    folder = RunFolder.of(place, config)
    roster = home.roster()
    unknown = {client.name for client in plan.clients} - roster.keys()
    if unknown:
        raise StateError(
            f"The plan names {', '.join(sorted(unknown))}, of whom no key is pinned.",
            "The lead adds them to the pilot, and every party installs the new keys.",
        )
    make_directory(place / "ledger")
    make_directory(place / "keys")
    fix = "A run cannot change identities: submit it under another name."
    folder.pin(plan, roster, fix)
    try:
        _hold_to_what_was_opened(home, place, run, opening, config)
        write_atomically(place / "plan.json", opening.plan)
        write_atomically(place / "agreement.toml", opening.agreement)
        text = config.to_toml().encode()
        write_atomically(place / "config.toml", text, private=True)
        site = open_site(config, plan, folder, (home.party,), run, progress)
    except PlanMismatchError as error:
        what, _, fix = str(error).partition("; ")
        refusal = Refusal(Reason.PLAN_MISMATCH, what, fix)
        declined = SitePolicyError(home.party, [refusal])
        sign_refusal(declined, plan, folder, home.party, run)
        raise
    return PilotSite(site, config, folder, run)


def _hold_to_what_was_opened(
    home: Home, place: Path, run: bytes, opening: Opening, config: RunConfig
) -> None:
    """Refuse other terms under the name of a run that is in the site's ledger.

    Raises:
        PlanMismatchError: these are other terms.
    """
    path = place / _OPENED
    own: Json = {
        "run": run.hex(),
        "plan": hashlib.sha256(opening.plan).hexdigest(),
        "agreement": hashlib.sha256(opening.agreement).hexdigest(),
    }
    if path.exists() and path.read_bytes() != canonical_json(own):
        kept = parse_canonical_json(path.read_bytes())
        before = bytes.fromhex(str(kept["run"])) if isinstance(kept, dict) else b""
        if before in own_history(RunFolder.of(place, config), home.party).runs:
            msg = (
                f"the run {opening.name} was opened here with other terms, or is "
                "another one; submit what is new under a new name"
            )
            raise PlanMismatchError(msg)
    write_atomically(path, canonical_json(own))


def main(arguments: list[str]) -> None:
    """Be the process: the pipe, the lifeline and the home are the arguments."""
    pipe, lifeline, root = (
        Connection(int(arguments[0])),
        int(arguments[1]),
        arguments[2],
    )
    end_with(lifeline)
    reader = Reader(pipe.recv_bytes())
    run, opening = reader.field(), decode(Opening, reader.field())
    home = open_home(Path(root))

    def opened(progress: Progress) -> Mapping[str, PilotSite]:
        return {home.party: open_pilot_site(home.root, run, opening, progress)}

    work(pipe, opened, lambda: home.private / "crash.log")
    end_group()


if __name__ == "__main__":
    main(sys.argv[1:])
