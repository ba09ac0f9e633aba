"""What a job of the engine consists of: one configuration for each side, and no code.

A site takes exactly the one that stands here, byte for byte as JSON: it names a class
that the site has installed, and gives it nothing. All terms of a run come later, in a
message that the server's own key has signed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

CONTROLLER = "fgrpo_secure.runtime.nvflare.PilotController"
EXECUTOR = "fgrpo_secure.runtime.nvflare.PilotExecutor"
VALIDATOR = "fgrpo_secure.runtime.nvflare_processes.OnlyOurJob"
# What a site's engine may build at all.
SITE_CLASSES = (EXECUTOR,)
SERVER_CLASSES = (CONTROLLER,)

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
