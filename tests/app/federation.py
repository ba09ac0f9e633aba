"""All parties of a run in one process, with an exchange that tests can get between."""

import json
import os

# As in the learning tests: read by the library when it is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch

from fgrpo_secure.admission import site_rules
from fgrpo_secure.budget import open_client_ledger
from fgrpo_secure.checkpoint import Checkpoint, write_checkpoint
from fgrpo_secure.client import Client
from fgrpo_secure.cohort import Cohort
from fgrpo_secure.config import load_config
from fgrpo_secure.errors import FgrpoError
from fgrpo_secure.folders import RunFolder
from fgrpo_secure.grpo import adapter
from fgrpo_secure.learner import Learner
from fgrpo_secure.preparation import make_plan
from fgrpo_secure.secrets import identity_key, private_directory
from fgrpo_secure.server import Server
from fgrpo_secure.server_optimizer import OptimizerState
from fgrpo_secure.task import load_run_policy, load_task
from privacy.errors import PrivacyError
from privacy.ledger import Ledger, Role, ServerOpened, write_key_file
from privacy.plan import SERVER
from privacy.wire import canonical_json
from tests.end_to_end.program import NAMES, records, write_config

RUN = bytes(range(16))
PHASES = ("offer", "roster", "shares", "survivors", "quorum", "published")
# Every unit is drawn, so that a test knows which; the price does not matter here.
ALL_DRAWN = {"privacy": {"sampling_rate": 1, "epsilon": 50, "rounds": 3}}
SMALL = {
    "machine": {"microbatch": 4},
    "model": {"layers": [1]},
    "grpo": {"group_size": 4, "max_tokens": 3, "max_prompt_tokens": 16},
}


class Crash(BaseException):
    """The process dies here."""


class Direct:
    """Hands each phase to the clients of this process.

    Attributes:
        lost: (phase, client) of answers that never arrive.
        unreached: (phase, client) of messages that never arrive.
        crash: the phase at whose beginning the server's process dies.
        altered: (phase, client) -> function of the bytes that the client receives.
        sent: every (phase, client, bytes) that a client received.
        errors: (phase, client) -> what a client refused with.
    """

    def __init__(self, clients):
        self.clients = clients
        self.lost, self.unreached, self.altered = set(), set(), {}
        self.crash = None
        self.sent, self.errors = [], {}

    def exchange(self, phase, messages, deadline):
        if phase == self.crash:
            raise Crash
        answers = {}
        for name, payload in messages.items():
            if (phase, name) in self.unreached:
                continue
            change = self.altered.get((phase, name), lambda data: data)
            received = change(payload)
            self.sent.append((phase, name, received))
            try:
                answer = self.clients[name].handle(phase, received)
            except (PrivacyError, FgrpoError) as error:
                self.errors[phase, name] = error
                continue
            if (phase, name) not in self.lost:
                answers[name] = answer
        return answers

    def payloads(self, phase, name=None):
        """What was received in a phase, by everybody or by one client."""
        return [
            data
            for sent, who, data in self.sent
            if sent == phase and name in {None, who}
        ]


