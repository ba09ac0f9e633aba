"""One typed, frozen configuration from one TOML file.

Unknown keys are refused. `[privacy]` and `[federation]` have no defaults: each of
their lines is a decision. What cannot change the guarantee lives in `[machine]`.
Paths resolve from the file they stand in.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import tomli_w
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from fgrpo_secure.errors import ConfigurationError
from fgrpo_secure.explanations import explain

EMBEDDED = "tiny"
# `base = "embedded:tiny"` names a model that ships with the package, from any folder.
EMBEDDED_PREFIX = "embedded:"
# The one unit that is no column's name: each distinct prompt.
PROMPT = "prompt"
# Far above any use, and below what a plan and a ledger can write down.
MOST = 2**31 - 1
# What a data set may be called: a file of its ledger goes by it.
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
# Digits of a decimal before or after its point: plans hold its exact fraction.
_DIGITS = 1000


class Section(BaseModel):
    """A table whose every key is known and whose every value keeps its own type."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_conversions(cls, values: object) -> object:
        """A text that looks like a number is no number, and `true` is not 1."""
        if isinstance(values, Mapping):
            for name, value in values.items():
                if name not in cls.model_fields:
                    # That it is unknown is said by pydantic.
                    continue
                wanted = _leaf_types(cls.model_fields[name].annotation)
                for leaf in _leaves(value):
                    if isinstance(leaf, Decimal) and _is_extreme(leaf):
                        msg = (
                            f"{name} has more than {_DIGITS} digits; write a number of "
                            "a usual size"
                        )
                        raise ValueError(msg)
                    text, truth = isinstance(leaf, str), isinstance(leaf, bool)
                    if (text and str not in wanted) or truth != (wanted == {bool}):
                        kind = (
                            "text" if text else "true or false" if truth else "a number"
                        )
                        fix = (
                            "write true or false, without quotes"
                            if wanted == {bool}
                            else "write a number, without quotes"
                            if str not in wanted
                            else "write text in quotes"
                        )
                        msg = f"{name} is {kind}, which it cannot be; {fix}"
                        raise ValueError(msg)
        return values


def _leaves(value: object) -> Iterator[object]:
    """The values within lists of lists; a table is its own section's business."""
    if isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif not isinstance(value, Mapping):
        yield value


def _is_extreme(value: Decimal) -> bool:
    if not value.is_finite():
        return False
    _, digits, exponent = value.as_tuple()
    return max(len(digits), abs(int(exponent))) > _DIGITS


def _leaf_types(annotation: object) -> set[object]:
    """The plain types that an annotation is made of, without None."""
    inner = get_args(annotation)
    if get_origin(annotation) is Annotated:
        inner = inner[:1]
    if get_origin(annotation) is Literal:
        return {type(value) for value in inner}
    if not inner:
        return {annotation} - {type(None), ...}
    return set().union(*(_leaf_types(part) for part in inner))


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _as_ranges(value: object) -> object:
    """One range, or a list of ranges, becomes a list of ranges."""
    if isinstance(value, list) and value and not isinstance(value[0], list):
        return [value]
    return value


Names = Annotated[tuple[str, ...], BeforeValidator(_as_list)]
Range = tuple[float, float]
Ranges = Annotated[tuple[Range, ...], BeforeValidator(_as_ranges)]
_Decay = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1, le=MOST)]
Positive = Annotated[Decimal, Field(gt=0)]
Rate = Annotated[Decimal, Field(gt=0, le=1)]


