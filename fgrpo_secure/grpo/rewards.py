"""Reward functions with TRL's signature, and what may go wrong with them.

At start-up a function that breaks its contract is an error that names it. After the
draw nothing a function does may raise: which records make it fail is private, so a
failure becomes a missing reward, and the round goes on.
"""

import asyncio
import importlib
import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgrpo_secure.errors import ConfigurationError, RewardError
from fgrpo_secure.explanations import COLUMNS_LISTED, column_advice
from fgrpo_secure.grpo.packing import Prompt
from fgrpo_secure.grpo.reward_sources import reward_sources, run_pinned

_CONTRACT = (
    "Return one number or None for each completion: "
    "f(prompts, completions, **columns) -> list[float | None]."
)
_SPOKEN = (
    "The prompts are conversations, so each completion is a list of one message: its "
    'text is completion[0]["content"].'
)


@dataclass(frozen=True, slots=True)
class RewardSpec:
    """How a configuration names a reward.

    Attributes:
        target: "module:function" or "file.py:function".
        low: Public lower end of its values; what is below counts as this.
        high: Public upper end.
        weight: Its weight in the sum.
        sha256: Of the only files that may be run for it, hex, as `RewardSources` has
            it; None runs what is there.
    """

    target: str
    low: float
    high: float
    weight: float = 1.0
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Reward:
    """A loaded reward function.

    Attributes:
        spec: Where it came from, its range and its weight.
        function: The function itself, sync or async.
        takes: Names of the arguments that it takes, or None if it takes any.
    """

    spec: RewardSpec
    function: Callable[..., Any]
    takes: frozenset[str] | None


@dataclass(frozen=True, slots=True)
class Tally:
    """What one reward did on some completions: counts of private data, for its owner.

    Attributes:
        target: the reward's name.
        values: how many completions it was given.
        missing: for how many it gave no finite number, or failed.
        outside: how many of its numbers lie outside its range.
    """

    target: str
    values: int
    missing: int
    outside: int


