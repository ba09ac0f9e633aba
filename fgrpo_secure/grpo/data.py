"""Data sets: rows with a prompt and other columns.

Error texts name the file, the row and the column that is wanted, and never what stands
there. Nor do they list a file's columns: of a table without a head these are its first
row, and of an object whose keys are people these people.
"""

import csv
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import datasets
from datasets import logging

from fgrpo_secure.errors import DataError
from fgrpo_secure.explanations import column_advice, shown
from fgrpo_secure.grpo.packing import Message, Prompt

_LONGEST_CELL = 2**31 - 1
_RESERVED = frozenset({"prompts", "completions"})


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a data set.

    Attributes:
        prompt: Plain text, or a conversation of messages with a role and content.
        columns: The other columns, for the reward functions.
    """

    prompt: Prompt
    columns: Mapping[str, object]


def load_examples(
    source: str, *, required_columns: Sequence[str] = ("prompt",)
) -> list[Example]:
    """Read a data set.

    A file is private, so the cache that it is read through is deleted again. A data
    set of the hub is public and stays in the usual cache.

    Args:
        source: Path of a JSON, JSONL, CSV or Parquet file, or a name on the Hugging
            Face hub: "name", "name:split" or "name:configuration:split"; the split is
            "train" unless given.
        required_columns: Columns that must be there.

    Returns:
        The rows in order, at least one.

    Raises:
        DataError: The source cannot be read, is empty, lacks a column, or holds a
            prompt of a wrong type.
    """
    name = source_name(source)
    rows = _file_rows(Path(source)) if _is_file(source) else _hub_rows(source)
    if not rows:
        raise DataError(f"{name} holds no rows.", "Give a data set with rows.")
    for column in required_columns:
        if column not in rows[0]:
            raise DataError(
                f"{name} has no column '{column}'.",
                f"Rename or add it. {column_advice(column, rows[0], name)}",
            )
    for number, row in enumerate(rows, 1):
        reserved = _RESERVED & row.keys()
        if reserved:
            raise DataError(
                f"{name}, row {number}: the column '{min(reserved)}' is one that "
                "reward functions receive from elsewhere.",
                "Rename the column.",
            )
    return [_example(row, name, number) for number, row in enumerate(rows, 1)]


def column_names(source: str) -> tuple[str, ...]:
    """The columns of a data set's first row, sorted: for its owner's own terminal.

    Raises:
        DataError: The source cannot be read.
    """
    rows = _file_rows(Path(source)) if _is_file(source) else _hub_rows(source)
    return tuple(sorted(shown(name) for name in rows[0])) if rows else ()


def source_name(source: str) -> str:
    """What errors call a data set: a file without its folder, or the hub's name."""
    return Path(source).name if _is_file(source) else source


def _is_file(source: str) -> bool:
    path = Path(source)
    return path.suffix in _READERS or path.exists()


def _file_rows(path: Path) -> list[dict[str, object]]:
    """The rows of a file, each read by itself.

    Readers that infer a column's type from the whole file would let one added row turn
    every other row's integers into floats, or its dates into text. Rewards would see
    that, and one unit would then move the gradients of all. JSON keeps each value's own
    type, a CSV cell is text, and Parquet declares its types.
    """
    reader = _READERS.get(path.suffix)
    if reader is None:
        raise DataError(
            f"{path.name} is of no known kind.",
            f"Use one of: {', '.join(sorted(_READERS))}.",
        )
    if not path.is_file():
        raise DataError(
            f"There is no file {path}.",
            "Check the path; relative ones resolve from the configuration file.",
        )
    if not path.stat().st_size:
        raise DataError(f"{path.name} is empty.", "Give a data set with rows.")
    try:
        return reader(path)
    except UnicodeDecodeError:
        raise _unreadable(path, "it is not UTF-8") from None


def _unreadable(path: Path, why: str) -> DataError:
    return DataError(
        f"{path.name} cannot be read: {why}.",
        "Check its encoding (UTF-8) and its form against docs/configuration.md.",
    )


def _json_lines(path: Path) -> list[dict[str, object]]:
    rows = []
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                raise _unreadable(path, f"line {number} is not JSON") from None
            if not isinstance(row, dict):
                raise _unreadable(path, f"line {number} is not an object")
            rows.append(row)
    return rows


