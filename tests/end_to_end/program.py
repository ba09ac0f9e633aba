"""The program as a user starts it: configurations, processes, and a way to stop one.

A reward function can be made to stop at a gate, so that a test interrupts a run at a
known place and needs no sleep: the run waits for the test, or the test for the run.
"""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import tomli_w

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "fgrpo_secure" / "assets"
NAMES = ("count", "shift", "sort", "sums")
UNITS = 60
PATIENCE = 240

REWARDS = '''\
"""Reward functions of the tests."""

import os
import socket

BASE = {base!r}
RIGHT, WRONG = {right!r}, {wrong!r}


def exact(prompts, completions, answer, **columns):
    return [RIGHT if c.strip() == a else WRONG for c, a in zip(completions, answer)]


def gated(prompts, completions, answer, **columns):
    if os.path.exists(BASE + "/gate") and any(completions):
        with open(BASE + "/gate") as gate:
            keeper = socket.create_connection(("127.0.0.1", int(gate.read())))
        keeper.sendall(str(os.getpid()).encode())
        keeper.shutdown(socket.SHUT_WR)
        # Nobody ever answers: the run stands still until it is ended.
        keeper.recv(1)
    return exact(prompts, completions, answer)
'''

# Raw rewards that are easy to search for.
RIGHT, WRONG = 0.7318205, -0.4186937


def write_config(folder, *, names=NAMES, public=(), gated=None, **changes):
    """A small run in a folder: few units, the tiny model, rewards of its own.

    Args:
        folder: empty; `config.toml`, `data/` and `rewards.py` go there.
        names: the clients, each after its task.
        public: those with a public evaluation set.
        gated: the client whose reward stops at the gate, if there is one.
        **changes: sections, whose keys replace those of the embedded default.

    Returns:
        The path of the configuration.
    """
    (folder / "data").mkdir(parents=True)
    text = REWARDS.format(base=str(folder), right=RIGHT, wrong=WRONG)
    (folder / "rewards.py").write_text(text)
    tree = tomllib.loads((ASSETS / "tiny.toml").read_text("utf-8"))
    tree["model"]["base"] = str(ASSETS / "tiny")
    tree["privacy"] |= {"rounds": 2, "sampling_rate": 0.2}
    clients = []
    for name in names:
        for part, count in (("", UNITS), ("-heldout", 25)):
            # Several clients may have one task: "sums" and "sums-2".
            source = ASSETS / "data" / f"{name.partition('-')[0]}{part}.jsonl"
            rows = source.read_text("utf-8").splitlines()[:count]
            lines = [
                json.dumps(json.loads(row) | {"note": secret(name, number)})
                for number, row in enumerate(rows)
            ]
            target = folder / "data" / f"{name}{part}.jsonl"
            target.write_text("\n".join(lines) + "\n")
        clients.append(
            {
                "name": name,
                "data": f"data/{name}.jsonl",
                "reward": f"rewards.py:{'gated' if name == gated else 'exact'}",
                "reward_range": [WRONG, RIGHT],
            }
        )
        if name in public:
            heldout = {"eval_data": f"data/{name}-heldout.jsonl", "eval_public": True}
            clients[-1] |= heldout
    tree["client"] = clients
    for section, values in changes.items():
        tree.setdefault(section, {}).update(values)
    path = folder / "config.toml"
    path.write_text(tomli_w.dumps(tree))
    return path


def secret(name, number):
    """A column's value that must be found nowhere outside the private data."""
    return f"planted-{name}-{number:03d}-secret"


def _heed_interrupts():
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Program:
    """One process of the program, in a process group of its own.

    Args:
        folder: where it runs and where its output is kept.
        *arguments: of the command line.
    """

    def __init__(self, folder, *arguments):
        self.out, self.err = folder / "stdout", folder / "stderr"
        with self.out.open("w") as out, self.err.open("w") as err:
            # A shell that starts the tests in its background has them ignore Ctrl-C,
            # and the program would inherit that.
            self.process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", "fgrpo_secure", *map(str, arguments)],
                cwd=folder,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                preexec_fn=_heed_interrupts,  # noqa: PLW1509
            )

    def wait(self):
        """The exit status, once the program has ended by itself."""
        try:
            return self.process.wait(PATIENCE)
        finally:
            self.kill_all()

    def interrupt(self):
        """What Ctrl-C in a terminal does: every process of the group is told."""
        os.killpg(self.process.pid, signal.SIGINT)

    def kill_all(self):
        """Switch the machine off."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        finally:
            self.process.wait()

    @property
    def stdout(self):
        return self.out.read_text("utf-8")

    @property
    def stderr(self):
        return self.err.read_text("utf-8")


def environment():
    """This process's, with one thread, no network and this source tree."""
    own = {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
    }
    return {**os.environ, **own}


class Gate:
    """Where a gated reward stops.

    Args:
        folder: of the configuration.
    """

    def __init__(self, folder):
        # Whoever comes is queued here, whether or not the test waits already.
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(PATIENCE)
        self.visitors = []
        self.path = folder / "gate"
        self.path.write_text(str(self.listener.getsockname()[1]))

    def wait(self):
        """Wait until a reward stands at the gate; returns its process's id."""
        visitor, _ = self.listener.accept()
        visitor.settimeout(PATIENCE)
        self.visitors.append(visitor)
        with visitor.makefile("rb") as said:
            return int(said.read())

    def lift(self):
        """Let every later reward through; whoever stands here is not let go."""
        self.path.unlink()
        self.listener.close()


def records(path):
    """The records of a ledger file as JSON objects, unverified."""
    lines = Path(path).read_bytes().splitlines()
    return [json.loads(base64.b64decode(json.loads(line)["payload"])) for line in lines]


def kinds(path):
    return [record["kind"] for record in records(path)]
