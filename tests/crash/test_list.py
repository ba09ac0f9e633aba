"""The list of boundaries is whole: whatever writes a file in our code is on it.

What a run passes is recorded (`test_boundaries.py`). Here the source is read, so that
a write which no recorded run comes to is not overlooked.
"""

import ast
from pathlib import Path
from typing import get_args

import pytest

from privacy.ledger.records import ClientRecord, ServerRecord
from tests.crash import campaigns, cohorts

ROOT = Path(__file__).parents[2]

# Of runs with one cohort; a line of one of several is called after it.
ALL = set(campaigns.listed())
ALL |= {name.partition(" of cohort-")[0] for name in cohorts.listed()}

# Where the system is asked to change a file, and nowhere else.
PRIMITIVE = {
    "fgrpo_secure/checkpoint.py": {"keep_only"},
    "fgrpo_secure/grpo/adapter.py": {"save_pretrained", "_sync"},
    "fgrpo_secure/secrets.py": {
        "append_privately",
        "remove_unfinished",
    },
    "privacy/ledger/durable.py": {
        "_write",
        "make_directory",
        "replace_file",
        "sync_directory",
    },
    "privacy/ledger/shared_log.py": {"_load"},
    "privacy/ledger/store.py": {"_replay", "_restore", "_write"},
    # What is made for show, and nothing rests on.
    "fgrpo_secure/runtime/posting.py": {"_replace", "posted"},
    "fgrpo_secure/tracking.py": {"__init__", "_tell", "_write"},
    # This goes over a connection.
    "fgrpo_secure/pilot/exporter.py": {"do_GET"},
    # These are no part of a run.
    "fgrpo_secure/approvals.py": {"approve"},
    "fgrpo_secure/report/write.py": {"write_report"},
    "fgrpo_secure/policy_commands.py": {"draft"},
    # Enrolment and the engine's own files, whose every step may be repeated.
    "fgrpo_secure/pilot/enrol.py": {"_approve", "_install_kit", "init_pilot"},
    "fgrpo_secure/pilot/jobs.py": {"collect", "submit"},
    "fgrpo_secure/pilot/kit.py": {"furnish"},
    "fgrpo_secure/pilot/networks.py": {"_hosts", "networks"},
    "fgrpo_secure/pilot/processes.py": {"start_in_background", "supervise"},
    # What a process prints, and a copy of a run that is finished.
    "fgrpo_secure/runtime/serving.py": {"lay_out"},
    "fgrpo_secure/runtime/trainer.py": {"_open_log"},
    "fgrpo_secure/assets/make.py": {"report", "save", "write_data"},
    "fgrpo_secure/scaffold.py": {"write_project"},
}
# Who asks for a whole file to be written or a line added, and what it is called there.
ASKING = {
    ("checkpoint.py", "write_checkpoint"): "run/server/adapter-DIGEST.safetensors",
    ("course.py", "_write_summary"): "run/summary.json",
    ("course.py", "before"): "run/server/before.json",
    ("job.py", "_copy_ledgers"): "run/ledger/CLIENT.jsonl",
    ("preparation.py", "prepare_folder"): "run/plan.json",
    ("learner.py", "_store_baseline"): "store/CLIENT/run-DIGEST/baseline.json",
    ("learner.py", "contribute"): "store/CLIENT/run-DIGEST/opening-ROUND.key",
    ("metrics.py", "note"): "store/CLIENT/run-DIGEST/metrics.jsonl",
    ("overlap.py", "_claim"): "store/CLIENT/ledger/CLIENT.units",
    ("rounds.py", "write_note"): "run/server/rounds.jsonl",
    ("secrets.py", "identity_key"): "store/CLIENT/identity.key",
    ("secrets.py", "store_key"): "store/.units.key",
    ("ledger/remembered.py", "store_head"): "head intent",
    ("ledger/shared_log.py", "_keep"): "run/ledger/log/SIZE.note",
    ("ledger/keyfiles.py", "write_key_file"): "run/keys/CLIENT.pub",
    ("preparation.py", "prepare_folders"): "run/config.toml",
    ("joint.py", "record_step"): "run/server/step.json",
    # No part of a run.
    ("approvals.py", "approve"): None,
    ("report/write.py", "write_report"): None,
    # Enrolment, jobs and processes of a pilot: whoever was interrupted repeats them.
    ("home.py", "make_home"): None,
    ("pilot/enrol.py", "_approve"): None,
    ("pilot/enrol.py", "_install_kit"): None,
    ("pilot/enrol.py", "approve_requests"): None,
    ("pilot/enrol.py", "init_pilot"): None,
    ("pilot/enrol.py", "request_admission"): None,
    ("pilot/jobs.py", "stop"): None,
    ("pilot/jobs.py", "submit"): None,
    ("pilot/kit.py", "_write"): None,
    ("pilot/processes.py", "stop"): None,
    ("pilot/rehearsal.py", "provision"): None,
    ("pilot/rehearsal.py", "rehearse"): None,
    # A run over an engine: what pins it is written before a ledger is opened for it,
    # and says the same each time; a client's ledger is a copy of its own.
    ("runtime/nvflare.py", "_log"): None,
    ("runtime/serving.py", "_pinned"): None,
    ("runtime/serving.py", "serve"): None,
    ("runtime/training.py", "_hold_to_what_was_opened"): None,
    ("runtime/training.py", "open_pilot_site"): None,
    # Written by `replace_file` like the others, in runs that no crash test makes: a bug
    # was met, or a step was at fault. Nothing is charged or sent after either.
    ("runtime/worker.py", "_failure"): None,
    ("site.py", "handle"): None,
    ("stopping.py", "stop"): None,
    ("secrets.py", "write_atomically"): None,
}
# These are written like every line, and where they stand nothing was released.
NO_RUN_WRITES = {
    "client declined",
    "client disputed",
    "client refused",
}

