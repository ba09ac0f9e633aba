"""What a job of the engine consists of: one configuration for each side, and no code.

A site takes exactly the one that stands here, byte for byte as JSON: it names a class
that the site has installed, and gives it nothing. All terms of a run come later, in a
message that the server's own key has signed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

CONTROLLER = "fgrpo_secure.runtime.nvflare.PilotController"
EXECUTOR = "fgrpo_secure.runtime.nvflare.PilotExecutor"
VALIDATOR = "fgrpo_secure.runtime.nvflare_processes.OnlyOurJob"
# What a site's engine may build at all.
SITE_CLASSES = (EXECUTOR,)
SERVER_CLASSES = (CONTROLLER,)

# What the controller is given, all of it text: the run's name, the agreement as the
# lead wrote it, and the hex digest of the plan that the lead read.
ARGUMENTS = ("run", "agreement", "plan")
# What it adds to the engine's statistics while it runs: one JSON text, see `Progress`.
STATUS = "fgrpo_status"
# Where it puts the run's folder within that of the engine's job, once the run is done:
# what the lead collects. The server's private files are not in it.
RESULT = "fgrpo_run"

TASK = "fgrpo"
CLIENT_CONFIG = "config_fed_client.json"
SERVER_CONFIG = "config_fed_server.json"
_SERVER_APP, _SITE_APP = "server", "site"

SITE_JOB: dict[str, Any] = {
    "format_version": 2,
    "executors": [{"tasks": [TASK], "executor": {"path": EXECUTOR, "args": {}}}],
    "task_data_filters": [],
    "task_result_filters": [],
    "components": [],
}


@dataclass(frozen=True, slots=True)
class Progress:
    """What a run's coordinator shows of it: nothing but what may be shown to anybody.

    Attributes:
        state: "waiting" for sites, "running", "finished", or "refused": the job ends
            with an error, which `last` says.
        rounds: registered by the plan.
        notes: of each round that is over: its number, whether it was published, and
            how many were in the sum.
        spent: most epsilon that a client was charged so far, as text.
        target: the plan's epsilon, as text.
        present: the sites that are connected.
        last: what happened last, in words.
    """

    state: str
    rounds: int
    notes: tuple[tuple[int, bool, int], ...]
    spent: str
    target: str
    present: tuple[str, ...]
    last: str

    def to_text(self) -> str:
        """As the engine carries it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Progress | None:
        """What a coordinator said, or None where that is not what one says."""
        try:
            tree = json.loads(text)
            return cls(
                state=str(tree["state"]),
                rounds=int(tree["rounds"]),
                notes=tuple(
                    (int(number), bool(published), int(survivors))
                    for number, published, survivors in tree["notes"]
                ),
                spent=str(tree["spent"]),
                target=str(tree["target"]),
                present=tuple(str(name) for name in tree["present"]),
                last=str(tree["last"]),
            )
        except (ValueError, TypeError, KeyError, RecursionError):
            return None


def server_job(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The server's side of a job.

    Args:
        arguments: of the controller, which the server's home is held against.
    """
    return {
        "format_version": 2,
        "workflows": [{"id": TASK, "path": CONTROLLER, "args": dict(arguments)}],
        "task_data_filters": [],
        "task_result_filters": [],
        "components": [],
    }


def job_files(
    name: str, sites: Sequence[str], least: int, arguments: Mapping[str, Any]
) -> dict[str, bytes]:
    """The files of a job, by their paths in its folder.

    Args:
        name: what the engine lists it by.
        sites: who takes part.
        least: with fewer sites connected the engine does not begin.
        arguments: of the controller.
    """
    meta = {
        "name": name,
        "resource_spec": {},
        "min_clients": least,
        "deploy_map": {_SERVER_APP: ["server"], _SITE_APP: list(sites)},
    }
    return {
        "meta.json": _json(meta),
        f"{_SERVER_APP}/config/{SERVER_CONFIG}": _json(server_job(arguments)),
        f"{_SITE_APP}/config/{CLIENT_CONFIG}": _json(SITE_JOB),
    }


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
