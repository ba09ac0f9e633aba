"""The engine's processes, answering nothing but what a pilot needs.

NVFlare's client answers its server's requests to read files, list folders, report the
machine and load code. It asks its own policy only where the server says that it must,
and a user of the role "super" passes any policy. A server that lies would therefore
read any file that the site's process can. Here a site answers the requests that deploy,
start and end a job, and no others; and the only job that it takes is the one that it
knows beforehand (`engine_job`).

To be run as `python -m fgrpo_secure.runtime.nvflare_processes site|server HOME/kit
NAME`.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from nvflare.apis.app_validation import AppValidator
from nvflare.fuel.f3.mpm import MainProcessMonitor
from nvflare.lighter.tool_consts import (
    NVFLARE_SIG_FILE,
    NVFLARE_SUBMITTER_CRT_FILE,
)
from nvflare.private.fed.app.client import client_train
from nvflare.private.fed.app.server import server_train
from nvflare.private.fed.client.client_req_processors import ClientRequestProcessors
from nvflare.private.fed.client.scheduler_cmds import (
    CancelResourceProcessor,
    CheckResourceProcessor,
    StartJobProcessor,
)
from nvflare.private.fed.client.training_cmds import (
    AbortAppProcessor,
    ClientStatusProcessor,
    DeleteRunNumberProcessor,
    DeployProcessor,
    NotifyJobStatusProcessor,
)

from fgrpo_secure.runtime.engine_job import CLIENT_CONFIG, SITE_JOB

# Found by type, so that a request which a later version adds is not answered.
ANSWERED = (
    AbortAppProcessor,
    CancelResourceProcessor,
    CheckResourceProcessor,
    ClientStatusProcessor,
    DeleteRunNumberProcessor,
    DeployProcessor,
    NotifyJobStatusProcessor,
    StartJobProcessor,
)
_SIGNATURES = {NVFLARE_SIG_FILE, NVFLARE_SUBMITTER_CRT_FILE}
_MOST_BYTES = 2**16


class OnlyOurJob(AppValidator):
    """Refuses every job at a site but the one that it knows."""

    def validate(self, app_folder: str) -> tuple[str, dict[str, Any]]:
        """Look at what the server sent, before anything of it is used.

        Guarantee:
            A job passes only where, but for the engine's signatures, its one file is
            the site's configuration, and says what `SITE_JOB` says.
        """
        root = Path(app_folder)
        config = root / "config" / CLIENT_CONFIG
        for path in root.rglob("*"):
            known = path == config or path.name in _SIGNATURES
            plain = path.is_file() and not path.is_symlink()
            if not (known and plain) and path != config.parent:
                return f"this site takes no job with {path.name!r} in it", {}
        try:
            text = config.read_bytes()
            same = len(text) <= _MOST_BYTES and json.loads(text) == SITE_JOB
        except (OSError, ValueError, RecursionError):
            same = False
        return ("", {}) if same else ("this site takes no job but its own", {})


def answered() -> list[Any]:
    """The requests of the server that a site answers."""
    return [
        processor
        for processor in ClientRequestProcessors.request_processors
        if type(processor) in ANSWERED
    ]


def run_site(kit: str, name: str) -> int:
    """Run a site's engine until it is told to stop; returns its exit status."""
    ClientRequestProcessors.request_processors = answered()
    arguments = Namespace(
        workspace=kit,
        fed_client="fed_client.json",
        set=[*_settings(name), f"uid={name}"],
        local_rank=0,
    )
    return _run(client_train.main, kit, arguments)


def run_server(kit: str, name: str) -> int:
    """Run the server's engine until it is told to stop; returns its exit status."""
    arguments = Namespace(
        workspace=kit, fed_server="fed_server.json", set=_settings(name)
    )
    return _run(server_train.main, kit, arguments)


def _settings(name: str) -> list[str]:
    # The engine's name of an organisation has no hyphen.
    organisation = name.replace("-", "_")
    return ["secure_train=true", f"org={organisation}", "config_folder="]


def _run(main: Any, kit: str, arguments: Namespace) -> int:  # noqa: ANN401
    found: int | None = MainProcessMonitor.run(
        main_func=main, run_dir=kit, args=arguments
    )
    return found or 0


if __name__ == "__main__":
    _role, _kit, _name = sys.argv[1:]
    sys.exit((run_site if _role == "site" else run_server)(_kit, _name))
