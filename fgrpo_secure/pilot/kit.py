"""The engine's startup kit in a home, with all that a pilot has no use for taken out.

What the engine's own policies can forbid, they forbid here: jobs that carry code,
components that are not ours, shell commands, streams of logs. These bind an honest
server. One that lies can claim any role and skip the engine's authorisation, so that
what a site's process answers at all is cut down again in its own entry,
`runtime.nvflare_processes`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from fgrpo_secure.home import Home, HomeRole
from fgrpo_secure.runtime.engine_job import SERVER_CLASSES, SITE_CLASSES, VALIDATOR
from fgrpo_secure.secrets import private_directory, write_atomically

# Scripts that would start the engine without our entry, or ask to.
_SCRIPTS = ("*.sh", "*.ipynb", "readme.txt")
_SNAPSHOT_FOLDER, _JOB_FOLDER = "snapshots", "jobs"
_LAUNCHER = "nvflare.app_common.job_launcher"
_STORAGE = "nvflare.app_common.storages.filesystem_storage.FilesystemStorage"
_SCHEDULER = "nvflare.app_common.job_schedulers.job_scheduler.DefaultJobScheduler"
_SNAPSHOTS = (
    "nvflare.app_common.state_persistors.storage_state_persistor.StorageStatePersistor"
)
_RESOURCES = "nvflare.app_common.resource_managers.gpu_resource_manager"
_CONSUMER = "nvflare.app_common.resource_consumers.gpu_resource_consumer"

# Of the only role that a certificate of a pilot has besides those of site and server.
_AT_SITE = {
    "submit_job": "any",
    "clone_job": "none",
    "manage_job": "n:submitter",
    "download_job": "none",
    "view": "none",
    "operate": "none",
    "shell_commands": "none",
    "byoc": "none",
    "server-predeployed-flwr": "none",
}
_AT_SERVER = _AT_SITE | {"download_job": "n:submitter", "view": "any"}


def furnish(home: Home, kit: Path) -> None:
    """Write a kit's local configuration, and remove what goes around it.

    Args:
        home: whose kit it is.
        kit: where it lies now.
    """
    private_directory(kit)
    for folder in (kit, kit / "startup", kit / "local"):
        for pattern in _SCRIPTS:
            for path in folder.glob(pattern):
                path.unlink()
    custom = kit / "local" / "custom"
    if custom.is_dir():
        shutil.rmtree(custom)
    private_directory(kit / "transfer")
    if home.role is HomeRole.LEAD:
        return
    # What the engine would fall back to allows more.
    for name in ("authorization", "resources"):
        (kit / "local" / f"{name}.json.default").unlink(missing_ok=True)
    (kit / "local" / "privacy.json.sample").unlink(missing_ok=True)
    site = home.role is HomeRole.SITE
    if not site:
        for folder in (_SNAPSHOT_FOLDER, _JOB_FOLDER):
            private_directory(kit / folder)
    rights = _AT_SITE if site else _AT_SERVER
    permissions = {"lead": rights} | dict.fromkeys(
        ("project_admin", "org_admin", "member"), "none"
    )
    _write(
        kit / "local" / "authorization.json",
        {"format_version": "1.0", "permissions": permissions},
    )
    _write(
        kit / "local" / "resources.json",
        _site_resources() if site else _server_resources(home.kit),
    )


def _site_resources() -> dict[str, Any]:
    return {
        "format_version": 2,
        "class_list_enforcement_mode": "enforce",
        "class_allow_list": list(SITE_CLASSES),
        "allow_log_streaming": False,
        "app_validator": {"path": VALIDATOR, "args": {}},
        "client": {"retry_timeout": 30, "compression": "Gzip"},
        "components": [
            {
                "id": "resource_manager",
                "path": f"{_RESOURCES}.GPUResourceManager",
                "args": {"num_of_gpus": 0, "mem_per_gpu_in_GiB": 0},
            },
            {
                "id": "resource_consumer",
                "path": f"{_CONSUMER}.GPUResourceConsumer",
                "args": {},
            },
            {
                "id": "process_launcher",
                "path": f"{_LAUNCHER}.client_process_launcher.ClientProcessJobLauncher",
                "args": {},
            },
        ],
    }


def _server_resources(kit: Path) -> dict[str, Any]:
    # The engine's default folders are in /tmp, where pilots would share them.
    snapshots, jobs = kit / _SNAPSHOT_FOLDER, kit / _JOB_FOLDER
    return {
        "format_version": 2,
        "class_list_enforcement_mode": "enforce",
        "class_allow_list": list(SERVER_CLASSES),
        "servers": [
            {
                "admin_storage": "transfer",
                "max_num_clients": 100,
                "heart_beat_timeout": 60,
                "admin_timeout": 10.0,
            }
        ],
        "snapshot_persistor": {
            "path": _SNAPSHOTS,
            "args": {
                "uri_root": "/",
                "storage": {
                    "path": _STORAGE,
                    "args": {"root_dir": str(snapshots), "uri_root": "/"},
                },
            },
        },
        "components": [
            # One job at a time: a second would wait for the same folders.
            {"id": "job_scheduler", "path": _SCHEDULER, "args": {"max_jobs": 1}},
            {
                "id": "job_manager",
                "path": "nvflare.apis.impl.job_def_manager.SimpleJobDefManager",
                "args": {"uri_root": str(jobs), "job_store_id": "job_store"},
            },
            {"id": "job_store", "path": _STORAGE},
            {
                "id": "process_launcher",
                "path": f"{_LAUNCHER}.server_process_launcher.ServerProcessJobLauncher",
                "args": {},
            },
        ],
    }


def _write(path: Path, tree: dict[str, Any]) -> None:
    write_atomically(path, (json.dumps(tree, indent=2) + "\n").encode())