class PrivacySection(Section):
    """What is promised; every key that the unit needs is required."""

    unit: Annotated[str, Field(min_length=1)] = Field(
        description="what is protected: 'prompt', or a column that says whose a row is"
    )
    max_prompts_per_unit: Count | None = Field(
        default=None,
        description="most prompts that count of one unit; required with a column",
    )
    trust: Literal["distributed", "local"] = Field(
        description="'distributed': noise shares add up; 'local': each carries it all"
    )
    epsilon: Annotated[Decimal, Field(gt=0, allow_inf_nan=True)] = Field(
        description="target epsilon of the whole run; inf promises nothing"
    )
    delta: Positive = Field(description="target delta of the whole run")
    rounds: Count = Field(description="rounds to register")
    sampling_rate: Rate = Field(
        description="probability that a unit is drawn at a time"
    )
    local_steps: Count = Field(
        default=1, description="draws of a client in one round (trust 'local' only)"
    )
    inner_steps: Count = Field(
        default=1, description="steps on one draw (trust 'local' only)"
    )
    clip_norm: Positive = Field(description="L2 bound of a unit's gradient")
    statistic_multiplier: Positive = Field(
        description="noise multiplier of the reward statistic (rule 'fgrpo' only)"
    )
    modulus_bits: Annotated[int, Field(ge=8, le=32)] = Field(
        default=32, description="bits in which each number of a sum is sent"
    )
    rotation: bool = Field(
        default=False,
        description="whether vectors are rotated at random, so that fewer bits hold "
        "their sum",
    )

    @model_validator(mode="after")
    def _steps_are_noised(self) -> PrivacySection:
        for name in ("local_steps", "inner_steps"):
            if self.trust != "local" and getattr(self, name) != 1:
                msg = (
                    f"{name} is above 1 and trust is 'distributed', where only the sum "
                    "of a round is noised: that noise does not cover what one unit of "
                    "an early step changes in the later ones; set trust = "
                    '"local", whose every step carries all of its noise, or take it '
                    "out"
                )
                raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _prompts_are_bounded(self) -> PrivacySection:
        bound = self.max_prompts_per_unit
        if self.unit == PROMPT and bound not in {None, 1}:
            msg = (
                "max_prompts_per_unit is more than 1 and the unit is one prompt; take "
                "it out, or name a column as the unit"
            )
            raise ValueError(msg)
        if self.unit != PROMPT and bound is None:
            msg = (
                f"max_prompts_per_unit is missing; state how many prompts of one "
                f"{self.unit!r} may count"
            )
            raise ValueError(msg)
        return self

    @property
    def prompts_per_unit(self) -> int:
        """Most prompts that count of one unit."""
        return self.max_prompts_per_unit or 1


class FederationSection(Section):
    """Who must take part, in every cohort; all keys but `cohort_size` are required."""

    min_survivors: Annotated[int, Field(ge=2, le=MOST)]
    colluders: Annotated[int, Field(ge=0, le=MOST)]
    cohort_size: Annotated[int, Field(ge=3, le=200)] | None = Field(
        default=None,
        description="most clients of a cohort, each a whole protocol with its own "
        "noise; all clients in one if unset",
    )


