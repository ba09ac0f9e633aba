"""The files of a base model under one digest, as a site's policy names it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download

from privacy.wire import Json, canonical_json

BASE_MODEL_FORMAT = "fgrpo-secure/base-model/1"

_Stamp = tuple[tuple[str, int, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class BaseModel:
    """What a base model's folder held when it was looked at.

    Attributes:
        folder: where its files lie.
        digest: hex SHA-256 over the names and hashes of all of them.
        stamp: by which a later change of any of them shows.
    """

    folder: Path
    digest: str
    stamp: _Stamp

    def is_unchanged(self) -> bool:
        """Whether no file was written, added, taken out or exchanged since.

        The time of a file's last change of any kind cannot be set back by its owner,
        so that a model which was read between two equal stamps is the one hashed.
        """
        try:
            return _stamp(self.folder) == self.stamp
        except OSError:
            return False


def read_base_model(base: str) -> BaseModel | None:
    """Hash a base model's files; None where they are not here, or not plain files.

    Weights, tokenizer, chat template and settings count alike, in folders within too:
    every file but those whose name, or whose folder's name, begins with a dot.

    Args:
        base: a directory, or a hub name whose files were downloaded before.
    """
    folder = Path(base)
    try:
        if not folder.is_dir():
            folder = Path(snapshot_download(base, local_files_only=True))
        before = _stamp(folder)
        files: dict[str, Json] = {}
        for name, path in _files(folder):
            with path.open("rb") as handle:
                files[name] = hashlib.file_digest(handle, "sha256").hexdigest()
    # The hub says in these words, too, that nothing was downloaded by that name.
    except (OSError, ValueError):
        return None
    whole: Json = {"format": BASE_MODEL_FORMAT, "files": files}
    digest = hashlib.sha256(canonical_json(whole)).hexdigest()
    return BaseModel(folder, digest, before) if files else None


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every file by its name within the folder, sorted.

    Raises:
        ValueError: a folder within is a link, whose target is not looked at, or
            something is neither file nor folder.
    """
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir() and not path.is_symlink():
            for name, inner in _files(path):
                yield f"{path.name}/{name}", inner
        elif path.is_file():
            yield path.name, path
        else:
            msg = "neither a file nor a folder"
            raise ValueError(msg)


def _stamp(folder: Path) -> _Stamp:
    found = []
    for name, path in _files(folder):
        stat = path.stat()
        found.append(
            (name, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        )
    return tuple(found)
