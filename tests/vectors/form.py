"""How a vector stands in a file: plain JSON, every byte string in hex."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

Case = dict[str, Any]


@dataclass(frozen=True)
class File:
    """One file of vectors.

    Attributes:
        about: what the cases are and how to read them.
        valid: what must come out as stated.
        bad: what must raise the error that its field "error" names.
    """

    about: str
    valid: tuple[Case, ...]
    bad: tuple[Case, ...] = ()

    def text(self) -> str:
        """The file's text, the same on every machine."""
        names = [case["name"] for case in (*self.valid, *self.bad)]
        if len(set(names)) != len(names):
            msg = f"two cases have one name: {self.about}"
            raise ValueError(msg)
        value = {"about": self.about, "valid": self.valid, "bad": self.bad}
        return json.dumps(plain(value), indent=1, ensure_ascii=False) + "\n"


def plain(value: object) -> Any:
    """A value as JSON: records become objects, bytes become hex."""
    if isinstance(value, (bytes, memoryview)):
        return value.hex()
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def good(name: str, **parts: object) -> Case:
    """A case that must come out as stated."""
    return {"name": name, **parts}


def bad(name: str, error: type[Exception], **parts: object) -> Case:
    """A case that must raise this error."""
    return {"name": f"bad_{name}", **parts, "error": error.__name__}
