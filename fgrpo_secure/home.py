"""The folder of one party in a pilot: who it is, its keys, and where its files lie.

A home never leaves its machine. What other parties get of it are public keys.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import tomli_w

from fgrpo_secure.errors import ConfigurationError, StateError
from fgrpo_secure.secrets import (
    existing_identity,
    identity_key,
    private_directory,
    write_atomically,
)
from privacy.crypto import SigningKey, VerifyKey
from privacy.ledger import read_key_file
from privacy.ledger.durable import make_directory
from privacy.plan import SERVER

# What a run and a party may be called: folders go by it.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_KEY_SUFFIX = ".pub"
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_TEXTS = ("party", "role", "pilot", "host")
_PORTS = ("port", "admin_port")


class HomeRole(StrEnum):
    """What a party does in a pilot."""

    SITE = "site"
    SERVER = "server"
    LEAD = "lead"


@dataclass(frozen=True, slots=True)
class Home:
    """A party's home.

    Attributes:
        root: the folder.
        party: its name: a client's name in the plan, "server", or the lead's.
        role: what it does.
        pilot: the pilot's name.
        host: the name under which the sites reach the server.
        port: of the server, for everything.
        admin_port: of the server, for the lead's commands.
    """

    root: Path
    party: str
    role: HomeRole
    pilot: str
    host: str
    port: int
    admin_port: int

    @property
    def site_file(self) -> Path:
        """A site's own part of every agreement; its operator writes it."""
        return self.root / "site.toml"

    @property
    def server_file(self) -> Path:
        """The server's own settings; need not be there."""
        return self.root / "server.toml"

    @property
    def policy(self) -> Path:
        """The site's policy; no run is joined without one."""
        return self.root / "policy.toml"

    @property
    def state(self) -> Path:
        """Private state and ledgers, which outlive every run."""
        return self.root / "state"

    @property
    def private(self) -> Path:
        """Where this party's identity lies."""
        return self.state / self.party

    @property
    def keys(self) -> Path:
        """The pinned public keys of all sites and of the server."""
        return self.root / "keys"

    @property
    def kit(self) -> Path:
        """The engine's own workspace."""
        return self.root / "kit"

    @property
    def runs(self) -> Path:
        """The folders of the runs."""
        return self.root / "runs"

    @property
    def stop_file(self) -> Path:
        """While this file is there nothing is computed here."""
        return self.root / "stop"

    def run(self, name: str) -> Path:
        """The folder of one run.

        Raises:
            ConfigurationError: that is no name of a run.
        """
        return self.runs / check_name(name, "a run")

    def key_file(self, name: str) -> Path:
        """Where the pinned key of a party lies."""
        return self.keys / f"{check_name(name, 'a party')}{_KEY_SUFFIX}"

    def identity(self) -> SigningKey:
        """This party's Ed25519 key, which was made with the home.

        Raises:
            StateError: it is gone. A new one would be another party's.
        """
        if existing_identity(self.private) is None:
            raise StateError(
                f"The identity key of {self.party} is not in {self.private}.",
                "Restore the folder state/ from a backup; what the others pin is that "
                "key and no other.",
            )
        return identity_key(self.private)

    def roster(self) -> dict[str, VerifyKey]:
        """The pinned keys of the pilot, by party: every site, and the server.

        Raises:
            StateError: none are pinned yet, one is missing, or this party's own is
                another than it has.
        """
        found = {
            path.name.removesuffix(_KEY_SUFFIX): read_key_file(path)
            for path in sorted(self.keys.glob(f"*{_KEY_SUFFIX}"))
        }
        if SERVER not in found or (self.role is HomeRole.SITE) > (self.party in found):
            raise StateError(
                f"{self.keys} does not hold the keys of the pilot.",
                "Run `fgrpo pilot install` with the file that the lead sent back.",
            )
        own = found.get(self.party)
        if own is not None and own != existing_identity(self.private):
            raise StateError(
                f"{self.key_file(self.party)} is not the key that {self.party} has.",
                "Restore state/ and keys/ of this home from one backup.",
            )
        return found


