"""A whole pilot on one machine: every home, a server, three sites, one short run.

What one person does at one keyboard here is what five do on five machines: the same
commands, files and checks, but for the fingerprints, which nobody has to compare with.
Each party has a home of its own, and with namespaces a network of its own too.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from fgrpo_secure.errors import ConfigurationError, StateError
from fgrpo_secure.home import Home, open_home
from fgrpo_secure.pilot import commands, enrol, processes
from fgrpo_secure.pilot.enrol import Pilot
from fgrpo_secure.pilot.invitation import LEAD, Cohort
from fgrpo_secure.pilot.networks import HOST, networks
from fgrpo_secure.secrets import private_directory, write_atomically
from privacy.plan import SERVER

# Three of the embedded tasks, as three sites: name, reward's range.
SITES = {"sums": "[0.0, 10.0]", "sort": "[0.0, 1.0]", "count": "[-1.0, 1.0]"}
_RUN = "rehearsal"
_ROUNDS = 3
_PILOT = """\
# A pilot of which all parties are on this machine.

[pilot]
name = "rehearsal"

[server]
host = "{host}"     # The name by which all reach the server, as its certificate says.
port = {port}
admin_port = {admin_port}

{sites}
[lead]
mail = "lead@rehearsal.example"
"""
_AGREEMENT = """\
# What all parties share of a run: no path, no data, nothing of any machine.

[privacy]
unit = "prompt"
trust = "distributed"
epsilon = 8.0
delta = 1e-5
rounds = {rounds}
sampling_rate = 0.06
clip_norm = 0.1
statistic_multiplier = 5.0

[federation]
min_survivors = 3
colluders = 1

{clients}
[model]
base = "embedded:tiny"
target_modules = ["o_proj", "down_proj"]

[grpo]
group_size = 4
max_tokens = 4
max_prompt_tokens = 11

[aggregation]
max_weight_ratio = 2.0

[server]
learning_rate = 0.05
betas = [0.5, 0.99]
"""
_CLIENT = """\
[[client]]
name = "{name}"
units = 3000
reward = "{name}"
reward_range = {range}

"""
_SITE = """\
[client]
data = "{assets}/data/{name}.jsonl"
eval_data = "{assets}/data/{name}-heldout.jsonl"
eval_public = true            # These prompts are made up.
reward = "fgrpo_secure.assets.rewards:{name}"