class ClientSection(Section):
    """One data owner."""

    name: str
    data: str
    reward: Names
    reward_range: Ranges
    reward_weights: tuple[float, ...] | None = None
    units: Count | None = Field(
        default=None,
        description="the public size of the data set; counted when it is not given",
    )
    sampling_rate: Rate | None = Field(
        default=None,
        description="its own probability of a draw; that of [privacy] if unset",
    )
    data_set: str | None = Field(
        default=None,
        description="what its data are called in a shared store; the client's name if "
        "unset",
    )
    shares_units_with: Names = Field(
        default=(),
        description="data sets CLIENT/DATA_SET of a shared store with equal unit ids",
    )
    epsilon_cap: Positive | None = Field(
        default=None,
        description="most that this client's ledger may hold; the cap that it has if "
        "unset, and the target for a new one",
    )
    policy: str | None = Field(
        default=None,
        description="the site's own policy, which every run and round is held to",
    )
    eval_data: str | None = None
    eval_public: bool = Field(
        default=False,
        description="whether scores on eval_data may be published",
    )

    @model_validator(mode="after")
    def _data_set_is_a_name(self) -> ClientSection:
        if self.data_set is not None and not _FILE_NAME.fullmatch(self.data_set):
            msg = (
                "data_set is no name for a file; use letters, digits and ._-, at most "
                "63 of them, a letter or digit first"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _lengths_agree(self) -> ClientSection:
        count = len(self.reward)
        if len(self.reward_range) != count:
            msg = (
                f"{count} in reward and {len(self.reward_range)} in reward_range; "
                "give each reward its own [low, high], in the same order"
            )
            raise ValueError(msg)
        if self.reward_weights is not None and len(self.reward_weights) != count:
            msg = (
                f"{count} in reward and {len(self.reward_weights)} in reward_weights; "
                "give each reward one weight, in the same order"
            )
            raise ValueError(msg)
        for low, high in self.reward_range:
            if not low < high:
                msg = (
                    f"the reward_range [{low:g}, {high:g}] is empty; write the least "
                    "and then the greatest value that the reward can give, such as "
                    "[0.0, 1.0]"
                )
                raise ValueError(msg)
        return self


class ModelSection(Section):
    """The base model and its adapter."""

    base: str
    lora_rank: Count = 4
    lora_alpha: Annotated[float, Field(gt=0)] = 8.0
    target_modules: Names = ("q_proj", "v_proj")
    layers: tuple[int, ...] | None = Field(
        default=None, description="which layers get an adapter; all when not given"
    )


class GrpoSection(Section):
    """The learner."""

    group_size: Annotated[int, Field(ge=2, le=MOST)] = 8
    max_tokens: Count = 128
    max_prompt_tokens: Count = 256
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    loss: str = "dr_grpo"
    scale_rewards: str = "group"
    ratio_clip: Annotated[float, Field(gt=0)] = 0.2
    kl_coefficient: Annotated[float, Field(ge=0)] = 0.0
    local_learning_rate: Annotated[float, Field(gt=0)] = Field(
        default=1.0, description="of a client's own steps (trust 'local' only)"
    )


class AggregationSection(Section):
    """How clients are weighed."""

    rule: Literal["fgrpo", "uniform", "size"] = "fgrpo"
    gain: Literal["relative", "zscore", "logit"] = "relative"
    temperature: Decimal = Decimal("0.5")
    baseline_decay: Annotated[Decimal, Field(ge=0, lt=1)] = Decimal("0.8")
    max_weight_ratio: Annotated[Decimal, Field(ge=1)] = Decimal(3)


class ServerSection(Section):
    """What the server does with a round's mean gradient."""

    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: Annotated[float, Field(gt=0)] = 1e-2
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    betas: tuple[_Decay, _Decay] = (0.9, 0.99)


class MachineSection(Section):
    """What cannot change the guarantee, and so enters no digest."""

    device: str = "cpu"
    microbatch: Count = 8
    seed: int = 0
    state: str | None = None
    workers: Count = 2
    threads: Count = 1
    deadline_seconds: Annotated[float, Field(gt=0)] = 3600.0
    tracking: Annotated[
        tuple[Literal["tensorboard", "mlflow"], ...], BeforeValidator(_as_list)
    ] = Field(default=(), description="who is told the public numbers of a run")


class RunConfig(Section):
    """A whole run."""

    privacy: PrivacySection
    federation: FederationSection
    client: tuple[ClientSection, ...]
    model: ModelSection
    grpo: GrpoSection = GrpoSection()
    aggregation: AggregationSection = AggregationSection()
    server: ServerSection = ServerSection()
    machine: MachineSection = MachineSection()

    def sampling_rate(self, name: str) -> Fraction:
        """The probability with which one client draws a unit."""
        return Fraction(
            self.client_named(name).sampling_rate or self.privacy.sampling_rate
        )

    def client_named(self, name: str) -> ClientSection:
        """The table of one client."""
        return next(client for client in self.client if client.name == name)

    def to_toml(self) -> str:
        """The resolved configuration, which loads to an equal one."""
        return tomli_w.dumps(_plain(self.model_dump(exclude_none=True)))


def load_config(source: str, overrides: Sequence[str] = ()) -> tuple[RunConfig, str]:
    """Read a configuration.

    Args:
        source: a path, or the name of an embedded configuration ("tiny").
        overrides: `section.key=value` or `client.NAME.key=value`, the value as TOML.

    Returns:
        The configuration with its paths made absolute, and a short name for it.

    Raises:
        ConfigurationError: no such file, not TOML, an unknown or missing key, or a
            value out of range; the text names the key.
    """
    path = _locate(source)
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError:
        raise ConfigurationError(
            f"{source} is not UTF-8 text.", "Save it as UTF-8, as TOML asks."
        ) from None
    folder = path.resolve().parent
    return parse_config(text, folder, source, overrides), path.stem


def parse_config(
    text: str, folder: Path, source: str, overrides: Sequence[str] = ()
) -> RunConfig:
    """Read a configuration from text.

    Args:
        text: TOML.
        folder: what its paths resolve from.
        source: what errors call it.
        overrides: as `load_config` takes them.

    Raises:
        ConfigurationError: as `load_config` raises it.
    """
    tree = read_tree(text, source)
    _check_shape(source, tree)
    for override in overrides:
        _override(tree, override)
    return resolve_paths(validate_tree(tree, source), folder)


def read_tree(text: str, source: str) -> dict[str, Any]:
    """The tables of a TOML text, its decimals exact.

    Raises:
        ConfigurationError: it is not TOML.
    """
    try:
        return tomllib.loads(text, parse_float=Decimal)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(
            f"{source} is not valid TOML: {error}.",
            "Correct that line: text stands in quotes, a section in [brackets], a "
            "client in [[client]].",
        ) from None


def validate_tree(tree: Mapping[str, Any], source: str) -> RunConfig:
    """The configuration that a tree of tables says, its paths as they were written.

    Raises:
        ConfigurationError: an unknown or missing key, or a value out of range.
    """
    _check_shape(source, tree)
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        known = {
            name: section_keys(field.annotation)
            for name, field in RunConfig.model_fields.items()
        }
        raise explain(source, tree, error, known) from None


def _locate(source: str) -> Path:
    path = Path(source)
    if path.is_file():
        return path
    embedded = Path(str(resources.files("fgrpo_secure") / "assets" / f"{source}.toml"))
    if "/" not in source and embedded.is_file():
        return embedded
    raise ConfigurationError(
        f"There is no configuration file {source}.",
        f"Give the path of a TOML file, or '{EMBEDDED}' for the embedded default; "
        "`fgrpo init DIR` writes one to start from.",
    )


def _check_shape(source: str, tree: Mapping[str, Any]) -> None:
    """Tell brackets that were mixed up before anything looks inside a section.

    Raises:
        ConfigurationError: a section is no table, or the clients are no list of them.
    """
    for name in RunConfig.model_fields.keys() & tree.keys():
        value = tree[name]
        if name == "client":
            right = isinstance(value, list) and all(isinstance(c, dict) for c in value)
            written = "[[client]], in double brackets, once for each"
        else:
            right, written = isinstance(value, dict), f"[{name}], in single brackets"
        if not right:
            raise ConfigurationError(
                f"{source}: {name} is written in another way than it is read.",
                f"Write {written}.",
            )


def _override(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    steps = key.strip().split(".")
    if not separator or len(steps) < 2:
        raise ConfigurationError(
            f"--set {override} is not section.key=value.",
            "Write for example --set privacy.rounds=5.",
        )
    try:
        value = tomllib.loads(f"value = {text}", parse_float=Decimal)["value"]
    except tomllib.TOMLDecodeError:
        value = text
    section, *rest = steps
    if section == "client":
        # A name may hold dots itself; the key is what follows the last one.
        name, last = ".".join(rest[:-1]), rest[-1]
        clients = [c for c in tree.get("client", []) if c.get("name") == name]
        if not clients:
            raise ConfigurationError(
                f"--set {override}: there is no client of that name.",
                "Write client.NAME.key=value with a NAME of the configuration.",
            )
        clients[0][last] = value
        return
    if len(rest) != 1:
        raise ConfigurationError(
            f"--set {override} is not section.key=value.",
            "Write for example --set privacy.rounds=5.",
        )
    tree.setdefault(section, {})[rest[0]] = value


def section_keys(annotation: Any) -> tuple[str, ...]:  # noqa: ANN401
    """The keys of a section, or of the tables in a list of them."""
    kinds = [annotation, *get_args(annotation)]
    section = next(kind for kind in kinds if hasattr(kind, "model_fields"))
    return tuple(section.model_fields)


def resolve_paths(config: RunConfig, folder: Path) -> RunConfig:
    """Make paths absolute; a name that is no file stays a hub name."""
    clients = tuple(
        client.model_copy(
            update={
                "data": _path(client.data, folder),
                "eval_data": client.eval_data and _path(client.eval_data, folder),
                "policy": client.policy and str((folder / client.policy).resolve()),
                "reward": tuple(_reward(spec, folder) for spec in client.reward),
            }
        )
        for client in sorted(config.client, key=lambda client: client.name)
    )
    model = config.model.model_copy(update={"base": _base(config.model.base, folder)})
    machine = config.machine
    if machine.state is not None:
        state = str((folder / machine.state).resolve())
        machine = machine.model_copy(update={"state": state})
    return config.model_copy(
        update={"client": clients, "model": model, "machine": machine}
    )


def _base(value: str, folder: Path) -> str:
    """The directory of a base model; a name that is none stays a hub name."""
    if not value.startswith(EMBEDDED_PREFIX):
        return _path(value, folder)
    name = value.removeprefix(EMBEDDED_PREFIX)
    found = Path(str(resources.files("fgrpo_secure") / "assets" / name))
    if "/" in name or not (found / "config.json").is_file():
        raise ConfigurationError(
            f"There is no embedded model '{name}'.",
            f'Write base = "{EMBEDDED_PREFIX}{EMBEDDED}", or name a directory or a hub '
            "model.",
        )
    return str(found)


def _path(value: str, folder: Path) -> str:
    candidate = folder / value
    looks_like_file = Path(value).suffix in {".json", ".jsonl", ".csv", ".parquet"}
    if candidate.exists() or looks_like_file:
        return str(candidate.resolve())
    return value


def _reward(spec: str, folder: Path) -> str:
    module, separator, function = spec.rpartition(":")
    if separator and module.endswith(".py"):
        return f"{(folder / module).resolve()}:{function}"
    return spec


def _plain(value: Any) -> Any:  # noqa: ANN401
    """Pydantic's dump as TOML's types; decimals keep their digits."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
