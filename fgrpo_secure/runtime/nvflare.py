"""NVFlare 2.9, which carries bytes between a pilot's machines: its only importer.

A job names two classes of this module and brings no code. At a site the class takes no
arguments: whatever is to be run comes in our own signed messages. Bytes go in NVFlare's
auxiliary messages, which need no polling. What NVFlare says about who sent something is
not relied on.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
from nvflare.fuel.f3.cellnet.defs import ReturnCode as CellReturnCode
from nvflare.fuel.f3.message import Message
from nvflare.private.defs import CellChannel
from nvflare.widgets.info_collector import GroupInfoCollector, InfoCollector

from fgrpo_secure.errors import FgrpoError
from fgrpo_secure.home import Home, open_home
from fgrpo_secure.runtime.desk import Desk
from fgrpo_secure.runtime.engine_job import RESULT, STATUS
from fgrpo_secure.runtime.envelope import NONCE_BYTES
from fgrpo_secure.runtime.trainer import Trainer
from fgrpo_secure.secrets import append_privately
from privacy.errors import PrivacyError
from privacy.plan import SERVER
from privacy.randomness import system_entropy

if TYPE_CHECKING:
    from fgrpo_secure.runtime.courier import Courier
    from fgrpo_secure.runtime.serving import Board

_REQUEST, _HELLO, _ANSWER = "fgrpo.request", "fgrpo.hello", "fgrpo.answer"
_BYTES = "bytes"
_PING = "fgrpo.ping"
_PING_SECONDS = 5.0
# What NVFlare calls the server among the targets of a message.
_TO_SERVER = "server"
# A message is given this long, and a second more for so many bytes.
_LEAST_SECONDS = 15.0
_BYTES_A_SECOND = 2**19


def seconds_for(data: bytes) -> float:
    """How long a message may be under way before it is sent again."""
    return _LEAST_SECONDS + len(data) / _BYTES_A_SECOND


def home_of(engine: Any) -> Home:  # noqa: ANN401
    """The home whose folder `kit` is NVFlare's workspace.

    Raises:
        StateError: it is no home.
    """
    return open_home(Path(engine.get_workspace().get_root_dir()).resolve().parent)


def _send(engine: Any, target: str, topic: str, data: bytes) -> bool:  # noqa: ANN401
    """Bring bytes to the process of the same job on another machine.

    Returns:
        Whether that process has them.
    """
    message = Shareable()
    message[_BYTES] = data
    try:
        with engine.new_context() as context:
            replies = engine.send_aux_request(
                targets=[target],
                topic=topic,
                request=message,
                timeout=seconds_for(data),
                fl_ctx=context,
                optional=True,
            )
    except Exception:
        # Whatever NVFlare has run into, the message is sent again.
        return False
    reply = replies.get(target) if isinstance(replies, dict) else None
    return reply is not None and reply.get_return_code() == ReturnCode.OK


class PilotExecutor(Executor):
    """A site's side of every run: it supervises, and has nothing to be told."""

    def __init__(self) -> None:
        super().__init__()
        self._desk: Desk | None = None

    def execute(
        self,
        task_name: str,
        shareable: Shareable,
        fl_ctx: FLContext,
        abort_signal: Signal,
    ) -> Shareable:
        """NVFlare's tasks are not used."""
        del task_name, shareable, fl_ctx, abort_signal
        return make_reply(ReturnCode.TASK_UNKNOWN)

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Begin with the job and end with it."""
        if event_type == EventType.START_RUN:
            self._start(fl_ctx)
        elif event_type in {EventType.ABORT_TASK, EventType.END_RUN}:
            self._end()

    def _start(self, fl_ctx: FLContext) -> None:
        engine = fl_ctx.get_engine()
        try:
            home = home_of(engine)
            roster = home.roster()
            desk = Desk(
                site=home.party,
                job=fl_ctx.get_job_id(),
                key=home.identity(),
                server=roster[SERVER],
                nonce=system_entropy(NONCE_BYTES),
                trainer=Trainer(home.root, home.private, home.party),
                stop_file=home.stop_file,
                send_hello=lambda data: _send(engine, _TO_SERVER, _HELLO, data),
                send_answer=lambda data: _send(engine, _TO_SERVER, _ANSWER, data),
                say=lambda text: _log(home.private / "site.log", text),
            )
        except (FgrpoError, PrivacyError) as error:
            # Without a hello the server only sees that this site is missing. An event
            # could be carried to it.
            text = f"this site takes no part: {error}"
            self.log_error(fl_ctx, text, fire_event=False)
            return
        self._desk = desk
        engine.register_aux_message_handler(_REQUEST, self._receive)
        desk.start()

    def _receive(self, topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
        del topic, fl_ctx
        data = request.get(_BYTES)
        if self._desk is not None and isinstance(data, bytes):
            self._desk.receive(data)
        # Whether it was let in is not for a stranger to know.
        return make_reply(ReturnCode.OK)

    def _end(self) -> None:
        desk, self._desk = self._desk, None
        if desk is not None:
            desk.end()


def _log(path: Path, text: str) -> None:
    """A line in a site's own log."""
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    with suppress(OSError):
        append_privately(path, f"{stamp} {' '.join(text.split())}")


