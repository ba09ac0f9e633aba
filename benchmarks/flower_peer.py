"""The other side of `secagg.py`: Flower's own SecAgg+ functions, on the same vectors.

It runs in `.venv-bench`, an environment of its own. The client's work is the four
stages of `secaggplus_mod`, called without the records around them; the server's is the
four stages of `SecAggPlusWorkflow`, over messages that stand ready.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.client.mod.secure_aggregation.secaggplus_mod import (
    SecAggPlusState,
    _collect_masked_vectors,
    _setup,
    _share_keys,
    _unmask,
)
from flwr.common import (
    Code,
    FitIns,
    FitRes,
    Parameters,
    Status,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.common.secure_aggregation.secaggplus_constants import (
    RECORD_KEY_CONFIGS,
    Key,
    Stage,
)
from flwr.compat.common import recorddict_compat as compat
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey
from flwr.server.workflow.secure_aggregation.secaggplus_workflow import (
    SecAggPlusWorkflow,
    WorkflowState,
)
from flwr.supercore.task_identity import TaskIdentity

from benchmarks.secagg_task import STEPS, Stopwatch, serve, values

_ROUND = 7
_CLIPPING = 8.0
# Its steps are as wide as ours: 2 * 8 / 2**22 is 2**-18.
_QUANTIZATION = int(2 * _CLIPPING * STEPS)
_WEIGHT = 1000
_STAGES = (
    ("keys", "setup_stage"),
    ("shares", "share_keys_stage"),
    ("vectors", "collect_masked_vectors_stage"),
    ("unmasking, decoding", "unmask_stage"),
)

# Stage, its configuration as the client gets it, and who gets it.
_Ask = Callable[[str, ConfigRecord, int], RecordDict]


class _Grid:
    """Stands where the network is: a message's reply is made at once, or ready."""

    def __init__(self, ask: _Ask) -> None:
        self._ask = ask

    def send_and_receive(
        self,
        messages: Iterable[Message],
        *,
        timeout: float | None = None,  # noqa: ARG002
    ) -> list[Message]:
        replies = []
        for message in messages:
            configs = ConfigRecord(
                dict(message.content.config_records[RECORD_KEY_CONFIGS])
            )
            stage = str(configs.pop(Key.STAGE))
            content = self._ask(stage, configs, message.metadata.dst_node_id)
            if content is not None:
                replies.append(Message(content, reply_to=message))
        return replies


class _Ready:
    """A grid whose replies stand ready, stage by stage."""

    def __init__(self, replies: dict[str, list[Message]]) -> None:
        self._stages = iter([replies[stage] for stage in Stage.all()])

    def send_and_receive(
        self,
        messages: Iterable[Message],  # noqa: ARG002
        *,
        timeout: float | None = None,  # noqa: ARG002
    ) -> list[Message]:
        return next(self._stages)


