"""Looking for what must not be seen, in every form in which it might be written."""

import base64
import json
import struct
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from fgrpo_secure.grpo.units import unit_id
from tests.end_to_end.program import NAMES, RIGHT, WRONG, records, secret

# No text is shorter; what is shorter is found in any file by chance. A float of 32 bits
# is half as long, and by chance in one run of many thousands.
_SHORTEST = 8
_SHORTEST_NUMBER = 4
# Text within a longer text starts at one of three places of base64's groups, and its
# first and last characters depend on what stands beside it.
_ALIGNMENTS = 3


@dataclass(frozen=True)
class Needle:
    """One form of something that must not be seen.

    Attributes:
        what: it is.
        owner: whose it is: who may have it at rest.
        form: the bytes.
    """

    what: str
    owner: str
    form: bytes


class Haystack:
    """The bytes of one artefact, and of what is encoded in it."""

    def __init__(self, name: str, data: bytes) -> None:
        self.name = name
        self.data = data


def reference(name: str, number: int) -> str:
    """A reference answer that is found nowhere by chance."""
    return f"solution-{name}-{number:03d}-reference"


def needles_of(folder: Path, output: Path) -> list[Needle]:
    """Everything private of a finished run, in all its forms.

    Args:
        folder: of the configuration and the data.
        output: the run's folder.
    """
    found: list[Needle] = []
    for name in NAMES:
        rows = (folder / f"data/{name}.jsonl").read_text("utf-8").splitlines()
        for number, row in enumerate(rows):
            prompt = json.loads(row)["prompt"]
            texts = {
                "a prompt": prompt,
                "a column": secret(name, number),
                "a reference answer": reference(name, number),
                "a unit's id": unit_id(prompt),
            }
            for what, text in texts.items():
                found += [Needle(what, name, form) for form in _texts(text)]
            found.append(Needle("a unit's id", name, bytes.fromhex(unit_id(prompt))))
        for path in (output / "clients" / name).rglob("*.key"):
            found += _keys(path, name)
        for number in sorted(means_of(output, name)):
            found += [Needle("a mean reward", name, form) for form in _numbers(number)]
    found += _keys(output / "server" / "identity.key", "server")
    for reward in (RIGHT, WRONG):
        found += [Needle("a reward", "", form) for form in _numbers(reward)]
    return found


def leaks(haystacks: list[Haystack], needles: list[Needle]) -> set[tuple[str, str]]:
    """Where something was found, and what."""
    by_start: dict[bytes, list[Needle]] = defaultdict(list)
    for needle in needles:
        by_start[needle.form[:_SHORTEST_NUMBER]].append(needle)
    found = set()
    for haystack in haystacks:
        data = haystack.data
        for place in range(len(data) - _SHORTEST_NUMBER + 1):
            for needle in by_start.get(data[place : place + _SHORTEST_NUMBER], ()):
                if data.startswith(needle.form, place):
                    found.add((haystack.name, needle.what))
    return found


def artefacts(output: Path, owner: str = "") -> list[Haystack]:
    """Every file of a run but the private files of one party.

    Args:
        output: the run's folder.
        owner: the client or the server whose own files are left out; nobody's, and
            then all private folders of clients and all keys are left out.
    """
    found = []
    for path in sorted(output.rglob("*")):
        parts = path.relative_to(output).parts
        if not path.is_file() or _is_own(parts, owner):
            continue
        name = "/".join(parts)
        found.append(Haystack(name, path.read_bytes()))
        if path.suffix == ".jsonl" and parts[0] == "ledger":
            payloads = "\n".join(json.dumps(record) for record in records(path))
            found.append(Haystack(name, payloads.encode()))
    return found


def _is_own(parts: tuple[str, ...], owner: str) -> bool:
    if owner in NAMES:
        return parts[:2] == ("clients", owner)
    if owner == "server":
        return parts == ("server", "identity.key")
    return parts[0] == "clients" or parts[-1].endswith(".key")


def _keys(path: Path, owner: str) -> list[Needle]:
    key = path.read_bytes()
    forms = {key, key.hex().encode(), key.hex().upper().encode(), *_base64(key)}
    return [Needle("a key", owner, form) for form in forms]


def _texts(text: str) -> set[bytes]:
    raw = text.encode()
    return {raw, raw.hex().encode(), text.encode("utf-16-le"), *_base64(raw)}


def _base64(data: bytes) -> set[bytes]:
    """The parts of base64 that do not depend on what stands beside the data."""
    forms = set()
    for skipped in range(_ALIGNMENTS):
        whole = bytes(skipped) + data
        text = base64.b64encode(whole).rstrip(b"=")
        # Four characters are three bytes; the first group holds what was put before.
        start = 4 if skipped else 0
        part = text[start : len(whole) // 3 * 4]
        forms |= {part, part.translate(bytes.maketrans(b"+/", b"-_"))}
    return {form for form in forms if len(form) >= _SHORTEST}


def means_of(output: Path, name: str) -> set[float]:
    """What a client noted of its own draws, where chance would not write the same."""
    found = set()
    for path in (output / "clients" / name).glob("run-*/metrics.jsonl"):
        for line in path.read_text("utf-8").splitlines():
            mean = json.loads(line)["mean_reward"]
            if mean is not None and len(str(abs(mean))) > _SHORTEST:
                found.add(mean)
    return found


def _numbers(value: float) -> set[bytes]:
    forms = {f"{abs(value):.6f}".encode(), str(abs(value)).encode()}
    packed = {struct.pack(order + size, value) for order in "<>" for size in "fd"}
    return {form for form in forms if len(form) >= _SHORTEST} | packed
