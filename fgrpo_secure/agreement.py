"""What the parties of a pilot share about a run, and what each adds of its own.

An agreement is the part of a configuration that all must know: the promise, the
learner, and of each client its name, size and rewards by name. No path in it is ever
followed at a site, and nothing in it says what a machine does. A site adds where its
own data and rewards lie, from a file in its home that nobody sends.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field, ValidationError

from fgrpo_secure.config import (
    EMBEDDED_PREFIX,
    ClientSection,
    MachineSection,
    Names,
    RunConfig,
    Section,
    read_tree,
    resolve_paths,
    section_keys,
    validate_tree,
)
from fgrpo_secure.errors import ConfigurationError
from fgrpo_secure.explanations import Guide, explain
from fgrpo_secure.home import Home, check_name, no_policy

SOURCE = "RUN.toml"
# What stands for another party's data. It is never opened.
ELSEWHERE = "-"
# Of a client, what all parties know.
SHARED = (
    "name",
    "units",
    "sampling_rate",
    "reward",
    "reward_range",
    "reward_weights",
)
# What a site says for itself, in its own file.
OWN = (
    "data",
    "data_set",
    "shares_units_with",
    "epsilon_cap",
    "eval_data",
    "eval_public",
)
_SECTIONS = (
    "privacy",
    "federation",
    "model",
    "grpo",
    "aggregation",
    "server",
    "client",
)
# A name on the model hub, or any name that parties give to one model between them.
_BASE = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_File = TypeVar("_File", bound=Section)
_GUIDE = Guide("docs/pilot.md", "fgrpo pilot request", frozenset())


class _OwnModel(Section):
    """Where the base model's files lie on this machine."""

    base: str | None = None


class _OwnClient(Section):
    """A site's own part of its [[client]] table."""

    data: str
    reward: Annotated[Names, Field(min_length=1)]
    data_set: str | None = None
    shares_units_with: Names = ()
    epsilon_cap: Any = None
    eval_data: str | None = None
    eval_public: bool = False
    # What all share may be repeated here, and is then held against every agreement.
    name: str | None = None
    units: Any = None
    sampling_rate: Any = None
    reward_range: Any = None
    reward_weights: Any = None


def _no_state(machine: object) -> object:
    if isinstance(machine, Mapping) and "state" in machine:
        msg = "state is set, which is always the folder state/ of a home; take it out"
        raise ValueError(msg)
    return machine


_OwnMachine = Annotated[MachineSection, BeforeValidator(_no_state)]


class _SiteFile(Section):
    """site.toml."""

    client: _OwnClient
    model: _OwnModel = _OwnModel()
    machine: _OwnMachine = MachineSection()


class _ServerFile(Section):
    """server.toml."""

    model: _OwnModel = _OwnModel()
    machine: _OwnMachine = MachineSection()


@dataclass(frozen=True, slots=True)
class Agreement:
    """What all parties of a run share.

    Attributes:
        text: as it was proposed; what is signed and sent.
        config: what it says. Data are those of nobody, rewards are names of functions.
    """

    text: str
    config: RunConfig

    @property
    def names(self) -> tuple[str, ...]:
        """The clients, sorted."""
        return tuple(client.name for client in self.config.client)

    def at_site(self, home: Home) -> RunConfig:
        """The whole configuration of one site.

        Args:
            home: the site's, with site.toml and policy.toml.

        Returns:
            A configuration whose paths are absolute. Of the other clients it holds
            what all know. Its recipe has the same digest at every party.

        Raises:
            ConfigurationError: the site is no client of this run, its file is wrong or
                contradicts the agreement, or it has no policy.

        Guarantee:
            The agreement sets no path, no policy, no cap and nothing of the machine.
        """
        if not home.policy.is_file():
            raise no_policy(home)
        config = self.to_propose(home)
        clients = tuple(
            client.model_copy(update={"policy": str(home.policy)})
            if client.name == home.party
            else client
            for client in config.client
        )
        return config.model_copy(update={"client": clients})

    def to_propose(self, home: Home) -> RunConfig:
        """What `at_site` gives, for a site that has no policy yet.

        Raises:
            ConfigurationError: as `at_site` raises it, but for the policy.
        """
        if home.party not in self.names:
            raise ConfigurationError(
                f"{home.party} is no client of this run.",
                f"Its clients are {', '.join(self.names)}.",
            )
        source = str(home.site_file)
        own = _read_own(home.site_file, _SiteFile)
        shared = self.config.client_named(home.party)
        said = own.client.model_dump(exclude_none=True)
        merged = shared.model_dump(exclude_none=True) | said
        tree = self._tree()
        tree["client"] = [
            merged if client["name"] == home.party else client
            for client in tree["client"]
        ]
        _check_agreed(source, shared, said)
        config = _placed(validate_tree(_lists(tree), source), own.model.base, home.root)
        _check_equal(source, shared, config.client_named(home.party))
        machine = own.machine.model_copy(update={"state": str(home.state)})
        return config.model_copy(update={"machine": machine})

    def at_server(self, home: Home) -> RunConfig:
        """The whole configuration of the server, to which all data are elsewhere.

        Args:
            home: the server's; server.toml in it need not be there.

        Raises:
            ConfigurationError: its file is wrong.
        """
        own = (
            _read_own(home.server_file, _ServerFile)
            if home.server_file.exists()
            else _ServerFile()
        )
        config = _placed(self.config, own.model.base, home.root)
        return config.model_copy(update={"machine": own.machine})

    def _tree(self) -> dict[str, Any]:
        return self.config.model_dump(exclude_none=True)


