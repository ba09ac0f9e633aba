"""What the program that runs is called in a ledger: its version and its code's digest.

A version says what somebody meant to run, and a commit says nothing of a tree that was
changed. The digest is of the files themselves, so that it needs neither git nor a
package index, and whoever has a release or a checkout can compute it again:

    find fgrpo_secure privacy -name '*.py' | LC_ALL=C sort | xargs sha256sum | sha256sum

in the folder that holds both packages. It binds nobody: a program can write what it
likes into its own ledger. It tells honest parties which code they ran.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import privacy
from fgrpo_secure import __version__

_PACKAGES = (Path(__file__).parent, Path(privacy.__file__).parent)


@functools.cache
def software() -> str:
    """Name, version and digest of the code, as every ledger and report has it.

    The digest is left out where the source is not there to be read.
    """
    name = f"fgrpo-secure {__version__}"
    try:
        digest = code_digest(_PACKAGES)
    except OSError:
        return name
    return f"{name} code {digest}" if digest else name


def code_digest(packages: tuple[Path, ...]) -> str | None:
    """SHA-256, in hex, of what `sha256sum` writes of all Python files of packages.

    Args:
        packages: their folders; a file goes by its path from the folder above.

    Returns:
        None where there is no such file.

    Raises:
        OSError: one of them cannot be read.
    """
    files = {
        path.relative_to(folder.parent).as_posix(): path
        for folder in packages
        for path in folder.rglob("*.py")
        if path.is_file()
    }
    lines = [f"{_sha256(files[name])}  {name}\n" for name in sorted(files)]
    return hashlib.sha256("".join(lines).encode()).hexdigest() if lines else None


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