def edit_rows(path, edit):
    """Change the rows of a JSONL file in place."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in edit(rows)))


class Federation:
    """A server and its clients over a folder.

    Args:
        folder: empty.
        units: how many units each client keeps of its file.
        edits: by client, a function of its rows that gives the rows it has instead.
        overrides: of the configuration, as on the command line.
        **settings: as `write_config` takes them.
    """

    def __init__(
        self, folder, *, units=6, names=NAMES, edits=None, overrides=(), **settings
    ):
        merged = {section: dict(values) for section, values in SMALL.items()}
        for section, values in ({**ALL_DRAWN, **settings}).items():
            if isinstance(values, dict):
                merged[section] = merged.get(section, {}) | values
            else:
                merged[section] = values
        path = write_config(folder / "given", names=names, **merged)
        for name in names:
            edit = (edits or {}).get(name, lambda rows: rows)
            edit_rows(
                folder / f"given/data/{name}.jsonl",
                lambda rows, edit=edit: edit(rows[:units]),
            )
        torch.set_num_threads(1)
        self.config, _ = load_config(str(path), overrides)
        self.plan, self.policy = make_plan(self.config)
        self.root = folder / "run"
        for place in ("", "ledger", "keys"):
            (self.root / place).mkdir()
        (self.root / "plan.json").write_bytes(canonical_json(self.plan.to_json()))
        self.folder = RunFolder.of(self.root, self.config)
        self.names = [client.name for client in self.plan.clients]
        self.private = private_directory(self.root / SERVER)
        private_directory(self.folder.store)
        self.keys = {SERVER: identity_key(self.private)}
        for name in self.names:
            self.keys[name] = identity_key(self.folder.private(name))
        for name, key in self.keys.items():
            write_key_file(self.folder.key(name), key.verify_key)
        self.roster = self.folder.roster(self.plan)
        self._begin()
        self.site_policy = load_run_policy(self.config)
        self.tasks = {
            name: load_task(
                self.config, self.config.client_named(name), self.site_policy
            )
            for name in self.names
        }
        self.ledgers = {}
        self.exchange = Direct({name: self.open_client(name) for name in self.names})
        self.server = self.open_server()

    def _begin(self):
        """The server's ledger and first checkpoint; its adapter is not zero."""
        model = self.policy.model
        generator = np.random.Generator(np.random.PCG64(3))
        size = adapter.read_vector(model).size
        adapter.write_vector(model, 0.02 * generator.standard_normal(size))
        start = Checkpoint(adapter.to_bytes(model), OptimizerState.fresh(size))
        write_checkpoint(self.private, None, start)
        path, key = self.folder.ledger(SERVER), self.keys[SERVER]
        with Ledger.open(path, key, party=SERVER, role=Role.SERVER) as ledger:
            ledger.append(
                ServerOpened(
                    run=RUN,
                    software="tests",
                    plan=self.plan.to_json(),
                    plan_digest=self.plan.digest_bytes,
                    roster={name: key.raw for name, key in self.roster.items()},
                )
            )

    def open_server(self):
        """The server as a process that has just started finds it."""
        key = self.keys[SERVER]
        path = self.folder.ledger(SERVER)
        self.ledgers[SERVER] = Ledger.open(path, key, party=SERVER, role=Role.SERVER)
        cohort = Cohort(
            plan=self.plan,
            ledger=self.ledgers[SERVER],
            key=key,
            roster=self.roster,
            deadline=60.0,
        )
        server = Server(
            cohorts=[cohort],
            policy=self.policy,
            settings=self.config.server,
            folder=self.private,
        )
        server.recover()
        return server

    def open_client(self, name):
        """A client as a process that has just started finds it."""
        key = self.keys[name]
        self.ledgers[name] = open_client_ledger(
            self.config, self.plan, self.folder, name, key, RUN
        )
        learner = Learner(
            plan=self.plan,
            name=name,
            task=self.tasks[name],
            policy=self.site_policy,
            folder=self.client_folder(name),
        )
        rules = site_rules(self.config, self.plan, self.folder, [name])
        return Client(
            plan=self.plan,
            name=name,
            learner=learner,
            policy=self.site_policy,
            ledger=self.ledgers[name],
            key=key,
            roster=self.roster,
            federation=RUN.hex(),
            rules=rules.get(name),
        )

    def client_folder(self, name):
        """What a client remembers of this run."""
        return private_directory(self.folder.private(name) / "run")

    def restart_server(self):
        self.ledgers[SERVER].close()
        self.exchange.crash = None
        self.server = self.open_server()
        return self.server

    def restart_client(self, name):
        self.ledgers[name].close()
        self.exchange.clients[name] = self.open_client(name)

    def round(self, number):
        return self.server.run_round(self.exchange, number)

    def close(self):
        for ledger in self.ledgers.values():
            ledger.close()

    def records(self, party):
        if party == SERVER:
            return records(self.folder.ledger(party))
        return records(self.folder.own_ledger(party))

    def kinds(self, party):
        return [record["kind"] for record in self.records(party)]

    def last(self, party, kind):
        return [record for record in self.records(party) if record["kind"] == kind][-1]
