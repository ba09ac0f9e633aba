"""`fgrpo init`: a first configuration, reward and made-up data, ready to run.

What is written are the files of `assets/scaffold` with a few answers in them, and rows
of the embedded default, which are public and made up.
"""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from decimal import Decimal, InvalidOperation
from importlib import resources
from pathlib import Path
from typing import Any

import tomli_w

from fgrpo_secure.config import EMBEDDED_PREFIX, parse_config
from fgrpo_secure.errors import ConfigurationError, FgrpoError, StateError
from privacy.plan import check_cohort

# Rows of each client's sample, and of its held-out part.
SAMPLE_ROWS = 1000
HELD_OUT_ROWS = 100

# Units that a round draws at each client, where the data set is large enough.
EXPECTED_BATCH = 100
_MOST_OFTEN = Decimal("0.5")

# How many rows one after another belong to one unit where the unit is a column, and how
# many of them may count: some units have more, as in real data.
_ROWS_OF_UNITS = (1, 2, 3, 5)
PROMPTS_PER_UNIT = 4

_FAMILIES = ("sums", "sort", "count", "shift")
_TAKEN_COLUMNS = frozenset({"answer", "prompts", "completions"})


@dataclass(frozen=True, slots=True)
class Answers:
    """What a new configuration is made from.

    Attributes:
        clients: names of the data owners, at least three.
        base: the base model: a directory, a hub name or `embedded:tiny`.
        unit: "prompt", or the column that says whose a row is.
        units: units that a client will have at most; those of the sample if None.
        epsilon: target of the whole run.
        rounds: to register.
        delta: target; from `units` if None.
    """

    clients: tuple[str, ...] = ("north", "south", "west")
    base: str = EMBEDDED_PREFIX + "tiny"
    unit: str = "prompt"
    units: int | None = None
    epsilon: Decimal = Decimal(8)
    rounds: int = 10
    delta: Decimal | None = None

    @property
    def unit_count(self) -> int:
        """The largest number of units at a client, which delta is held against."""
        if self.units is not None:
            return self.units
        return SAMPLE_ROWS if self.unit == "prompt" else len(set(_owners()))


QUESTIONS: Mapping[str, str] = {
    "clients": "Names of the data owners, at least three, with commas between",
    "base": "Base model: a directory, a hub name, or the embedded one",
    "unit": "What to protect: each `prompt`, or all rows that share a column's value "
    "(then its name, for example patient_id)",
    "units": "How many of these the largest data owner will have",
    "epsilon": "Epsilon for the whole run (1 is strong, 8 is weak)",
    "rounds": "Rounds, each one step of the optimizer",
}


def ask(
    given: Mapping[str, str], read: Callable[[str], str], say: Callable[[str], None]
) -> Answers:
    """Ask for what was not given; an empty answer takes what stands in brackets.

    Args:
        given: answers as text, by field.
        read: shows a question and returns the answer, as `input` does.
        say: shows a line.

    Raises:
        ConfigurationError: an answer that was given means nothing.
    """
    texts = dict(given)
    answers = make_answers(texts)
    for field, question in QUESTIONS.items():
        while field not in given:
            default = answers.unit_count if field == "units" else _text(answers, field)
            texts[field] = read(f"{question} [{default}]: ").strip()
            if not texts[field]:
                del texts[field]
            try:
                answers = make_answers(texts)
            except FgrpoError as error:
                del texts[field]
                say(f"{error.what} {error.fix}")
                continue
            break
    return answers


def make_answers(texts: Mapping[str, str]) -> Answers:
    """Answers from text, by field; what is missing has its default.

    Raises:
        ConfigurationError: a text means nothing.
    """
    return Answers(**{name: _PARSERS[name](text) for name, text in texts.items()})


