"""A pilot on this machine for tests: homes, one small agreement, processes, faults.

Everything that is started carries its home in its environment, and is ended by that,
also where a test fails. Logs lie in the homes, which pytest keeps.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from base64 import b64decode
from contextlib import contextmanager, suppress
from pathlib import Path

import tomli_w

from fgrpo_secure.agreement import read_agreement
from fgrpo_secure.config import load_config
from fgrpo_secure.home import Home, HomeRole, make_home, open_home
from fgrpo_secure.pilot import enrol, processes
from fgrpo_secure.pilot.rehearsal import provision_here
from privacy.ledger import write_key_file
from privacy.plan import SERVER
from tests.app.policies import allowing, write_policy
from tests.end_to_end.program import write_config

ROOT = Path(__file__).parents[2]
SITES = ("count", "sort", "sums")
LEAD = "lead"
PATIENCE = 400.0
RUN = "first"


def free_ports(count):
    """Ports of the loopback interface that nobody listens on now."""
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()


def records(path):
    """What a ledger says, line by line, as far as its lines are whole."""
    if not path.exists():
        return []
    lines = path.read_text("utf-8").splitlines()
    whole = [line for line in lines if line.endswith("}")]
    return [json.loads(b64decode(json.loads(line)["payload"])) for line in whole]


class Stage:
    """The homes of a pilot, and what its parties agree on.

    Args:
        folder: empty.
        sites: each after its task.
        public: those with a public evaluation set.
        enrolled: whether the engine's kits are made too, which takes its program.
        own: of `[machine]` at the server and the sites.
        life: how often a data set may be used for this agreement.
        **changes: sections of the agreement.
    """

    def __init__(
        self,
        folder,
        sites=SITES,
        public=SITES,
        enrolled=False,
        own=None,
        life=1,
        **changes,
    ):
        self.folder = folder
        self.sites = tuple(sorted(sites))
        self.homes = folder / "pilot" / "homes"
        path = write_config(folder / "given", names=sites, public=public, **changes)
        tree = tomllib.loads(path.read_text("utf-8"))
        self.local_config = path
        self._make_homes(enrolled)
        own = {"deadline_seconds": 120.0, "microbatch": 16} | (own or {})
        shared = {name: value for name, value in tree.items() if name != "machine"}
        shared["model"] = shared["model"] | {"base": "embedded:tiny"}
        shared["client"] = [
            {
                "name": client["name"],
                "units": 60,
                "reward": client["reward"].rpartition(":")[2],
                "reward_range": client["reward_range"],
            }
            for client in tree["client"]
        ]
        self.agreement = folder / "RUN.toml"
        self.agreement.write_text(tomli_w.dumps(shared))
        cap = {"epsilon_cap": life * tree["privacy"]["epsilon"]} if life > 1 else {}
        for client in tree["client"]:
            home = self.home(client["name"])
            given = folder / "given"
            table = {
                "data": str(given / client["data"]),
                "reward": client["reward"].replace("rewards.py", f"{given}/rewards.py"),
            } | cap
            if "eval_data" in client:
                table["eval_data"] = str(given / client["eval_data"])
                table["eval_public"] = True
            text = tomli_w.dumps({"client": table, "machine": own})
            home.site_file.write_text(text)
            config = read_agreement(self.text).to_propose(home)
            tables = allowing(config, home.party)
            tables["plan"]["least_clients"] = config.federation.min_survivors
            tables["data_set"][0]["delta_for_life"] *= life
            write_policy(home.policy, tables)
        self.home(SERVER).server_file.write_text(tomli_w.dumps({"machine": own}))

    @property
    def text(self):
        """The agreement."""
        return self.agreement.read_text("utf-8")

    def home(self, party):
        """A party's home."""
        return open_home(self.homes / party)

    def plan(self):
        """The plan that the agreement makes."""
        from fgrpo_secure.preparation import make_plan

        home = self.home(SERVER)
        return make_plan(read_agreement(self.text).at_server(home))[0]

    def local_plan(self):
        """The plan of the same terms where all data are on one machine."""
        from fgrpo_secure.preparation import make_plan

        return make_plan(load_config(str(self.local_config), ())[0])[0]

    def site_log(self, site):
        """What a site's own process noted."""
        path = self.home(site).private / "site.log"
        return path.read_text("utf-8") if path.exists() else ""

    def engine_log(self, party):
        """What the engine noted at a party."""
        path = self.home(party).kit / "log.txt"
        return path.read_text("utf-8") if path.exists() else ""

    def server_ledger(self, run=RUN):
        """The records of the server's ledger so far."""
        return records(self.home(SERVER).run(run) / "ledger" / "server.jsonl")

    def _make_homes(self, enrolled):
        port, admin = free_ports(2)
        if enrolled:
            text = {
                "pilot": {"name": "trial"},
                "server": {"host": "localhost", "port": port, "admin_port": admin},
                "site": [{"name": site} for site in self.sites],
                "lead": {"mail": "lead@example.org"},
            }
            pilot_file = self.folder / "PILOT.toml"
            pilot_file.write_text(tomli_w.dumps(text))
            pilot = enrol.init_pilot(pilot_file, self.folder / "pilot")
            provision_here(pilot, self.homes)
            return
        roles = dict.fromkeys(self.sites, HomeRole.SITE)
        roles |= {SERVER: HomeRole.SERVER, LEAD: HomeRole.LEAD}
        keys = {
            party: make_home(
                Home(self.homes / party, party, role, "trial", "localhost", port, admin)
            ).verify_key
            for party, role in roles.items()
        }
        for party in roles:
            for name in (*self.sites, SERVER):
                write_key_file(self.home(party).key_file(name), keys[name])


