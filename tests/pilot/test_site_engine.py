"""A site's engine answers a server that lies no more than a pilot needs."""

import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from zipfile import ZIP_DEFLATED, ZipFile

import pytest

pytest.importorskip("nvflare", reason="the extra [nvflare] is not installed")

from nvflare.fuel.hci.server.constants import ConnProps
from nvflare.fuel.sec.audit import AuditService
from nvflare.private.admin_defs import Message
from nvflare.private.defs import RequestHeader, SysCommandTopic, TrainingTopic
from nvflare.private.fed.client.admin import FedAdminAgent
from nvflare.private.fed.client.client_engine import ClientEngine
from nvflare.private.fed.client.client_req_processors import ClientRequestProcessors
from nvflare.private.fed.utils.app_authz import AppAuthzService

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
    assert {type(held.processor) for held in answered()} == set(ANSWERED)


def test_no_process_of_an_engine_leaves_its_memory_on_the_disk():
    code = (
        "import resource, subprocess\n"
        "from fgrpo_secure.runtime import nvflare_processes as ours\n"
        "def main(**rest):\n"
        "    subprocess.run(['sh', '-c', 'ulimit -H -c'])\n"
        "ours.MainProcessMonitor.run = main\n"
        "ours.run_site('kit', 'north')\n"
    )
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code], capture_output=True, check=True, text=True
    )
    assert done.stdout.split() == ["0"]


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


JOB = "0f9e8d7c-6b5a-4938-a716-25348f0e1d2c"
PACKED = {f"config/{CLIENT_CONFIG}": json.dumps(SITE_JOB)}


def packed(files):
    """A job as a server sends it."""
    data = io.BytesIO()
    with ZipFile(data, "w", ZIP_DEFLATED) as archive:
        archive.mkdir("config")
        for name, text in files.items():
            archive.writestr(name, text)
    return data.getvalue()


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """The engine's own, with a kit and nobody at the other end."""
    for folder in ("startup", "local"):
        (tmp_path / "kit" / folder).mkdir(parents=True)
    (tmp_path / "kit" / "startup" / "client.key").write_text("the TLS key")
    made = ClientEngine.__new__(ClientEngine)
    made.args = SimpleNamespace(workspace=str(tmp_path / "kit"))
    made.client = SimpleNamespace(client_name="north", components={})
    made.new_context = lambda: None
    monkeypatch.setattr(AppAuthzService, "app_validator", OnlyOurJob())
    return made


def topic_of(processors, topic):
    return next(one for one in processors if topic in one.get_topics())


def tell(processors, engine, topic, job, body=b"", meta=None):
    """What one of the engine's requests is answered with."""
    request = Message(topic=topic, body=body)
    request.set_header(RequestHeader.JOB_ID, job)
    request.set_header(RequestHeader.APP_NAME, "site")
    if meta is not None:
        request.set_header(RequestHeader.JOB_META, meta)
    return topic_of(processors, topic).process(request, engine).body


def test_a_server_cannot_have_a_site_delete_its_own_kit(engine, tmp_path):
    key = tmp_path / "kit" / "startup" / "client.key"
    for name in ("startup", "local", "transfer", "", None, 7, JOB + "\n"):
        said = tell(answered(), engine, TrainingTopic.DELETE_RUN, name or "", b"")
        assert "no name of a job" in said
        meta = {"job_id": name or ""}
        said = tell(answered(), engine, TrainingTopic.DEPLOY, JOB, packed(PACKED), meta)
        assert "no name of a job" in said
    said = tell(
        answered(), engine, TrainingTopic.DEPLOY, "startup", packed(PACKED), {"a": 1}
    )
    assert "no name of a job" in said
    assert key.exists()
    # This is what we keep away: the engine as it comes takes any folder for a job.
    every = ClientRequestProcessors.request_processors
    tell(every, engine, TrainingTopic.DELETE_RUN, "startup")
    assert not key.exists()


def test_no_code_is_ever_unpacked_at_a_site(engine, monkeypatch):
    seen = []

    class Looking(OnlyOurJob):
        def validate(self, app_folder):
            seen.extend(path.name for path in Path(app_folder).rglob("*.py"))
            return super().validate(app_folder)

    monkeypatch.setattr(AppAuthzService, "app_validator", Looking())
    sent = packed(PACKED | {"custom/sitecustomize.py": "x = 1"})
    deploy = (engine, TrainingTopic.DEPLOY, JOB, sent, {"job_id": JOB})
    # This is what we keep away: it is on disk where processes look for modules, and
    # gone only once a validator has said so.
    with_code = tell(ClientRequestProcessors.request_processors, *deploy)
    assert "takes no job" in with_code
    assert seen == ["sitecustomize.py"]
    seen.clear()
    assert "anything else in it" in tell(answered(), *deploy)
    assert not seen


@pytest.mark.parametrize(
    "files",
    [
        PACKED | {"custom/x.py": ""},
        PACKED | {"custom/": ""},
        PACKED | {"config/../custom/x.py": ""},
        PACKED | {".__nvfl_sig.json": "x" * 2**20},
        {f"config/{CLIENT_CONFIG}": json.dumps(SITE_JOB) + " " * 2**20},
        {f"config/{CLIENT_CONFIG}": json.dumps(SITE_JOB | {"components": [{}]})},
        {f"config/{CLIENT_CONFIG}": "[" * 10000},
        {},
    ],
)
def test_a_job_is_looked_at_before_it_is_unpacked(engine, tmp_path, files):
    meta = {"job_id": JOB}
    said = tell(answered(), engine, TrainingTopic.DEPLOY, JOB, packed(files), meta)
    assert "takes no job" in said
    assert not (tmp_path / "kit" / JOB).exists()


@pytest.mark.parametrize("body", [b"", b"PK\x03\x04", None, "text", b"x" * 2**20])
def test_what_is_no_archive_is_no_job(engine, body):
    said = tell(answered(), engine, TrainingTopic.DEPLOY, JOB, body, {"job_id": JOB})
    assert "takes no job" in said


def test_the_job_that_a_site_knows_gets_to_the_engine(engine, tmp_path):
    folder = tmp_path / "kit" / JOB
    request = (engine, TrainingTopic.DEPLOY, JOB, packed(PACKED), {"job_id": JOB})
    tell(answered(), *request)
    # The engine goes on with what was unpacked.
    assert (folder / "fl_app.txt").read_text() == "site"
    tell(answered(), engine, TrainingTopic.DELETE_RUN, JOB)
    assert not folder.exists()
