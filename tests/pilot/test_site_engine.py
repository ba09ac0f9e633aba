"""A site's engine answers a server that lies no more than a pilot needs."""

import json
from pathlib import Path

import pytest

pytest.importorskip("nvflare", reason="the extra [nvflare] is not installed")

from nvflare.fuel.hci.server.constants import ConnProps
from nvflare.fuel.sec.audit import AuditService
from nvflare.private.admin_defs import Message
from nvflare.private.defs import SysCommandTopic, TrainingTopic
from nvflare.private.fed.client.admin import FedAdminAgent
from nvflare.private.fed.client.client_req_processors import ClientRequestProcessors

from fgrpo_secure.runtime.engine_job import CLIENT_CONFIG, SITE_JOB
from fgrpo_secure.runtime.nvflare_processes import ANSWERED, OnlyOurJob, answered


class Cell:
    """A connection on which nobody else listens."""

    def register_request_cb(self, channel, topic, cb):
        self.receive = cb


class Application:
    """What the engine hands to its processors."""

    def new_context(self):
        from nvflare.apis.fl_context import FLContext

        class Context(FLContext):
            def __enter__(self):
                return self

            def __exit__(self, *error):
                return None

        return Context()


def ask(processors, topic, body, tmp_path):
    """What a site says to a request for which the server asks no authorisation."""
    from nvflare.fuel.f3.cellnet.core_cell import Message as CellMessage

    AuditService.initialize(str(tmp_path / "audit.log"))
    cell = Cell()
    agent = FedAdminAgent("admin", cell, Application())
    for processor in processors:
        agent.register_processor(processor)
    request = Message(topic=topic, body=body)
    request.set_header(ConnProps.EVENT_ID, "")
    return cell.receive(CellMessage(payload=request)).payload.body


def test_a_server_cannot_read_files_of_a_site(tmp_path):
    secret = tmp_path / "identity.key"
    secret.write_text("only ours")
    every = list(ClientRequestProcessors.request_processors)
    # This is what we keep away: the engine as it comes answers.
    said = ask(every, SysCommandTopic.SHELL, f"cat {secret}", tmp_path)
    assert "only ours" in said
    said = ask(answered(), SysCommandTopic.SHELL, f"cat {secret}", tmp_path)
    assert "only ours" not in said
    assert "invalid_request" in said


@pytest.mark.parametrize(
    "topic",
    [
        SysCommandTopic.SHELL,
        SysCommandTopic.SYS_INFO,
        SysCommandTopic.REPORT_ENV,
        SysCommandTopic.CONFIGURE_SITE_LOG,
        TrainingTopic.CONFIGURE_JOB_LOG,
        TrainingTopic.SHUTDOWN,
        TrainingTopic.RESTART,
    ],
)
def test_what_a_pilot_does_not_need_is_not_answered(topic, tmp_path):
    assert "invalid_request" in ask(answered(), topic, "", tmp_path)


def test_every_request_that_a_job_takes_is_answered():
    assert {type(processor) for processor in answered()} == set(ANSWERED)


def app(folder, change=lambda tree: None, files=()):
    tree = json.loads(json.dumps(SITE_JOB))
    change(tree)
    (folder / "config").mkdir()
    (folder / "config" / CLIENT_CONFIG).write_text(json.dumps(tree))
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x = 1")
    return OnlyOurJob().validate(str(folder))


def test_a_site_takes_the_job_that_it_knows(tmp_path):
    assert app(tmp_path) == ("", {})


def test_the_engines_signatures_may_be_beside_it(tmp_path):
    signed = [".__nvfl_sig.json", "config/.__nvfl_submitter.crt"]
    assert app(tmp_path, files=signed) == ("", {})


@pytest.mark.parametrize(
    "name",
    [
        "custom/evil.py",
        "custom/.__nvfl_sig.json",
        "config/other.json",
        "config/config_fed_server.json",
        "config_fed_client.json",
        "evil.so",
        ".hidden",
    ],
)
def test_a_job_with_anything_more_in_it_is_refused(tmp_path, name):
    error, _ = app(tmp_path, files=[name])
    assert "takes no job" in error


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: tree["executors"][0]["executor"].update(path="subprocess.Popen"),
        lambda tree: tree["executors"][0]["executor"].update(args={"home": "/etc"}),
        lambda tree: tree["components"].append({"id": "x", "path": "os.system"}),
        lambda tree: tree["task_result_filters"].append({}),
        lambda tree: tree.update(extra=1),
        lambda tree: tree.pop("components"),
    ],
)
def test_a_job_that_says_anything_else_is_refused(tmp_path, change):
    error, _ = app(tmp_path, change)
    assert "no job but its own" in error


def test_a_job_that_is_no_json_or_no_file_is_refused(tmp_path):
    config = tmp_path / "config"
    config.mkdir()
    assert OnlyOurJob().validate(str(tmp_path))[0]
    (config / CLIENT_CONFIG).write_text("[" * 10000)
    assert OnlyOurJob().validate(str(tmp_path))[0]
    (config / CLIENT_CONFIG).unlink()
    (config / CLIENT_CONFIG).symlink_to(Path("/etc/hostname"))
    assert OnlyOurJob().validate(str(tmp_path))[0]