[machine]
microbatch = 32
"""


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """A folder with all parties of a pilot.

    Attributes:
        folder: the folder.
        say: is told what happens.
        within: what goes before a party's commands, to run them in its own network.
    """

    folder: Path
    say: Callable[[str], None]
    within: Callable[[str], Sequence[str]]

    @property
    def agreement(self) -> Path:
        """What the run is to be."""
        return self.folder / "rehearsal.toml"

    @property
    def output(self) -> Path:
        """Where the finished run is collected."""
        return self.folder / "run"

    def root(self, party: str) -> Path:
        """The home of a party."""
        return self.folder / "pilot" / "homes" / party

    def home(self, party: str) -> Home:
        """The home of a party, read."""
        return open_home(self.root(party))

    def command(self, party: str, *words: str | Path) -> None:
        """Run a command of `fgrpo` as a party does, with its output on this screen.

        Raises:
            StateError: it failed.
        """
        shown = " ".join(str(word) for word in words)
        self.say(f"[{party}] fgrpo {shown}")
        line = [*self.within(party), sys.executable, "-m", "fgrpo_secure"]
        done = subprocess.run(  # noqa: S603
            [*line, *map(str, words)],
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            check=False,
        )
        if done.returncode:
            raise StateError(
                f"fgrpo {shown} ended with status {done.returncode}.",
                f"What is above says why; {self.folder} stays as it is.",
            )


def rehearse(
    folder: Path, say: Callable[[str], None], *, namespaces: bool = False
) -> Path:
    """Play a whole pilot; returns the path of the run's summary.

    Everything that was started is stopped, however it ends.

    Args:
        folder: new; or that of a rehearsal which did not end, which goes on.
        say: is told what happens.
        namespaces: give each party a network of its own.

    Raises:
        ConfigurationError: the folder is something else, or namespaces cannot be made.
        FgrpoError: a step failed.
    """
    folder = folder.resolve()
    summary = folder / "run" / "summary.json"
    if summary.exists():
        raise ConfigurationError(
            f"{folder} holds a rehearsal that has ended.",
            "Choose another folder, or remove it.",
        )
    pilot_file = folder / "PILOT.toml"
    if folder.exists() and any(folder.iterdir()) and not pilot_file.exists():
        raise ConfigurationError(
            f"{folder} is not empty and is no rehearsal.", "Choose a new folder."
        )
    private_directory(folder)
    if not pilot_file.exists():
        write_atomically(pilot_file, _pilot_text(namespaces=namespaces).encode())
    with networks(list(SITES), say) if namespaces else _one_network() as within:
        rehearsal = Rehearsal(folder, say, within)
        provision(rehearsal)
        with running(rehearsal, [SERVER, *SITES]):
            rehearsal.command(
                LEAD, "pilot", "submit", rehearsal.agreement, *_lead(rehearsal)
            )
            rehearsal.command(
                *(LEAD, "pilot", "collect", _RUN),
                *(*_lead(rehearsal), "--output", rehearsal.output),
            )
    return summary


def provision(rehearsal: Rehearsal) -> None:
    """Make every home, and write what its operator would; may be repeated."""
    folder = rehearsal.folder
    pilot = enrol.init_pilot(folder / "PILOT.toml", folder / "pilot")
    cohort = provision_here(pilot, folder / "pilot" / "homes")
    rehearsal.say(f"cohort {cohort.fingerprint}")
    clients = "".join(
        _CLIENT.format(name=name, range=span) for name, span in SITES.items()
    )
    agreement = _AGREEMENT.format(rounds=_ROUNDS, clients=clients)
    write_atomically(rehearsal.agreement, agreement.encode())
    digest = _plan_digest(rehearsal)
    assets = resources.files("fgrpo_secure") / "assets"
    for name in SITES:
        home = rehearsal.home(name)
        if home.policy.exists():
            continue
        text = _SITE.format(assets=assets, name=name)
        write_atomically(home.site_file, text.encode(), private=True)
        rehearsal.say(f"[{name}] fgrpo site policy, then fgrpo site approve")
        asked = argparse.Namespace(
            home=home.root, agreement=rehearsal.agreement, digest=digest, json=False
        )
        # In this process: two more for each site would load the libraries anew.
        with contextlib.redirect_stdout(sys.stderr):
            commands.site_policy(asked)
            refused = commands.site_approve(asked)
        if refused:
            raise StateError(
                f"The policy of {name} does not allow the rehearsal.",
                "What is above says why.",
            )


def provision_here(pilot: Pilot, homes: Path) -> Cohort:
    """Make every party's home on this machine; may be repeated.

    Raises:
        FgrpoError: as enrolment raises it.
    """
    requests = []
    for party in pilot.invitation.parties:
        enrol.request_admission(pilot.invitation, homes / party, party)
        requests.append(homes / party / f"{party}.request.json")
    cohort = enrol.approve_requests(pilot, requests, lambda _request, _shown: True)
    if cohort is None:
        msg = "every party asked, and yet not all are approved"
        raise RuntimeError(msg)
    for party in pilot.invitation.parties:
        enrol.install(pilot.admission_file(party), homes / party, cohort.fingerprint)
    return cohort


@contextlib.contextmanager
def running(rehearsal: Rehearsal, parties: Sequence[str]) -> Iterator[None]:
    """Start parties in the background; the block ends them, however it ends."""
    started: list[Home] = []
    try:
        for party in parties:
            home = rehearsal.home(party)
            started.append(home)
            processes.start_in_background(home, rehearsal.within(party))
            rehearsal.say(f"[{party}] runs")
            if party == SERVER:
                _await_listening(rehearsal)
        yield
    finally:
        # Sites first: a server that goes would have them try to reach it.
        for home in reversed(started):
            processes.stop(home)
            rehearsal.say(f"[{home.party}] stopped")


def _lead(rehearsal: Rehearsal) -> tuple[str | Path, ...]:
    return ("--home", rehearsal.root(LEAD))


def _plan_digest(rehearsal: Rehearsal) -> str:
    """What an operator reads on the screen, and types."""
    from fgrpo_secure.pilot.jobs import prepare  # noqa: PLC0415

    text = rehearsal.agreement.read_text("utf-8")
    return prepare(rehearsal.home(LEAD), text, _RUN)[2].digest


def _pilot_text(*, namespaces: bool) -> str:
    port, admin_port = (8002, 8003) if namespaces else _free_ports()
    return _PILOT.format(
        host=HOST if namespaces else "localhost",
        port=port,
        admin_port=admin_port,
        sites="".join(f'[[site]]\nname = "{name}"\n\n' for name in SITES),
    )


def _free_ports() -> tuple[int, int]:
    """Two ports that nobody listens on, so that rehearsals do not meet."""
    with socket.socket() as one, socket.socket() as other:
        for found in (one, other):
            found.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


@contextlib.contextmanager
def _one_network() -> Iterator[Callable[[str], Sequence[str]]]:
    yield lambda _party: ()


def _await_listening(rehearsal: Rehearsal) -> None:
    """Wait until the server's engine takes connections.

    A site that comes first tries again by itself, but only after a while.
    """
    home = rehearsal.home(SERVER)
    code = (
        "import socket,sys;"
        "socket.create_connection((sys.argv[1],int(sys.argv[2])),2).close()"
    )
    line = [*rehearsal.within(LEAD), sys.executable, "-c", code]
    end = time.monotonic() + _LISTENING_SECONDS
    while time.monotonic() < end:
        done = subprocess.run(  # noqa: S603
            [*line, home.host, str(home.admin_port)],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=dict(os.environ),
            check=False,
        )
        if not done.returncode:
            return
        time.sleep(0.5)
    raise StateError(
        "The server does not take connections.",
        f"{home.kit / 'log.txt'} says why.",
    )


_LISTENING_SECONDS = 60.0