def read_agreement(text: str) -> Agreement:
    """Read what is proposed to all parties.

    Raises:
        ConfigurationError: not TOML, an unknown or missing key, a value out of range,
            or something that only its own site may say.
    """
    tree = read_tree(text, SOURCE)
    if "machine" in tree:
        raise ConfigurationError(
            f"{SOURCE}: [machine] is not shared.",
            "Each party says it for itself: a site in site.toml of its home, the "
            "server in server.toml.",
        )
    clients = tree.get("client")
    if isinstance(clients, list):
        tree["client"] = [_client(table) for table in clients]
    config = validate_tree(tree, SOURCE)
    for client in config.client:
        check_name(client.name, "a party")
        if client.units is None:
            raise ConfigurationError(
                f"{SOURCE}: client.{client.name}.units is missing.",
                "State the public size of its data set: nobody but the site can count "
                "it.",
            )
    _check_base(config.model.base)
    ordered = tuple(
        client.model_copy(
            update={"reward": tuple(spec.rpartition(":")[2] for spec in client.reward)}
        )
        for client in sorted(config.client, key=lambda client: client.name)
    )
    return Agreement(text, config.model_copy(update={"client": ordered}))


def _client(table: object) -> object:
    """A client's shared table with nobody's data in it."""
    if not isinstance(table, dict):
        return table
    for key in (*OWN, "policy"):
        if key in table:
            place = "policy.toml" if key == "policy" else "site.toml"
            raise ConfigurationError(
                f"{SOURCE}: client.{table.get('name', '')}.{key} is the site's own, "
                "and is not shared.",
                f"Take it out; it stands in {place} of the site's home.",
            )
    return table | {"data": ELSEWHERE}


def _check_base(base: str) -> None:
    if not base.startswith(EMBEDDED_PREFIX) and not _BASE.fullmatch(base):
        raise ConfigurationError(
            f"{SOURCE}: model.base is a path, which is another on every machine.",
            "Give the model a name there, and its directory as base under [model] in "
            "site.toml of each site and server.toml of the server: its files are "
            "compared by their digest.",
        )


def _read_own(path: Path, kind: type[_File]) -> _File:
    """A file of a home.

    Raises:
        ConfigurationError: it is not there or says something that it cannot.
    """
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise ConfigurationError(
            f"There is no {path}.",
            "It says where this site's data and rewards are; docs/pilot.md has one.",
        ) from None
    except UnicodeDecodeError:
        raise ConfigurationError(
            f"{path} is not UTF-8 text.", "Save it as UTF-8, as TOML asks."
        ) from None
    source = str(path)
    tree = read_tree(text, source)
    for name, value in tree.items():
        if name in _SECTIONS and name not in kind.model_fields:
            raise ConfigurationError(
                f"{source}: [{name}] is agreed by all, and is not a site's to set.",
                "Take it out; what a site allows stands in policy.toml.",
            )
        if name in kind.model_fields and not isinstance(value, dict):
            raise ConfigurationError(
                f"{source}: {name} is written in another way than it is read.",
                f"Write [{name}], in single brackets: a home has one site.",
            )
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        known = {
            name: section_keys(field.annotation)
            for name, field in kind.model_fields.items()
        }
        raise explain(source, tree, error, known, _GUIDE) from None


def _check_agreed(source: str, shared: ClientSection, said: Mapping[str, Any]) -> None:
    """Refuse rewards that are named otherwise than all agreed, and another name."""
    if said.get("name", shared.name) != shared.name:
        raise _contradiction(source, "name", shared.name)
    functions = tuple(spec.rpartition(":")[2] for spec in said["reward"])
    if functions != shared.reward:
        raise _contradiction(source, "reward", ", ".join(shared.reward))


def _check_equal(source: str, shared: ClientSection, own: ClientSection) -> None:
    for key in SHARED:
        agreed = getattr(shared, key)
        if key not in {"name", "reward"} and getattr(own, key) != agreed:
            raise _contradiction(source, key, "nothing" if agreed is None else agreed)


def _contradiction(source: str, key: str, agreed: object) -> ConfigurationError:
    return ConfigurationError(
        f"{source}: client.{key} is not what the agreement says, which is {agreed}.",
        "Take no part in this run, or correct the file: what all share, no site "
        "changes for itself.",
    )


def _placed(config: RunConfig, own_base: str | None, folder: Path) -> RunConfig:
    """The configuration with paths of this party, and none of the agreement's."""
    base = own_base or config.model.base
    model = config.model.model_copy(update={"base": base})
    found = resolve_paths(config.model_copy(update={"model": model}), folder)
    if own_base is None and not base.startswith(EMBEDDED_PREFIX):
        # What loads a model takes a folder before a name, and a site's process works
        # in its home.
        if (folder / base).exists():
            raise ConfigurationError(
                f"The base model {base} is called like a folder of {folder}.",
                "Give the model's directory as base under [model] in this party's own "
                "file.",
            )
        return found.model_copy(update={"model": model})
    if own_base is not None and not Path(found.model.base).is_dir():
        raise ConfigurationError(
            f"The base model {own_base} is no directory on this machine.",
            "Give its directory as base under [model], or take the line out.",
        )
    return found


def _lists(value: Any) -> Any:  # noqa: ANN401
    """A dump in the types that TOML has, as a validated tree is expected to be."""
    if isinstance(value, Mapping):
        return {key: _lists(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_lists(item) for item in value]
    return value
