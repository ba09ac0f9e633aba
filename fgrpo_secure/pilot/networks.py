"""A network of its own for each party on one machine, by Linux's namespaces.

Every site has one wire, to the server, and the server passes nothing on: sites reach
the server and not one another, as behind the firewalls of three institutions.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fgrpo_secure.errors import ConfigurationError
from fgrpo_secure.pilot.invitation import LEAD
from privacy.plan import SERVER

# The server's name in all of these networks.
HOST = "server.rehearsal.internal"
# A range for documents and tests, which no real network has (RFC 5737).
_SUBNET = "198.51.100"
# Ends with 0 where the machine at the address answers at all.
_REACHES = """\
import socket, sys
try:
    socket.create_connection((sys.argv[1], 9), 2).close()
except ConnectionRefusedError:
    pass
except OSError:
    sys.exit(1)
"""
_ETC = Path("/etc/netns")


@contextmanager
def networks(
    sites: Sequence[str], say: Callable[[str], None]
) -> Iterator[Callable[[str], Sequence[str]]]:
    """Make a namespace for the server and one for each other party.

    Yields:
        What goes before a party's command, to run it in its own network.

    Raises:
        ConfigurationError: this account or this machine cannot make them.
    """
    ip = shutil.which("ip", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if ip is None:
        raise ConfigurationError(
            "There is no command `ip`.", "Install iproute2 (Debian: apt install)."
        )
    if os.geteuid():
        raise ConfigurationError(
            "Only root can make network namespaces.",
            "Run it as root, or without --namespaces.",
        )
    prefix = f"fgrpo{os.getpid()}"
    names = {party: f"{prefix}-{at}" for at, party in enumerate([SERVER, *sites, LEAD])}

    def call(*words: str) -> None:
        done = subprocess.run(  # noqa: S603
            [ip, *words], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise ConfigurationError(
                f"`ip {' '.join(words)}` failed: {done.stderr.strip()}.",
                "A container needs the capability NET_ADMIN for it; run it on a "
                "machine, or without --namespaces.",
            )

    made: list[str] = []
    try:
        for party, name in names.items():
            call("netns", "add", name)
            made.append(name)
            call("-n", name, "link", "set", "lo", "up")
            if party != SERVER:
                _wire(call, names[SERVER], name, len(made))
            _hosts(name, "127.0.0.1" if party == SERVER else _address(len(made), 1))

        def within(party: str) -> Sequence[str]:
            return (ip, "netns", "exec", names[party])

        # A namespace may inherit from the machine that it passes packets on.
        forward = "echo 0 > /proc/sys/net/ipv4/ip_forward"
        call(*within(SERVER)[1:], "sh", "-c", forward)
        _check_apart([*sites, LEAD], within)
        say(
            f"networks: each of {len(sites)} sites reaches the server, and none another"
        )
        yield within
    finally:
        for name in made:
            subprocess.run([ip, "netns", "del", name], check=False)  # noqa: S603
            shutil.rmtree(_ETC / name, ignore_errors=True)


def _wire(call: Callable[..., None], server: str, name: str, number: int) -> None:
    """One wire with an address at each end, in a network of four."""
    here, there = (
        f"fg{os.getpid() % 10000}a{number}",
        f"fg{os.getpid() % 10000}b{number}",
    )
    call("link", "add", here, "netns", server, "type", "veth", "peer", there)
    call("link", "set", there, "netns", name)
    for namespace, link, end in ((server, here, 1), (name, there, 2)):
        address = f"{_address(number, end)}/30"
        call("-n", namespace, "address", "add", address, "dev", link)
        call("-n", namespace, "link", "set", link, "up")
    # A route to everybody: that nobody else is reached is the server's doing, which
    # passes nothing on.
    call("-n", name, "route", "add", "default", "via", _address(number, 1))


def _check_apart(
    parties: Sequence[str], within: Callable[[str], Sequence[str]]
) -> None:
    """See that each party reaches the server, and no party another.

    Nobody listens yet: a machine that is reached refuses, and of one that is not
    reached nothing comes back.

    Raises:
        ConfigurationError: it is not so.
    """
    tried = [
        (party, to, _address(number, end))
        # Numbers are those of the order in which the networks were made.
        for party in parties
        for to, number, end in [
            (SERVER, parties.index(party) + 2, 1),
            *((to, at + 2, 2) for at, to in enumerate(parties) if to != party),
        ]
    ]
    running = [
        subprocess.Popen(  # noqa: S603
            [*within(party), sys.executable, "-c", _REACHES, address]
        )
        for party, _, address in tried
    ]
    reached = [process.wait() == 0 for process in running]
    for (party, to, _), found in zip(tried, reached, strict=True):
        if found != (to == SERVER):
            raise ConfigurationError(
                f"In these networks {party} {'reaches' if found else 'misses'} {to}.",
                "See the machine's firewall and its network settings.",
            )


def _address(number: int, end: int) -> str:
    return f"{_SUBNET}.{4 * number + end}"


def _hosts(name: str, address: str) -> None:
    """What `ip netns exec` shows as /etc/hosts in that namespace."""
    folder = _ETC / name
    folder.mkdir(parents=True)
    (folder / "hosts").write_text(f"127.0.0.1 localhost\n{address} {HOST}\n")