def write_project(folder: Path, answers: Answers) -> list[Path]:
    """Write run.toml, rewards.py and data/ into a folder.

    Args:
        folder: new or empty.
        answers: what to write.

    Returns:
        The files, in the order in which to look at them.

    Raises:
        StateError: the folder is not empty.
        ConfigurationError: the answers make no configuration that can run.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StateError(
            f"{folder} is not an empty folder.",
            "Name a new one: nothing is written over other files.",
        )
    text = render(answers)
    # What is wrong with an answer is said before anything is written.
    parse_config(text, folder.resolve(), "the new run.toml")
    contents = {
        "run.toml": text,
        "rewards.py": _template("rewards.py"),
        **_data_files(answers),
    }
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, "utf-8")
    return [folder / name for name in contents]


def render(answers: Answers) -> str:
    """The text of run.toml."""
    count = answers.unit_count
    delta = suggested_delta(count) if answers.delta is None else answers.delta
    rate = suggested_rate(count)
    by_prompt = answers.unit == "prompt"
    embedded = answers.base.startswith(EMBEDDED_PREFIX)
    clients = len(answers.clients)
    values = {
        "unit_words": (
            "any one distinct prompt"
            if by_prompt
            else f"any one {answers.unit}, with all its rows,"
        ),
        "unit_line": _line("unit", answers.unit),
        "cap_lines": "" if by_prompt else _CAP_LINES,
        "epsilon": _number(answers.epsilon),
        "delta": _number(delta),
        "units_count": f"{count:,}",
        "rounds": str(answers.rounds),
        "batch": f"{rate * count:.0f}",
        "sampling_rate": _number(rate),
        # One in four may drop out of a round; three is the least that may be left.
        "min_survivors": str(max(3, clients - clients // 4)),
        "client_tables": "\n\n".join(
            _client(answers, name) for name in answers.clients
        ),
        "base_line": _line("base", answers.base),
        **(_FOR_EMBEDDED if embedded else _FOR_OTHERS),
    }
    return string.Template(_template("run.toml")).substitute(values)


def suggested_delta(units: int) -> Decimal:
    """The largest power of ten that is at most 1 / (10 units)."""
    return Decimal(10) ** -len(str(10 * units - 1))


def suggested_rate(units: int) -> Decimal:
    """A sampling rate, to two digits, that draws about EXPECTED_BATCH units a round.

    Of a small data set it draws half: more would leave the draw no part in hiding who
    is there.
    """
    rate = min(_MOST_OFTEN, Decimal(EXPECTED_BATCH) / units)
    return Decimal(f"{rate:.1e}").normalize()


_CAP_LINES = f"""
# How many prompts of one unit may count; the others of a unit that has more are left
# out. The guarantee is for the whole unit, however many it has.
max_prompts_per_unit = {PROMPTS_PER_UNIT}
"""

# What the embedded model's data need: prompts of 11 characters, answers of 3.
_FOR_EMBEDDED = {
    "base_comment": "# It needs no network and is of no use but to try things out. "
    "Name a directory or a hub\n# model for real work, and its linear layers.",
    "target_modules": '["o_proj", "down_proj"]',
    "group_size": "4",
    "max_tokens": "4",
    "max_prompt_tokens": "11",
    "learning_rate": "0.05",
    "betas": "[0.5, 0.99]   # A short memory: there are few rounds.",
}
_FOR_OTHERS = {
    "base_comment": "# Any causal model with safetensors weights.",
    "target_modules": '["q_proj", "v_proj"]',
    "group_size": "8",
    "max_tokens": "64",
    "max_prompt_tokens": "256",
    "learning_rate": "0.01",
    "betas": "[0.9, 0.99]",
}


def _client(answers: Answers, name: str) -> str:
    # Rows to try with are fewer than the real ones that these units stand for.
    units = f"units = {answers.units}" if answers.units else ""
    values = {"name": name, "name_line": _line("name", name), "units_line": units}
    return string.Template(_template("client.toml")).substitute(values).strip()


def _data_files(answers: Answers) -> dict[str, str]:
    """JSON Lines for each client: rows that the package ships, no two clients alike."""
    files = {}
    for index, name in enumerate(answers.clients):
        family = _FAMILIES[index % len(_FAMILIES)]
        turn = index // len(_FAMILIES)
        for part, size in (("", SAMPLE_ROWS), ("-heldout", HELD_OUT_ROWS)):
            source = (
                resources.files("fgrpo_secure") / f"assets/data/{family}{part}.jsonl"
            )
            lines = source.read_text("utf-8").splitlines()
            start = turn * size % len(lines)
            rows = [json.loads(line) for line in lines[start : start + size]]
            if answers.unit != "prompt":
                # Whoever is held out has no row among those that are trained on.
                kind = "held-out" if part else "made-up"
                owners = [f"{kind}-{owner:04d}" for owner in _owners()[: len(rows)]]
                rows = [
                    {answers.unit: owner} | row
                    for owner, row in zip(owners, rows, strict=True)
                ]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            files[f"data/{name}{part}.jsonl"] = text
    return files


def _owners() -> list[int]:
    """Whose each row of a sample is, where the unit is a column."""
    owners: list[int] = []
    while len(owners) < SAMPLE_ROWS:
        owner = owners[-1] + 1 if owners else 1
        owners += [owner] * _ROWS_OF_UNITS[owner % len(_ROWS_OF_UNITS)]
    return owners[:SAMPLE_ROWS]


def _template(name: str) -> str:
    place = resources.files("fgrpo_secure") / "assets" / "scaffold" / name
    return place.read_text("utf-8")


def _line(key: str, value: str) -> str:
    """One line of TOML, with the quotes that the value needs."""
    return tomli_w.dumps({key: value}).strip()


def _number(value: Decimal) -> str:
    """A number as TOML has it: a small one with an exponent, as people write it."""
    text = f"{value.normalize():f}"
    return text if len(text) <= 6 else f"{value.normalize():e}".replace("e-0", "e-")


def _text(answers: Answers, field: str) -> str:
    value = getattr(answers, field)
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if len(names) < 3:
        raise ConfigurationError(
            "Secure aggregation needs at least 3 clients.",
            "Name three or more, for example north,south,west.",
        )
    if len(set(names)) < len(names):
        raise ConfigurationError("A client's name stands twice.", "Name each once.")
    check_cohort(sorted(names), min_survivors=3, colluders=1)
    return names


def _base(text: str) -> str:
    """A directory from where one stands, since run.toml will lie elsewhere."""
    path = Path(text).expanduser()
    return str(path.resolve()) if path.is_dir() else text


def _unit(text: str) -> str:
    if not text.strip() or text in _TAKEN_COLUMNS:
        raise ConfigurationError(
            f"The unit cannot be '{text}'.",
            "Write prompt, or the column that says whose a row is.",
        )
    return text


_NUMBERS = "Give --units and --rounds whole numbers, --epsilon and --delta any above 0."


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise ConfigurationError(f"{text} is no whole number above 0.", _NUMBERS)
    return value


def _positive(text: str) -> Decimal:
    try:
        value = Decimal(text)
    except InvalidOperation:
        value = Decimal(0)
    if not value.is_finite() or value <= 0:
        raise ConfigurationError(f"{text} is no number above 0.", _NUMBERS)
    return value


_PARSERS: Mapping[str, Callable[[str], Any]] = {
    "clients": _names,
    "base": _base,
    "unit": _unit,
    "units": _count,
    "epsilon": _positive,
    "rounds": _count,
    "delta": _positive,
}
FIELDS = tuple(field.name for field in fields(Answers))
