"""The engine's command line, as subprocesses that answer in JSON."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from fgrpo_secure.errors import ConfigurationError, FgrpoError
from fgrpo_secure.explanations import shown

# The one version that was tested: its command line and its files may differ in others.
VERSION = "2.9.0"
_INSTALL = "Run `pip install 'fgrpo-secure[nvflare]'` in this environment."
_PATIENCE_SECONDS = 120.0
# The server takes this long to answer where it was just started.
_CONNECT_SECONDS = 15
# The engine's words for a server that gave no answer.
UNREACHED = frozenset(
    {"CONNECTION_FAILED", "TIMEOUT", "NO_ANSWER", "SERVER_UNREACHABLE"}
)


class EngineError(FgrpoError):
    """The engine refused a command, or could not be reached."""

    exit_code = 8

    def __init__(self, what: str, fix: str, code: str) -> None:
        """Keep both lines, and the engine's own word for it.

        Args:
            what: one line that says what happened.
            fix: one line that says what to do.
            code: as the engine calls it.
        """
        super().__init__(what, fix)
        self.code = code


@dataclass(frozen=True, slots=True)
class Engine:
    """The command `nvflare`, for one party.

    Attributes:
        folder: where it keeps its own notes of what it was asked, in place of the
            account's home directory, so that parties on one machine share nothing.
        environment: more variables of its process.
    """

    folder: Path
    environment: Mapping[str, str] | None = None

    def call(self, *words: str | Path) -> dict[str, Any]:
        """Run one command and read its answer.

        Raises:
            ConfigurationError: the engine is not installed, or another version is.
            EngineError: it refused.
        """
        check_installed()
        command = [
            *(sys.executable, "-m", "nvflare.cli"),
            *("--format", "json", "--connect-timeout", str(_CONNECT_SECONDS)),
            *map(str, words),
        ]
        try:
            done = subprocess.run(  # noqa: S603
                command,
                env=engine_environment(self.folder) | dict(self.environment or {}),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_PATIENCE_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise EngineError(
                f"nvflare {words[0]} {words[1]} did not end in time.",
                "See that the server runs and is reached, then repeat the command.",
                "TIMEOUT",
            ) from None
        answer = _last_json(done.stdout)
        if answer.get("status") == "ok":
            data = answer.get("data")
            return data if isinstance(data, dict) else {"items": data}
        raise _refused(words, answer)


def check_installed() -> None:
    """See that the engine is there, in the version that was tested.

    Raises:
        ConfigurationError: it is not.
    """
    if importlib.util.find_spec("nvflare") is None:
        raise ConfigurationError("NVFlare is not installed.", _INSTALL)
    found = metadata.version("nvflare")
    if found != VERSION:
        raise ConfigurationError(
            f"NVFlare {found} is installed, and {VERSION} is what was tested.", _INSTALL
        )


def engine_environment(folder: Path) -> dict[str, str]:
    """The environment of the engine's processes: this one's, with another home."""
    return dict(os.environ) | {"HOME": str(folder), "PYTHONUNBUFFERED": "1"}


def _last_json(output: bytes) -> dict[str, Any]:
    """The answer, which is the last line that is a JSON object."""
    for line in reversed(output.decode("utf-8", "replace").splitlines()):
        if line.startswith("{"):
            try:
                found = json.loads(line)
            except json.JSONDecodeError:
                continue
            return found if isinstance(found, dict) else {}
    return {}


def _refused(words: Sequence[str | Path], answer: Mapping[str, Any]) -> EngineError:
    code = str(answer.get("error_code", "NO_ANSWER"))
    said = str(answer.get("message", "it gave no answer")).strip().removesuffix(".")
    # Some of it comes from another machine, and goes to a terminal.
    what = f"nvflare {words[0]} {words[1]}: {shown(said)}."
    if code in UNREACHED:
        # The engine's own hint names commands that a home has no other use for.
        fix = (
            "See that `fgrpo pilot serve` runs there and that its ports are reached "
            "from here, then repeat the command."
        )
        return EngineError(what, fix, code)
    hint = shown(str(answer.get("hint") or "").strip())
    return EngineError(what, hint or "docs/pilot.md says what each step needs.", code)