def fgrpo(*words, check=True, timeout=PATIENCE):
    """Run a command of the program."""
    return subprocess.run(  # noqa: S603
        [sys.executable, "-m", "fgrpo_secure", *map(str, words)],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=check,
    )


def environment():
    """Of processes that tests start: they find this checkout."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return dict(os.environ) | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


class Cast:
    """The processes of a stage."""

    def __init__(self, stage):
        self.stage = stage

    def start(self, party):
        """Start a party's engine, as its operator does."""
        home = self.stage.home(party)
        words = ["site", "start"] if home.role is HomeRole.SITE else ["pilot", "serve"]
        fgrpo(*words, home.root, "--background")
        if party == SERVER:
            until(lambda: _listens(home.port) and _listens(home.admin_port))

    def start_all(self):
        """Start everybody."""
        for party in (SERVER, *self.stage.sites):
            self.start(party)

    def submit(self, run=RUN):
        """Submit a run as the lead; it is followed by a process of its own."""
        return subprocess.Popen(  # noqa: S603
            [
                *(sys.executable, "-m", "fgrpo_secure", "pilot", "submit"),
                *(str(self.stage.agreement), "--name", run),
                *("--home", str(self.stage.homes / LEAD)),
            ],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def kill(self, party):
        """Kill everything that a party runs, as a machine that loses its power."""
        home = self.stage.home(party)
        supervisor = processes.look(home).supervisor
        for process in [supervisor, *processes.processes(home)]:
            if process is not None:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        until(lambda: not processes.processes(home))

    def trainer(self, site):
        """The process that learns at a site, where there is one."""
        for process in processes.processes(self.stage.home(site)):
            with suppress(OSError):
                line = Path(f"/proc/{process}/cmdline").read_bytes()
                if b"fgrpo_secure.runtime.training" in line:
                    return process
        return None

    def end(self):
        """End everything."""
        for party in (*self.stage.sites, SERVER):
            with suppress(Exception):
                processes.stop(self.stage.home(party))
            self.kill(party)


@contextmanager
def playing(stage):
    """The processes of a stage; the block ends them."""
    cast = Cast(stage)
    try:
        yield cast
    finally:
        cast.end()


def until(condition, seconds=PATIENCE):
    """Wait for what processes bring about."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.05)


def _listens(port):
    with socket.socket() as found:
        found.settimeout(1)
        return found.connect_ex(("127.0.0.1", port)) == 0


class Cable:
    """What lies between a site and the server: a relay that can be cut.

    Args:
        port: of the server.
    """

    def __init__(self, port):
        self._server = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._is_cut = False
        self._ends = []
        threading.Thread(target=self._serve, daemon=True).start()

    def cut(self):
        """Cut it: connections end, and new ones are refused at once."""
        self._is_cut = True
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._ends.clear()

    def mend(self):
        """Mend it."""
        self._is_cut = False

    def close(self):
        """Take it away."""
        self.cut()
        self._listener.close()

    def _serve(self):
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._is_cut:
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._server), 5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            self._ends += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=_pour, args=(one, other), daemon=True).start()


def _pour(one, other):
    with suppress(OSError):
        while data := one.recv(2**16):
            other.sendall(data)
    for end in (one, other):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
            end.close()


def wire(stage, site, cable):
    """Have a site reach the server over a cable."""
    path = stage.home(site).kit / "startup" / "fed_client.json"
    tree = json.loads(path.read_text("utf-8"))
    tree["servers"][0]["service"]["target"] = f"localhost:{cable.port}"
    path.chmod(0o600)
    path.write_text(json.dumps(tree))
