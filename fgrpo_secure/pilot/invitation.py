"""The files that the parties of a pilot send one another, and their fingerprints.

    PILOT.toml    who takes part; the lead writes it
    invitation    what every party needs to begin: names, the server's address
    request       a party's public keys: of its identity, and for the engine's TLS
    admission     what comes back: the cohort, and the engine's certificate

None holds a secret. Each is one text of canonical JSON, which has one fingerprint, and
people compare fingerprints over a way that whoever carries the files does not control.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from fgrpo_secure.config import Section, read_tree, section_keys
from fgrpo_secure.errors import ConfigurationError
from fgrpo_secure.explanations import Guide, explain
from fgrpo_secure.home import HomeRole
from privacy.crypto import VerifyKey
from privacy.errors import PrivacyError
from privacy.plan import MIN_CLIENTS, SERVER
from privacy.wire import Json, canonical_json, parse_canonical_json

LEAD = "lead"
GUIDE = Guide("docs/pilot.md", "fgrpo pilot rehearse", frozenset({"site"}))
_FORMAT = "fgrpo-secure/pilot/1"
_MOST_BYTES = 2**20
# What the engine takes as a name of a client, and what it takes as one of a host.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_HOST = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")
_MAIL = re.compile(r"[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,}")
_ROOT = re.compile(r"SHA256(:[0-9A-F]{2}){32}")


class _PilotSection(Section):
    name: str


class _ServerSection(Section):
    host: str
    port: Annotated[int, Field(ge=1, le=65535)] = 8002
    admin_port: Annotated[int, Field(ge=1, le=65535)] = 8003


class _SiteSection(Section):
    name: str


class _LeadSection(Section):
    mail: str


class PilotFile(Section):
    """PILOT.toml: who takes part, and where the server is."""

    pilot: _PilotSection
    server: _ServerSection
    site: tuple[_SiteSection, ...]
    lead: _LeadSection

    @model_validator(mode="after")
    def _names_can_be_names(self) -> Self:
        names = [site.name for site in self.site]
        for name in (self.pilot.name, *names):
            if not _NAME.fullmatch(name):
                msg = (
                    f"{name!r} is no name; use letters, digits and _-, at most 63 of "
                    "them, a letter or digit first"
                )
                raise ValueError(msg)
        if len({name.casefold() for name in names}) < len(names):
            msg = "two sites have one name; give each its own, whatever the case"
            raise ValueError(msg)
        for name in names:
            if name.casefold() in {SERVER, LEAD, self.server.host.casefold()}:
                msg = f"{name} is the name of another party; call the site otherwise"
                raise ValueError(msg)
        if len(names) < MIN_CLIENTS:
            msg = f"there are {len(names)} sites; name at least {MIN_CLIENTS}"
            raise ValueError(msg)
        if not _HOST.fullmatch(self.server.host):
            msg = "host is no host name; write the name that the sites reach it by"
            raise ValueError(msg)
        if self.server.port == self.server.admin_port:
            msg = "port and admin_port are equal; give each its own"
            raise ValueError(msg)
        if not _MAIL.fullmatch(self.lead.mail):
            msg = "mail is no mail address; write the lead's"
            raise ValueError(msg)
        return self


@dataclass(frozen=True, slots=True)
class Invitation:
    """What every party of a pilot begins with.

    Attributes:
        pilot: its name.
        host: the name by which the server is reached.
        port: of the server, for the sites and the lead.
        admin_port: of the server, for the lead.
        sites: names of the sites, sorted.
        mail: the lead's, by which the engine knows who submits.
    """

    pilot: str
    host: str
    port: int
    admin_port: int
    sites: tuple[str, ...]
    mail: str

    @classmethod
    def of(cls, found: PilotFile) -> Invitation:
        """The invitation of a PILOT.toml."""
        return cls(
            pilot=found.pilot.name,
            host=found.server.host,
            port=found.server.port,
            admin_port=found.server.admin_port,
            sites=tuple(sorted(site.name for site in found.site)),
            mail=found.lead.mail,
        )

    @property
    def parties(self) -> tuple[str, ...]:
        """Everybody: the sites, the server and the lead."""
        return (*self.sites, SERVER, LEAD)

    def role(self, party: str) -> HomeRole:
        """What a party does.

        Raises:
            ConfigurationError: there is no such party.
        """
        if party in self.sites:
            return HomeRole.SITE
        if party in {SERVER, LEAD}:
            return HomeRole(party)
        raise ConfigurationError(
            f"There is no party {party} in this pilot.",
            f"Its parties are {', '.join(self.parties)}.",
        )

    def engine_name(self, party: str) -> str:
        """What the engine calls a party: the server by its host, the lead by mail."""
        return {SERVER: self.host, LEAD: self.mail}.get(party, party)

    def to_json(self) -> dict[str, Json]:
        """The fields, for the files that hold them."""
        return {
            "pilot": self.pilot,
            "host": self.host,
            "port": self.port,
            "admin_port": self.admin_port,
            "sites": list(self.sites),
            "mail": self.mail,
        }

    def to_bytes(self) -> bytes:
        """The file."""
        return _written("invitation", self.to_json())

    @classmethod
    def from_bytes(cls, data: bytes, source: str) -> Invitation:
        """Read the file.

        Raises:
            ConfigurationError: it is none, or names what cannot be named.
        """
        return cls.from_json(_read(data, "invitation", source), source)

    @classmethod
    def from_json(cls, tree: Mapping[str, Any], source: str) -> Invitation:
        """Read the fields.

        Raises:
            ConfigurationError: as `from_bytes` raises it.
        """
        sites = tree.get("sites")
        if set(tree) != set(cls.__slots__) or not isinstance(sites, list):
            raise _spoilt(source, "invitation")
        try:
            # The same rules as of the lead's own file: it comes from elsewhere.
            found = PilotFile.model_validate(
                {
                    "pilot": {"name": tree["pilot"]},
                    "server": {key: tree[key] for key in _ServerSection.model_fields},
                    "site": [{"name": name} for name in sites],
                    "lead": {"mail": tree["mail"]},
                }
            )
        except ValidationError:
            raise _spoilt(source, "invitation") from None
        return cls.of(found)


@dataclass(frozen=True, slots=True)
class Request:
    """A party's public keys, for the lead.

    Attributes:
        pilot: the pilot's name.
        party: whose they are.
        identity: the Ed25519 key by which the other parties will know it.
        engine: the engine's own request, a certificate signing request in a zip file.
    """

    pilot: str
    party: str
    identity: VerifyKey
    engine: bytes

    def to_bytes(self) -> bytes:
        """The file."""
        return _written(
            "request",
            {
                "pilot": self.pilot,
                "party": self.party,
                "identity": self.identity.raw.hex(),
                "engine": base64.b64encode(self.engine).decode(),
            },
        )

    @classmethod
    def from_bytes(cls, data: bytes, source: str) -> Request:
        """Read the file.

        Raises:
            ConfigurationError: it is none.
        """
        tree = _read(data, "request", source)
        try:
            return cls(
                pilot=_text(tree["pilot"]),
                party=_text(tree["party"]),
                identity=VerifyKey(bytes.fromhex(_text(tree["identity"]))),
                engine=_base64(tree["engine"]),
            )
        except (KeyError, ValueError, PrivacyError):
            raise _spoilt(source, "request") from None


@dataclass(frozen=True, slots=True)
class Cohort:
    """Who is who in a pilot: what all its people compare.

    Attributes:
        invitation: names and addresses.
        root: fingerprint of the engine's root certificate.
        keys: the identity of every site and of the server.
    """

    invitation: Invitation
    root: str
    keys: Mapping[str, VerifyKey]

    @property
    def fingerprint(self) -> str:
        """By which two people tell that they have the same cohort."""
        return fingerprint(canonical_json(self.to_json()))

    def to_json(self) -> dict[str, Json]:
        """The fields, for the files that hold them."""
        return {
            "invitation": self.invitation.to_json(),
            "root": self.root,
            "keys": {name: key.raw.hex() for name, key in self.keys.items()},
        }

    @classmethod
    def from_json(cls, tree: Any, source: str) -> Cohort:  # noqa: ANN401
        """Read the fields.

        Raises:
            ConfigurationError: they are no cohort, or not of all parties.
        """
        try:
            invitation = Invitation.from_json(tree["invitation"], source)
            keys = {
                name: VerifyKey(bytes.fromhex(_text(raw)))
                for name, raw in tree["keys"].items()
            }
            root = _text(tree["root"])
        except (KeyError, TypeError, AttributeError, ValueError, PrivacyError):
            raise _spoilt(source, "cohort") from None
        named = {*invitation.sites, SERVER}
        distinct = len({key.raw for key in keys.values()}) == len(keys)
        if set(keys) != named or not distinct or not _ROOT.fullmatch(root):
            raise _spoilt(source, "cohort")
        return cls(invitation, root, keys)


@dataclass(frozen=True, slots=True)
class Admission:
    """What the lead sends back to one party.

    Attributes:
        party: for whom it is.
        cohort: who is who.
        engine: the engine's answer, its certificate in a zip file.
    """

    party: str
    cohort: Cohort
    engine: bytes

    def to_bytes(self) -> bytes:
        """The file."""
        return _written(
            "admission",
            {
                "party": self.party,
                "cohort": self.cohort.to_json(),
                "engine": base64.b64encode(self.engine).decode(),
            },
        )

    @classmethod
    def from_bytes(cls, data: bytes, source: str) -> Admission:
        """Read the file.

        Raises:
            ConfigurationError: it is none.
        """
        tree = _read(data, "admission", source)
        try:
            party, engine = _text(tree["party"]), _base64(tree["engine"])
        except (KeyError, ValueError):
            raise _spoilt(source, "admission") from None
        return cls(party, Cohort.from_json(tree.get("cohort"), source), engine)


def read_pilot(text: str, source: str) -> PilotFile:
    """Read PILOT.toml.

    Raises:
        ConfigurationError: not TOML, an unknown or missing key, or a name that cannot
            be one.
    """
    tree = read_tree(text, source)
    if isinstance(tree.get("site"), dict):
        raise ConfigurationError(
            f"{source}: site is written in another way than it is read.",
            "Write [[site]], in double brackets, once for each.",
        )
    try:
        return PilotFile.model_validate(tree)
    except ValidationError as error:
        known = {
            name: section_keys(field.annotation)
            for name, field in PilotFile.model_fields.items()
        }
        raise explain(source, tree, error, known, GUIDE) from None


def read_small(path: Path) -> bytes:
    """A file that somebody sent.

    Raises:
        ConfigurationError: it is not there, or larger than any of ours is.
    """
    try:
        with path.open("rb") as handle:
            data = handle.read(_MOST_BYTES + 1)
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigurationError(
            f"There is no file {path}.", "Give the path of the file that was sent."
        ) from None
    if len(data) > _MOST_BYTES:
        raise _spoilt(str(path), "file of a pilot")
    return data


def fingerprint(data: bytes) -> str:
    """SHA-256 in groups of four characters, which people can read to one another."""
    digest = hashlib.sha256(data).hexdigest()
    return " ".join(digest[at : at + 4] for at in range(0, len(digest), 4))


def is_fingerprint(typed: str, expected: str) -> bool:
    """Whether somebody typed exactly this one, in whatever groups."""
    return _plain(typed) == _plain(expected)


def _plain(text: str) -> str:
    return re.sub(r"[\s:-]", "", text).lower()


def _written(kind: str, fields: dict[str, Json]) -> bytes:
    return canonical_json({"format": _FORMAT, "kind": kind} | fields) + b"\n"


def _read(data: bytes, kind: str, source: str) -> dict[str, Any]:
    try:
        tree = parse_canonical_json(data.removesuffix(b"\n"))
    except PrivacyError:
        raise _spoilt(source, kind) from None
    if (
        not isinstance(tree, dict)
        or tree.pop("format", None) != _FORMAT
        or tree.pop("kind", None) != kind
    ):
        raise _spoilt(source, kind)
    return tree


def _text(value: object) -> str:
    if not isinstance(value, str):
        msg = "no text"
        raise ValueError(msg)
    return value


def _base64(value: object) -> bytes:
    try:
        return base64.b64decode(_text(value), validate=True)
    except binascii.Error:
        msg = "no base64"
        raise ValueError(msg) from None


def _spoilt(source: str, kind: str) -> ConfigurationError:
    return ConfigurationError(
        f"{source} is no {kind} of a pilot, or it was changed on the way.",
        "Ask for it again, and see that it is sent as a file, not as text.",
    )