class _Post:
    """Brings requests to sites; a `Post`."""

    def __init__(self, engine: Any) -> None:  # noqa: ANN401
        self._engine = engine

    def send(self, site: str, data: bytes) -> bool:
        """Bring bytes to a site; returns whether its process has them."""
        return _send(self._engine, site, _REQUEST, data)

    def is_connected(self, site: str) -> bool:
        """Whether a site's own engine answers, be it that it knows no such message."""
        reply = self._engine.get_cell().send_request(
            channel=CellChannel.AUX_COMMUNICATION,
            topic=_PING,
            target=site,
            request=Message(payload=Shareable()),
            timeout=_PING_SECONDS,
            optional=True,
        )
        return reply.get_header(MessageHeaderKey.RETURN_CODE) == CellReturnCode.OK


class PilotController(Controller):
    """The server's side of one run.

    Args:
        run: its name.
        agreement: what all parties share, as TOML.
        plan: hex digest of the plan that the lead read.
    """

    def __init__(self, run: str, agreement: str, plan: str) -> None:
        super().__init__()
        self._run = run
        self._text = agreement
        self._plan = plan
        self._courier: Courier | None = None
        self._board: Board | None = None

    def start_controller(self, fl_ctx: FLContext) -> None:
        """Listen to sites."""
        engine = fl_ctx.get_engine()
        engine.register_aux_message_handler(_HELLO, self._hear)
        engine.register_aux_message_handler(_ANSWER, self._take)

    def stop_controller(self, fl_ctx: FLContext) -> None:
        """Nothing is left to stop."""

    def process_result_of_unknown_task(self, *arguments: object) -> None:
        """NVFlare's tasks are not used."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Tell the lead's commands where the run stands."""
        super().handle_event(event_type, fl_ctx)
        if event_type == InfoCollector.EVENT_TYPE_GET_STATS:
            collector = fl_ctx.get_prop(InfoCollector.CTX_KEY_STATS_COLLECTOR)
            if isinstance(collector, GroupInfoCollector) and self._board is not None:
                shown = {STATUS: self._board.progress_text}
                collector.set_info(type(self).__name__, shown)

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """Run the run; what may be had of a finished one is left with the job."""
        # Only the server's process for this run learns, and so loads these.
        from fgrpo_secure.agreement import read_agreement  # noqa: PLC0415
        from fgrpo_secure.runtime.courier import Patience  # noqa: PLC0415
        from fgrpo_secure.runtime.serving import Board, lay_out, serve  # noqa: PLC0415

        engine = fl_ctx.get_engine()
        job = fl_ctx.get_job_id()
        home = home_of(engine)
        board = self._board = Board(lambda text: self.log_info(fl_ctx, text))
        root = home.run(self._run)
        try:
            if not (root / "summary.json").exists():
                serve(
                    home,
                    self._run,
                    read_agreement(self._text),
                    self._plan,
                    job=job,
                    post=_Post(engine),
                    ready=self._begin,
                    stopped=lambda: bool(abort_signal.triggered),
                    board=board,
                    patience=Patience(),
                )
            lay_out(root, Path(engine.get_workspace().get_run_dir(job)) / RESULT)
        except FgrpoError as error:
            board.end(finished=False, words=error.what)
            raise
        except PrivacyError as error:
            board.end(finished=False, words=str(error))
            raise
        board.end(finished=True, words=f"{self._run} is finished")

    def _begin(self, courier: Courier) -> None:
        self._courier = courier

    def _hear(self, topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
        del topic, fl_ctx
        data = request.get(_BYTES)
        if self._courier is not None and isinstance(data, bytes):
            self._courier.hear(data)
        return make_reply(ReturnCode.OK)

    def _take(self, topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
        del topic
        data = request.get(_BYTES)
        peer = fl_ctx.get_peer_context()
        if self._courier is not None and isinstance(data, bytes) and peer is not None:
            self._courier.take(str(peer.get_identity_name()), data)
        return make_reply(ReturnCode.OK)