class FlowerSide:
    """One honest round, and its parties' work on the same messages again.

    Args:
        dimension: d.
        neighbours: of each client; the graph is complete.
        dropouts: the numbers of lost vectors for which the server is timed.
    """

    def __init__(
        self, *, dimension: int, neighbours: int, dropouts: list[int], **_: object
    ) -> None:
        # Messages are of some run, node and task.
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        count = neighbours + 1
        self._dimension = dimension
        self._nodes = list(range(1, count + 1))
        self._measured = self._nodes[count // 2]
        self._workflow = SecAggPlusWorkflow(
            num_shares=1.0,
            # The same threshold as ours for this many clients, of which none colludes.
            reconstruction_threshold=count // 2 + 1,
            max_weight=float(_WEIGHT),
            clipping_range=_CLIPPING,
            quantization_range=_QUANTIZATION,
        )
        # State and configuration of the measured client before each stage.
        self._before: dict[str, tuple[SecAggPlusState, ConfigRecord]] = {}
        self._replies: dict[int, dict[str, list[Message]]] = {}
        self._masked: dict[int, RecordDict] = {}
        self._states = {node: SecAggPlusState() for node in self._nodes}
        self._contents: dict[tuple[str, int], RecordDict] = {}
        for lost in dropouts:
            self._run(lost)
        del self._states, self._contents

    def _run(self, lost: int) -> None:
        """Run a round with so many vectors lost; before that all runs are one."""
        gone = self._nodes[len(self._nodes) - lost :]
        recorded: dict[str, list[Message]] = {stage: [] for stage in Stage.all()}

        def ask(stage: str, configs: ConfigRecord, node: int) -> RecordDict | None:
            if stage == Stage.UNMASK:
                return _content(_unmask(self._states[node], configs))
            if (stage, node) not in self._contents:
                self._contents[stage, node] = self._answer(stage, configs, node)
            if stage == Stage.COLLECT_MASKED_VECTORS and node in gone:
                return None
            return self._contents[stage, node]

        grid = _Grid(ask)
        sending = grid.send_and_receive

        def record(messages: Iterable[Message], **options: object) -> list[Message]:
            messages = list(messages)
            stage = messages[0].content.config_records[RECORD_KEY_CONFIGS][Key.STAGE]
            recorded[str(stage)] = sending(messages, **options)
            if stage == Stage.UNMASK:
                for message in messages:
                    if message.metadata.dst_node_id == self._measured:
                        configs = message.content.config_records[RECORD_KEY_CONFIGS]
                        given = ConfigRecord(dict(configs))
                        state = deepcopy(self._states[self._measured])
                        self._before[Stage.UNMASK] = state, given
            return recorded[str(stage)]

        grid.send_and_receive = record
        total = self._aggregate(grid, Stopwatch())
        kept = [node for node in self._nodes if node not in gone]
        mean = np.zeros(self._dimension)
        for node in kept:
            mean += values(node - 1, self._dimension)
        if not np.allclose(total, mean / len(kept), atol=2 / STEPS, rtol=0):
            msg = "the other side's secure sum is not the sum"
            raise RuntimeError(msg)
        self._replies[lost] = recorded

    def _answer(self, stage: str, configs: ConfigRecord, node: int) -> RecordDict:
        state = self._states[node]
        if node == self._measured:
            self._before[stage] = deepcopy(state), ConfigRecord(dict(configs))
        if stage == Stage.SETUP:
            state.nid = node
            return _content(_setup(state, configs))
        if stage == Stage.SHARE_KEYS:
            return _content(_share_keys(state, configs))
        content = _content(
            _collect_masked_vectors(state, configs, _WEIGHT, self._trained(node))
        )
        # The mod sends the result of training along, without its arrays.
        empty = FitRes(Status(Code.OK, ""), Parameters([], ""), _WEIGHT, {})
        rest = compat.fitres_to_recorddict(empty, keep_input=True)
        rest.config_records[RECORD_KEY_CONFIGS] = content.config_records[
            RECORD_KEY_CONFIGS
        ]
        return rest

    def _trained(self, node: int) -> Parameters:
        return ndarrays_to_parameters([values(node - 1, self._dimension)])

    def _aggregate(self, grid: Any, clock: Stopwatch) -> np.ndarray:  # noqa: ANN401
        """The server's four stages; what it gave to its strategy."""
        given: list[Parameters] = []

        def aggregate(
            _round: int, results: list[tuple[object, FitRes]], _failures: object
        ) -> tuple[None, dict[str, object]]:
            given.append(results[0][1].parameters)
            return None, {}

        proxies = [SimpleNamespace(node_id=node) for node in self._nodes]
        empty = FitIns(Parameters([], ""), {})
        context = SimpleNamespace(
            state=RecordDict(),
            strategy=SimpleNamespace(
                configure_fit=lambda *_: [(proxy, empty) for proxy in proxies],
                aggregate_fit=aggregate,
            ),
            client_manager=SimpleNamespace(num_available=lambda: len(proxies)),
        )
        context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord(
            {WorkflowKey.CURRENT_ROUND: _ROUND}
        )
        context.state.array_records[MAIN_PARAMS_RECORD] = (
            compat.parameters_to_arrayrecord(Parameters([], ""), keep_input=True)
        )
        state = WorkflowState()
        for step, stage in _STAGES:
            with clock.of(step):
                going = getattr(self._workflow, stage)(grid, context, state)
            if not going:
                raise RuntimeError(stage)
        return parameters_to_ndarrays(given[0])[0]

    def client(self) -> Stopwatch:
        """Everything the measured client does in a round."""
        clock = Stopwatch()
        trained = self._trained(self._measured)
        before = deepcopy(self._before)
        with clock.of("keys"):
            _setup(*before[Stage.SETUP])
        with clock.of("shares"):
            _share_keys(*before[Stage.SHARE_KEYS])
        with clock.of("quantizing, masks, message"):
            state, configs = before[Stage.COLLECT_MASKED_VECTORS]
            _collect_masked_vectors(state, configs, _WEIGHT, trained)
        with clock.of("unmasking"):
            _unmask(*before[Stage.UNMASK])
        return clock

    def server(self, dropouts: int) -> Stopwatch:
        """Everything the server does in a round with so many vectors lost."""
        clock = Stopwatch()
        self._aggregate(_Ready(self._replies[dropouts]), clock)
        return clock

    def sizes(self) -> dict[str, int]:
        """Bytes of the masked vector, as the stage returns it."""
        replies = self._replies[min(self._replies)]
        configs = replies[Stage.COLLECT_MASKED_VECTORS][0].content.config_records
        parts = configs[RECORD_KEY_CONFIGS][Key.MASKED_PARAMETERS]
        return {"message_bytes": sum(len(part) for part in parts)}


def _content(result: dict[str, Any]) -> RecordDict:
    return RecordDict({RECORD_KEY_CONFIGS: ConfigRecord(result, keep_input=False)})


def open_side(request: dict[str, Any]) -> FlowerSide:
    """The round that a request describes."""
    return FlowerSide(**request)


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    serve(open_side)
