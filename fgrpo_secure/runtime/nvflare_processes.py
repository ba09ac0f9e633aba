"""The engine's processes, answering nothing but what a pilot needs.

NVFlare's client answers its server's requests to read files, list folders, report the
machine and load code. It asks its own policy only where the server says that it must,
and a user of the role "super" passes any policy. A server that lies would therefore
read any file that the site's process can. Here a site answers the requests that deploy,
start and end a job, and no others; and the only job that it takes is the one that it
knows beforehand (`engine_job`).

The engine unpacks what it was sent where a process looks for modules, and only then has
it validated; and a job that it is told to call `startup` lies where the site's TLS key
does. So a request is looked at before the engine sees it.

To be run as `python -m fgrpo_secure.runtime.nvflare_processes site|server HOME/kit
NAME`.
"""

from __future__ import annotations

import io
import json
import re
import resource
import sys
import zlib
from argparse import Namespace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

from nvflare.apis.app_validation import AppValidator
from nvflare.fuel.f3.mpm import MainProcessMonitor
from nvflare.lighter.tool_consts import (
    NVFLARE_SIG_FILE,
    NVFLARE_SUBMITTER_CRT_FILE,
)
from nvflare.private.admin_defs import Message, error_reply
from nvflare.private.defs import RequestHeader
from nvflare.private.fed.app.client import client_train
from nvflare.private.fed.app.server import server_train
from nvflare.private.fed.client.admin import RequestProcessor
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
# What the engine's server calls a job. Folders of the kit have other names.
_JOB = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_FOLDER = "config/"
_SENT = {f"{_FOLDER}{CLIENT_CONFIG}"} | {
    f"{folder}{name}" for folder in ("", _FOLDER) for name in _SIGNATURES
}
_JOB_ID = "job_id"
# What reading an archive raises that somebody made by hand.
_BROKEN = (
    *(BadZipFile, zlib.error, EOFError, OSError),
    *(KeyError, ValueError, RuntimeError),
)


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
            same = _is_ours(config.read_bytes())
        except OSError:
            same = False
        return ("", {}) if same else ("this site takes no job but its own", {})


class OnlyJobs(RequestProcessor):  # type: ignore[misc]
    """Looks at a request before the engine's own processor does.

    Args:
        processor: of the engine.

    Guarantee:
        What a request names is a job, and no other folder of the kit; and nothing is
        unpacked but the one job that a site takes.
    """

    def __init__(self, processor: RequestProcessor) -> None:
        self.processor = processor

    def get_topics(self) -> list[str]:
        """What the engine's processor answers."""
        topics: list[str] = self.processor.get_topics()
        return topics

    def process(self, req: Message, app_ctx: Any) -> Message:  # noqa: ANN401
        """Answer the request, or refuse it."""
        objection = _objection_to_name(req)
        if not objection and isinstance(self.processor, DeployProcessor):
            objection = _objection_to_job(req.body)
        if objection:
            return error_reply(objection)
        return self.processor.process(req, app_ctx)


def answered() -> list[OnlyJobs]:
    """The requests of the server that a site answers."""
    return [
        OnlyJobs(processor)
        for processor in ClientRequestProcessors.request_processors
        if type(processor) in ANSWERED
    ]


def _objection_to_name(request: Message) -> str:
    """What is wrong with the job that a request names, if it names one."""
    meta = request.get_header(RequestHeader.JOB_META)
    named = [request.get_header(RequestHeader.JOB_ID)]
    if meta is not None:
        named.append(meta.get(_JOB_ID) if isinstance(meta, dict) else "")
    found = [name for name in named if name is not None]
    good = all(isinstance(name, str) and _JOB.fullmatch(name) for name in found)
    return "" if good and len(set(found)) < 2 else "that is no name of a job"


def _objection_to_job(data: object) -> str:
    """What is wrong with a job that a server wants to be unpacked."""
    if not isinstance(data, bytes) or len(data) > 4 * _MOST_BYTES:
        return "this site takes no job of that size"
    try:
        with ZipFile(io.BytesIO(data)) as sent:
            files = [info for info in sent.infolist() if info.filename != _FOLDER]
            names = [info.filename for info in files]
            if len(set(names)) < len(names) or not set(names) <= _SENT:
                return "this site takes no job with anything else in it"
            if any(info.file_size > _MOST_BYTES for info in files):
                return "this site takes no job of that size"
            same = _is_ours(sent.read(f"{_FOLDER}{CLIENT_CONFIG}"))
    except _BROKEN:
        same = False
    return "" if same else "this site takes no job but its own"


def _is_ours(text: bytes) -> bool:
    try:
        return len(text) <= _MOST_BYTES and bool(json.loads(text) == SITE_JOB)
    except (ValueError, RecursionError):
        return False


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
    # Keys and the secrets of a round stay out of what a crash leaves on the disk, also
    # that of the processes which this one starts.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    found: int | None = MainProcessMonitor.run(
        main_func=main, run_dir=kit, args=arguments
    )
    return found or 0


if __name__ == "__main__":
    _role, _kit, _name = sys.argv[1:]
    sys.exit((run_site if _role == "site" else run_server)(_kit, _name))
