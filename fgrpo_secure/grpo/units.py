"""The units that rows form: what is drawn, clipped and protected as one.

Error texts name the file, the row and the column that is wanted, and never what stands
there or what other columns are called.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fgrpo_secure.errors import DataError
from fgrpo_secure.explanations import column_advice
from fgrpo_secure.grpo.data import Example
from fgrpo_secure.grpo.packing import Prompt

_UNIT_LABEL = b"fgrpo-secure unit v1\0"
_CHOICE_LABEL = b"fgrpo-secure prompts of a unit v1\0"
# Row numbers that an error names; a person mends the rest by the same rule.
_ROWS_NAMED = 3


@dataclass(frozen=True, slots=True)
class Unit:
    """What the guarantee protects: one distinct prompt, or one subject's prompts.

    Attributes:
        id: A stable name made of the content, which never leaves its owner.
        examples: The rows that count, each with another prompt.
    """

    id: str
    examples: tuple[Example, ...]


def units(examples: Iterable[Example]) -> dict[str, Unit]:
    """The units of a data set: one for each distinct prompt, its first row kept.

    Without this a prompt that occurs twice would be two units, and removing the record
    behind it would change more than the guarantee speaks of.

    Returns:
        Units by id, in the order of their first rows.
    """
    found: dict[str, Unit] = {}
    for example in examples:
        name = unit_id(example.prompt)
        found.setdefault(name, Unit(name, (example,)))
    return found


def units_by_column(
    examples: Sequence[Example], column: str, *, max_prompts: int, name: str
) -> dict[str, Unit]:
    """The units of a data set of which one column says whose a row is.

    All rows with one value of the column are one unit. Values are compared as they
    stand: "7" and " 7" are two units.

    Args:
        examples: All rows, in order.
        column: Its name; every row has text or a whole number there.
        max_prompts: Most distinct prompts that count of one unit, at least 1.
        name: What errors call the data set.

    Returns:
        Units by id, in the order of their first rows. Of a prompt that a unit has
        twice, the first row is kept.

    Raises:
        DataError: The column is missing, or a row has no usable value there.

    Guarantee:
        A unit is a function of its own rows: rows of other values, and where they
        stand, decide neither which of its prompts count nor their order.
    """
    _check_subjects(examples, column, name)
    rows: dict[str, dict[str, Example]] = {}
    for example in examples:
        own = rows.setdefault(subject_id(column, example.columns[column]), {})
        own.setdefault(unit_id(example.prompt), example)
    return {
        subject: Unit(subject, _chosen(subject, own, max_prompts))
        for subject, own in rows.items()
    }


def subject_id(column: str, value: object) -> str:
    """SHA-256 of a column and a value, 64 hex digits; it stays with its owner.

    A hash of a short number hides nothing from whoever tries them all.
    """
    data = json.dumps(["column", column, value], separators=(",", ":"))
    return hashlib.sha256(_UNIT_LABEL + data.encode("ascii")).hexdigest()


def unit_id(prompt: Prompt) -> str:
    """SHA-256 of a prompt in canonical form, 64 hex digits; it stays with its owner."""
    if isinstance(prompt, str):
        form: list[object] = ["plain", prompt]
    else:
        form = ["chat", [[message["role"], message["content"]] for message in prompt]]
    data = json.dumps(form, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(_UNIT_LABEL + data.encode("ascii")).hexdigest()


def _chosen(
    subject: str, own: Mapping[str, Example], count: int
) -> tuple[Example, ...]:
    """At most `count` of a unit's rows, the same in every run.

    The order is that of a hash of the unit and the prompt. With the prompt alone,
    units that share prompts would all keep the same ones.
    """

    def place(prompt: str) -> bytes:
        data = bytes.fromhex(subject) + bytes.fromhex(prompt)
        return hashlib.sha256(_CHOICE_LABEL + data).digest()

    return tuple(own[prompt] for prompt in sorted(own, key=place)[:count])


def _check_subjects(examples: Sequence[Example], column: str, name: str) -> None:
    """Refuse a column that does not say whose each row is.

    Rows without a subject would become one unit of many people, and one subject whose
    ids are written in two types would become two units.
    """
    values = [example.columns.get(column) for example in examples]
    if not any(column in example.columns for example in examples):
        advice = column_advice(column, examples[0].columns, name)
        raise DataError(
            f"{name} has no column '{column}', which [privacy] unit names.",
            f"Name one of its columns, or use 'prompt'. {advice}",
        )
    missing = [
        number
        for number, value in enumerate(values, 1)
        if value is None or (isinstance(value, str) and not value.strip())
    ]
    if missing:
        raise DataError(
            f"{name}, {_rows(missing)}: '{column}' is empty.",
            "Say whose each row is, or leave the row out: rows without an id would "
            "all count as one unit.",
        )
    for number, value in enumerate(values, 1):
        # By exact type: true is no number here.
        if type(value) not in {str, int}:
            raise DataError(
                f"{name}, row {number}: '{column}' is neither text nor a whole number.",
                'Write ids as text, such as "0042".',
            )
    texts = [i for i, value in enumerate(values, 1) if isinstance(value, str)]
    numbers = [i for i, value in enumerate(values, 1) if isinstance(value, int)]
    if texts and numbers:
        raise DataError(
            f"{name}: '{column}' is text in {_rows(texts)} and a number in "
            f"{_rows(numbers)}.",
            'Write all ids in one way: 7 and "7" would be two units.',
        )


def _rows(numbers: Sequence[int]) -> str:
    """The first few rows, and how many more there are."""
    shown = ", ".join(str(number) for number in numbers[:_ROWS_NAMED])
    more = len(numbers) - _ROWS_NAMED
    word = "row" if len(numbers) == 1 else "rows"
    return f"{word} {shown}" + (f" and {more} more" if more > 0 else "")