@dataclass(frozen=True, slots=True)
class RewardSet:
    """Several rewards and their weighted sum.

    Attributes:
        rewards: At least one.
    """

    rewards: tuple[Reward, ...]

    @property
    def range(self) -> tuple[float, float]:
        """The public range of the weighted sum."""
        ends = [
            sorted((r.spec.weight * r.spec.low, r.spec.weight * r.spec.high))
            for r in self.rewards
        ]
        return sum(low for low, _ in ends), sum(high for _, high in ends)

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[object]],
    ) -> NDArray[np.float64]:
        """Score completions of one unit, after the draw; never those of two at once.

        A function sees the rows of one unit only, so it cannot compare units.

        Args:
            prompts: N prompts.
            completions: N texts.
            columns: The data set's other columns, N values each.

        Returns:
            Shape (N,), float64: the weighted sum of the clipped rewards, NaN where a
            function gave no finite number for that row, or failed.

        Guarantee:
            No exception of a reward function leaves this method.
        """
        total = np.zeros(len(completions))
        for reward in self.rewards:
            values = _values(reward, prompts, completions, columns)
            total += reward.spec.weight * values.clip(reward.spec.low, reward.spec.high)
        return total

    def tally(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[object]],
    ) -> tuple[Tally, ...]:
        """Count what each reward leaves out or gives beyond its range.

        Args:
            prompts: N prompts of one unit.
            completions: N texts.
            columns: The data set's other columns, N values each.
        """
        found = []
        for reward in self.rewards:
            values = _values(reward, prompts, completions, columns)
            low, high = reward.spec.low, reward.spec.high
            outside = int(((values < low) | (values > high)).sum())
            missing = int(np.isnan(values).sum())
            found.append(Tally(reward.spec.target, len(values), missing, outside))
        return tuple(found)

    def check(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[object]],
    ) -> None:
        """Try every function once, at start-up.

        Raises:
            RewardError: A function raises, or returns the wrong length or type. The
                message names the function and holds nothing of the rows.
        """
        for reward in self.rewards:
            name = reward.spec.target
            _check_arguments(reward, columns)
            try:
                values = _call(reward, prompts, completions, columns)
            except KeyboardInterrupt:
                raise
            # Also an exit, whose message would be printed.
            except BaseException as error:
                raise RewardError(
                    f"The reward {name} raised {type(error).__name__}"
                    f"{_place(reward, error)} when it was tried.",
                    "Run it by itself on a row of the data. "
                    f"{_SPOKEN if _spoken(prompts) else _CONTRACT} {COLUMNS_LISTED}",
                ) from None
            if not isinstance(values, list | tuple | np.ndarray):
                raise RewardError(
                    f"The reward {name} returned {type(values).__name__} instead of a "
                    "list.",
                    _CONTRACT,
                )
            if len(values) != len(completions):
                raise RewardError(
                    f"The reward {name} returned {len(values)} values for "
                    f"{len(completions)} completions.",
                    _CONTRACT,
                )
            for value in values:
                if value is not None and not _is_number(value):
                    raise RewardError(
                        f"The reward {name} returned a {type(value).__name__} among "
                        "its values.",
                        _CONTRACT,
                    )

    def centred(self, rewards: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rewards moved from their public range to [-1, 1]; a missing one is 0.

        Args:
            rewards: Any shape, as `score` gives them.

        Returns:
            The same shape, in [-1, 1].
        """
        low, high = self.range
        scaled = (2 * rewards - low - high) / (high - low)
        return np.nan_to_num(scaled, nan=0.0).clip(-1.0, 1.0)


def _check_arguments(reward: Reward, columns: Mapping[str, Sequence[object]]) -> None:
    """Refuse a function that asks for a column which the data do not have.

    Raises:
        RewardError: The argument is named, and of the columns at most one by nearly
            that name.
    """
    there = {"prompts", "completions", *columns}
    for name, parameter in inspect.signature(reward.function).parameters.items():
        named = parameter.kind not in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}
        if named and parameter.default is parameter.empty and name not in there:
            raise RewardError(
                f"The reward {reward.spec.target} takes '{name}', and the data have no "
                "such column.",
                f"Rename the argument or the column. {column_advice(name, there)}",
            )


def _place(reward: Reward, error: BaseException) -> str:
    """The line in which a reward failed; what the error says may quote the data."""
    code = getattr(inspect.unwrap(reward.function), "__code__", None)
    place = None if code is None else _line_within(error, [code.co_filename])
    return f" in {place}," if place else ""


def _line_within(error: BaseException, endings: Sequence[str]) -> str:
    """The last line that an error passed in a file whose path ends in one of these."""
    passed = [
        f"{Path(frame.filename).name}, line {frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename.endswith(tuple(endings))
    ]
    return passed[-1] if passed else ""


def load_rewards(specs: Sequence[RewardSpec], directory: Path) -> RewardSet:
    """Import reward functions.

    Args:
        specs: At least one.
        directory: What relative file names resolve from.

    Raises:
        ConfigurationError: A range or a weight means nothing.
        RewardError: A module or function cannot be found or imported.
    """
    if not specs:
        raise ConfigurationError(
            "A client has no reward.", "Name at least one as module:function."
        )
    for spec in specs:
        numbers = (spec.low, spec.high, spec.weight)
        if not all(map(math.isfinite, numbers)) or spec.low >= spec.high:
            raise ConfigurationError(
                f"The reward {spec.target} has the range {spec.low} to {spec.high} and "
                f"the weight {spec.weight}.",
                "Give finite numbers, the lower end below the upper one.",
            )
    loaded = RewardSet(tuple(_load(spec, directory) for spec in specs))
    low, high = loaded.range
    if low >= high:
        raise ConfigurationError(
            "All rewards of a client have the weight 0.", "Give one of them a weight."
        )
    return loaded


def _load(spec: RewardSpec, directory: Path) -> Reward:
    place, separator, name = spec.target.rpartition(":")
    if not separator or not place or not name:
        raise RewardError(
            f"'{spec.target}' does not name a reward.",
            "Write module:function or file.py:function.",
        )
    if spec.sha256 is None:
        module = _module(spec.target, place, directory)
    else:
        module = _pinned_module(spec, place, directory)
    function = getattr(module, name, None)
    if not callable(function):
        raise RewardError(
            f"{place} has no function {name}.",
            _functions_of(module),
        )
    return Reward(spec, function, _takes(function))


def _module(target: str, place: str, directory: Path) -> ModuleType:
    file = directory / place
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        if not file.is_file():
            raise RewardError(
                f"There is no file {file} for the reward {target}.",
                "Paths resolve from the directory of the configuration file.",
            )
        name = f"fgrpo_reward_{file.stem}"
        found = importlib.util.spec_from_file_location(name, file)
        if found is None or found.loader is None:
            raise ImportError(name)
        module = importlib.util.module_from_spec(found)
        # Data classes and type hints of the file look their own module up here.
        sys.modules[name] = module
        found.loader.exec_module(module)
    except (RewardError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise RewardError(
            f"The module of the reward {target} cannot be imported "
            f"({_reason(error, place)}).",
            "Correct it, install what it imports, or name a file of your own: "
            "file.py:function.",
        ) from None
    return module


def _pinned_module(spec: RewardSpec, place: str, directory: Path) -> ModuleType:
    """Run a reward's files, and only if they are those that were allowed.

    The bytes that are run are the bytes that are hashed.

    Raises:
        RewardError: Other files, or such as cannot be run.
    """
    sources = reward_sources(spec.target, directory)
    if sources.sha256 != spec.sha256:
        raise RewardError(
            f"The file of the reward {spec.target}, or one that it imports from beside "
            "it, has changed since it was checked.",
            "See who changed it, and start again.",
        )
    try:
        return run_pinned(sources)
    except (RewardError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise RewardError(
            f"The module of the reward {spec.target} cannot be imported "
            f"({_reason(error, place)}).",
            "Correct it, install what it imports, or name a file of your own: "
            "file.py:function.",
        ) from None


def _reason(error: BaseException, place: str) -> str:
    """Why an import failed, without what the error says: that may quote the data.

    Args:
        error: What was raised.
        place: The module or file, as the configuration names it.
    """
    kind = type(error).__name__
    if isinstance(error, ImportError) and error.name:
        # A name that is imported; what is raised by hand has none.
        return f"{kind}: {error.name}"
    named = error.filename if isinstance(error, SyntaxError) else None
    if named and not named.startswith("<"):
        # Of a source file. What `eval` finds wrong with a text has no such name.
        return f"{kind}: {error.msg} in {Path(named).name}, line {error.lineno}"
    inside = place.replace(".", "/")
    endings = (
        [str(Path(place))]
        if place.endswith(".py")
        else [f"{inside}.py", f"{inside}/__init__.py"]
    )
    line = _line_within(error, endings)
    return f"{kind} in {line}" if line else kind


def _functions_of(module: ModuleType) -> str:
    own = [
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__
    ]
    there = f"it has: {', '.join(sorted(own))}" if own else "it defines none"
    return f"Write module:function with a function that is there; {there}."


def _takes(function: Callable[..., Any]) -> frozenset[str] | None:
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return frozenset(p.name for p in parameters)


def _call(
    reward: Reward,
    prompts: Sequence[Prompt],
    completions: Sequence[str],
    columns: Mapping[str, Sequence[object]],
) -> Any:  # noqa: ANN401
    """Call a function as TRL does, on lists of its own."""
    spoken = _spoken(prompts)
    arguments: dict[str, list[Any]] = {
        name: list(values) for name, values in columns.items()
    }
    arguments["prompts"] = [
        p if isinstance(p, str) else [dict(message) for message in p] for p in prompts
    ]
    arguments["completions"] = [
        [{"role": "assistant", "content": text}] if spoken else text
        for text in completions
    ]
    if reward.takes is not None:
        arguments = {name: arguments[name] for name in arguments.keys() & reward.takes}
    result = reward.function(**arguments)
    if inspect.isawaitable(result):
        return asyncio.run(_finished(result))
    return result


def _spoken(prompts: Sequence[Prompt]) -> bool:
    """Whether prompts are conversations; completions then are messages too."""
    return bool(prompts) and not isinstance(prompts[0], str)


async def _finished(awaitable: Any) -> Any:  # noqa: ANN401
    return await awaitable


def _values(
    reward: Reward,
    prompts: Sequence[Prompt],
    completions: Sequence[str],
    columns: Mapping[str, Sequence[object]],
) -> NDArray[np.float64]:
    """What one function gives, shape (N,); NaN where it is no finite number.

    Guarantee:
        No exception of the function leaves here, but an interruption by the user.
    """
    count = len(completions)
    try:
        values = _checked(_call(reward, prompts, completions, columns), count)
    except KeyboardInterrupt:
        raise
    # Also an exit or a cancellation that the function asks for: a process that ends
    # because of one record would tell of that record.
    except BaseException:
        values = np.full(count, np.nan)
    values[~np.isfinite(values)] = np.nan
    return values


def _checked(values: Any, count: int) -> NDArray[np.float64]:  # noqa: ANN401
    """Values as float64, NaN for what is no number; all NaN if the length is wrong."""
    if not isinstance(values, list | tuple | np.ndarray) or len(values) != count:
        return np.full(count, np.nan)
    return np.array([float(v) if _is_number(v) else np.nan for v in values])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number | np.bool_) and not isinstance(
        value, complex | np.complexfloating
    )