def check_name(name: str, what: str) -> str:
    """A name that can be a folder's, and cannot lead out of one.

    Args:
        name: to be checked.
        what: it is to be the name of, with its article.

    Raises:
        ConfigurationError: it is none.
    """
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{name!r} is no name for {what}.",
            "Use letters, digits and ._-, at most 63 of them, a letter or digit first.",
        )
    return name


def make_home(home: Home) -> SigningKey:
    """Write a home that is not there yet, and make its identity.

    A home that was begun and is of the same party is finished, so that whoever was
    interrupted repeats the command.

    Returns:
        The party's identity.

    Raises:
        StateError: there is something else in the folder.
        ConfigurationError: a name in it cannot be one.
    """
    check_name(home.party, "a party")
    check_name(home.pilot, "a pilot")
    path = home.root / "home.toml"
    if path.exists():
        if open_home(home.root) != home:
            raise StateError(
                f"{home.root} is another party's home, or another pilot's.",
                "Choose another folder as --home.",
            )
    elif home.root.exists() and any(home.root.iterdir()):
        raise StateError(
            f"{home.root} is not empty and is no home.",
            "Choose a new folder as --home: nothing is written over other files.",
        )
    make_directory(home.root.parent)
    private_directory(home.root)
    private_directory(home.state)
    make_directory(home.keys)
    make_directory(home.runs)
    key = identity_key(home.private)
    text = tomli_w.dumps(
        {
            "party": home.party,
            "role": home.role.value,
            "pilot": home.pilot,
            "host": home.host,
            "port": home.port,
            "admin_port": home.admin_port,
        }
    )
    # Last, so that what calls itself a home has its key.
    write_atomically(path, text.encode())
    return key


def no_policy(home: Home) -> ConfigurationError:
    """What a site is told that has no policy."""
    return ConfigurationError(
        f"There is no policy {home.policy}, and without one nothing is joined.",
        f"Run `fgrpo site policy {home.root} RUN.toml` for a draft, and read it.",
    )


def open_home(root: Path) -> Home:
    """Read whose home a folder is; nothing is made or changed.

    Raises:
        StateError: it is no home, or other accounts may write in it.
    """
    root = root.resolve()
    path = root / "home.toml"
    try:
        tree = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise StateError(
            f"{root} is no home of a party in a pilot.",
            "Give the folder that `fgrpo pilot request --home` made.",
        ) from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError):
        raise _spoilt(path) from None
    _check_owned(root)
    _check_keys(path, tree, _TEXTS, str)
    _check_keys(path, tree, _PORTS, int)
    if tree["role"] not in set(HomeRole):
        raise _spoilt(path)
    return Home(
        root=root,
        party=check_name(tree["party"], "a party"),
        role=HomeRole(tree["role"]),
        pilot=check_name(tree["pilot"], "a pilot"),
        host=tree["host"],
        port=tree["port"],
        admin_port=tree["admin_port"],
    )


def _check_keys(
    path: Path, tree: dict[str, Any], names: Sequence[str], kind: type
) -> None:
    if set(tree) != {*_TEXTS, *_PORTS} or any(type(tree[n]) is not kind for n in names):
        raise _spoilt(path)


def _check_owned(root: Path) -> None:
    """Refuse a home in which another account could put other keys or another policy."""
    found = root.stat()
    if found.st_uid not in {0, os.geteuid()} or found.st_mode & _OTHERS_WRITE:
        raise StateError(
            f"{root} may be written by another account.",
            f"Run `chmod 700 {root}` as its owner, and use it by that account alone.",
        )


def _spoilt(path: Path) -> StateError:
    return StateError(
        f"{path} does not say whose home this is.",
        "Restore it from a backup; it is written once and never edited.",
    )