CHANGES = {
    *("copyfile", "copytree", "fsync", "ftruncate", "hardlink_to", "link", "mkdir"),
    *("makedirs", "move", "removedirs", "rename", "rmdir", "rmtree", "symlink_to"),
    *("touch", "truncate", "unlink", "write", "write_bytes", "write_text"),
}
ASKED = {"append_privately", "replace_file", "write_atomically"}


def calls():
    """File, function and name of every call in our code, and the call itself."""
    for package in ("fgrpo_secure", "privacy"):
        for path in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(path.read_text("utf-8"))
            for function in ast.walk(tree):
                if isinstance(function, ast.FunctionDef):
                    for node in ast.walk(function):
                        if isinstance(node, ast.Call):
                            name = getattr(node.func, "attr", None)
                            name = name or getattr(node.func, "id", "")
                            yield str(path.relative_to(ROOT)), function.name, name, node


def opens_to_write(name, node):
    """Whether a call opens a file in another mode than for reading."""
    if name not in {"open", "fdopen"}:
        return False
    given = [*node.args, *(word.value for word in node.keywords if word.arg == "mode")]
    modes = [arg.value for arg in given if isinstance(arg, ast.Constant)]
    return any(isinstance(mode, str) and set(mode) & set("wax+") for mode in modes)


def replaces_a_file(name, node):
    """`replace` of a path has one argument; those of text and dataclasses have not."""
    return name == "replace" and len(node.args) == 1 and not node.keywords


def test_files_are_changed_in_few_places_only():
    found = {}
    for file, function, name, node in calls():
        if name in CHANGES or opens_to_write(name, node) or replaces_a_file(name, node):
            found.setdefault(file, set()).add(function)
    assert found == PRIMITIVE


def test_whoever_writes_a_file_is_known():
    found = {
        (file.removeprefix("fgrpo_secure/").removeprefix("privacy/"), function)
        for file, function, name, _ in calls()
        if name in ASKED
    }
    assert found == set(ASKING)


@pytest.mark.parametrize("name", sorted(filter(None, ASKING.values())))
def test_a_file_that_is_written_is_killed_at_every_step(name):
    ours = {line.partition(" ")[2] for line in ALL}
    adds = name.endswith(("metrics.jsonl", "rounds.jsonl"))
    steps = ("write", "tear") if adds else (*STEPS, "sync folder of")
    assert {f"{step} {name}" for step in steps} <= ours


STEPS = ("write", "tear", "sync", "rename")


def test_a_line_of_every_kind_is_killed_at_every_step():
    sides = {"client": ClientRecord, "server": ServerRecord}
    wanted = {
        f"{side} {record.kind}"
        for side, union in sides.items()
        for record in get_args(union)
    }
    assert len(wanted) > 14
    for one in wanted - NO_RUN_WRITES:
        side, kind = one.split()
        for step in ("write line", "tear line", "sync line", "rename head"):
            assert f"{side} {step} {kind}" in ALL, one
