"""What NVFlare calls at a site and at the server, with an engine that only notes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("nvflare", reason="the extra [nvflare] is not installed")

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReservedKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.widgets.info_collector import GroupInfoCollector, InfoCollector

from fgrpo_secure.runtime.engine_job import (
    ARGUMENTS,
    CONTROLLER,
    EXECUTOR,
    STATUS,
    Progress,
)
from fgrpo_secure.runtime.envelope import read_hello
from fgrpo_secure.runtime.nvflare import (
    PilotController,
    PilotExecutor,
    home_of,
    seconds_for,
)
from fgrpo_secure.runtime.serving import Board
from privacy.ledger import read_key_file
from tests.pilot.stage import Stage, until

SITE = "count"
JOB = "job-1"


class Workspace:
    def __init__(self, root):
        self.root = root

    def get_root_dir(self):
        return str(self.root)


class Engine:
    """Notes what is registered and sent; nothing arrives."""

    def __init__(self, root, code=ReturnCode.OK):
        self.root, self.code = root, code
        self.handlers, self.sent = {}, []

    def get_workspace(self):
        return Workspace(self.root)

    def register_aux_message_handler(self, topic, handler):
        self.handlers[topic] = handler

    def new_context(self):
        class Context(FLContext):
            def __enter__(self):
                return self

            def __exit__(self, *error):
                return None

        return Context()

    def send_aux_request(self, *, targets, topic, request, **rest):
        self.sent.append((targets, topic, request))
        return {target: make_reply(self.code) for target in targets}


def context(engine):
    found = FLContext()
    found.set_prop(ReservedKey.ENGINE, engine)
    found.set_prop(FLContextKey.CURRENT_RUN, JOB)
    return found


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    return Stage(tmp_path_factory.mktemp("stage"), public=())


@pytest.fixture
def site(stage):
    """A site's executor that has begun, and its engine."""
    engine = Engine(stage.home(SITE).kit)
    executor = PilotExecutor()
    executor.handle_event(EventType.START_RUN, context(engine))
    yield executor, engine
    executor.handle_event(EventType.END_RUN, context(engine))


def test_a_job_names_these_classes_and_gives_the_sites_no_arguments():
    for path, kind in ((CONTROLLER, PilotController), (EXECUTOR, PilotExecutor)):
        assert path == f"{kind.__module__}.{kind.__qualname__}"
    PilotController(**dict.fromkeys(ARGUMENTS, "text"))


def test_the_home_is_the_folder_around_the_engines(stage):
    home = stage.home(SITE)
    home.kit.mkdir(exist_ok=True)
    assert home_of(Engine(home.kit)) == home


def test_a_site_says_hello_for_its_job_with_a_nonce_of_its_own(stage, site):
    _, engine = site
    until(lambda: engine.sent)
    targets, topic, message = engine.sent[0]
    assert (targets, topic) == (["server"], "fgrpo.hello")
    key = read_key_file(stage.home(SITE).key_file(SITE))
    hello = read_hello(message["bytes"], {SITE: key}, JOB)
    other = PilotExecutor()
    again = Engine(stage.home(SITE).kit)
    other.handle_event(EventType.START_RUN, context(again))
    until(lambda: again.sent)
    other.handle_event(EventType.END_RUN, context(again))
    assert read_hello(again.sent[0][2]["bytes"], {SITE: key}, JOB).nonce != hello.nonce


def test_what_a_stranger_sends_is_answered_like_everything_and_goes_to_the_log(
    stage, site
):
    _, engine = site
    message = Shareable()
    message["bytes"] = b"junk"
    reply = engine.handlers["fgrpo.request"]("topic", message, context(engine))
    assert reply.get_return_code() == ReturnCode.OK
    assert dict(reply).keys() <= {"__headers__"}
    assert "refused a message" in stage.site_log(SITE)


@pytest.mark.parametrize("value", [None, "text", 7, [b"x"]])
def test_what_is_no_bytes_is_passed_over(site, value):
    _, engine = site
    message = Shareable()
    message["bytes"] = value
    reply = engine.handlers["fgrpo.request"]("topic", message, context(engine))
    assert reply.get_return_code() == ReturnCode.OK


def test_a_site_answers_no_task_of_the_engine():
    reply = PilotExecutor().execute("train", Shareable(), FLContext(), None)
    assert reply.get_return_code() == ReturnCode.TASK_UNKNOWN


def test_without_a_home_a_site_is_silent_and_its_process_lives(tmp_path):
    engine = Engine(tmp_path / "kit")
    executor = PilotExecutor()
    executor.handle_event(EventType.START_RUN, context(engine))
    assert engine.handlers == {}
    executor.handle_event(EventType.END_RUN, context(engine))
    assert engine.sent == []


def test_the_lead_sees_where_a_run_stands():
    controller = PilotController("first", "terms", "digest")
    board = controller._board = Board(lambda text: None)
    board.present(["count"], ["sort"])
    collector = GroupInfoCollector()
    found = FLContext()
    found.set_prop(InfoCollector.CTX_KEY_STATS_COLLECTOR, collector)
    controller.handle_event(InfoCollector.EVENT_TYPE_GET_STATS, found)
    (shown,) = collector.info.values()
    progress = Progress.from_text(shown[STATUS])
    assert progress.present == ("count",)
    assert progress.last == "missing: sort"


def test_a_large_message_is_given_longer():
    assert seconds_for(b"") >= 10
    assert seconds_for(bytes(2**24)) > 2 * seconds_for(b"")


def test_a_sites_process_loads_no_learner():
    code = (
        "import sys, fgrpo_secure.runtime.nvflare\n"
        "sys.exit(bool({'torch', 'transformers', 'peft'} & set(sys.modules)))\n"
    )
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code],
        env=dict(os.environ) | {"PYTHONPATH": path},
        check=False,
    )
    assert done.returncode == 0