def _json_array(path: Path) -> list[dict[str, object]]:
    text = path.read_text("utf-8-sig")
    if not text.lstrip().startswith("["):
        return _json_lines(path)
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError):
        raise _unreadable(path, "it is not one JSON array") from None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise _unreadable(path, f"row {number} is not an object")
    return rows


def _csv_rows(path: Path) -> list[dict[str, object]]:
    csv.field_size_limit(_LONGEST_CELL)
    with path.open(encoding="utf-8-sig", newline="") as lines:
        table = csv.reader(lines, strict=True)
        try:
            head = next(table, [])
            if len(set(head)) != len(head):
                raise _unreadable(path, "two columns have one name")
            rows: list[dict[str, object]] = []
            for cells in table:
                if not cells:
                    continue
                if len(cells) != len(head):
                    what = f"line {table.line_num} has {len(cells)} cells"
                    raise _unreadable(path, f"{what} and the head has {len(head)}")
                rows.append(dict(zip(head, cells, strict=True)))
        except csv.Error:
            raise _unreadable(path, f"line {table.line_num} is not CSV") from None
    return rows


def _parquet_rows(path: Path) -> list[dict[str, object]]:
    with tempfile.TemporaryDirectory(prefix="fgrpo-") as cache, _quiet():
        try:
            return datasets.load_dataset(
                "parquet",
                data_files=str(path),
                split="train",
                cache_dir=cache,
                keep_in_memory=True,
            ).to_list()
        # The library raises many types and quotes the data in its messages.
        except Exception:
            raise _unreadable(path, "it is not Parquet") from None


_READERS: Mapping[str, Callable[[Path], list[dict[str, object]]]] = {
    ".json": _json_array,
    ".jsonl": _json_lines,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}


def _hub_rows(source: str) -> list[dict[str, object]]:
    name, *rest = source.split(":")
    split = rest[-1] if rest else "train"
    configuration = rest[0] if len(rest) > 1 else None
    with _quiet():
        try:
            return datasets.load_dataset(name, configuration, split=split).to_list()
        except Exception as error:
            raise DataError(
                f"The data set {source} cannot be loaded ({type(error).__name__}).",
                "Check the name and the network, or give a path ending in .json, "
                ".jsonl, .csv or .parquet.",
            ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """The library's progress bars and log off, and back as they were.

    Its log quotes what a file holds where it cannot be parsed.
    """
    were_on, level = datasets.is_progress_bar_enabled(), logging.get_verbosity()
    datasets.disable_progress_bars()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if were_on:
            datasets.enable_progress_bars()


def _example(row: Mapping[str, object], name: str, number: int) -> Example:
    prompt = row.get("prompt")
    columns = {key: value for key, value in row.items() if key != "prompt"}
    if isinstance(prompt, str):
        _check_text([prompt], name, number)
        return Example(prompt, columns)
    if isinstance(prompt, list) and prompt:
        messages = tuple(_message(message, name, number) for message in prompt)
        for message in messages:
            _check_text(message.values(), name, number)
        return Example(messages, columns)
    raise DataError(
        f"{name}, row {number}: the prompt is neither text nor a list of messages.",
        'Give text, or messages such as {"role": "user", "content": "..."}.',
    )


def _check_text(texts: Iterable[str], name: str, number: int) -> None:
    """Refuse half of a surrogate pair, which JSON can write and no tokenizer reads."""
    try:
        for text in texts:
            text.encode("utf-8")
    except UnicodeEncodeError:
        fault = f"{name}, row {number}: the prompt is not valid Unicode."
    else:
        return
    raise DataError(
        fault, "Mend the text where it was cut, or leave the row out."
    ) from None


def _message(message: object, name: str, number: int) -> Message:
    if isinstance(message, dict):
        present = {key: value for key, value in message.items() if value is not None}
        if present.keys() == {"role", "content"} and all(
            isinstance(value, str) for value in present.values()
        ):
            return present
    raise DataError(
        f"{name}, row {number}: a message of the prompt is not a role and content of "
        "text.",
        'Write each message as {"role": "user", "content": "..."} and nothing else.',
    )
