"""The coverage-guided fuzzer: `python -m tests.fuzz GROUP FOLDER [options]`.

It needs `atheris`, which the project does not depend on. Signatures are not checked
here, so that what lies behind them is reached: the targets sign what they are given
anyhow, and whether a signature holds is the library's to say and other tests' to ask.
"""

from __future__ import annotations

import resource
import sys
from functools import partial
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["privacy", "audits", "fgrpo_secure"]):
    from privacy.crypto import SIGNATURE_BYTES, SigningKey, VerifyKey
    from privacy.errors import BadSignatureError
    from tests.fuzz import seeds, targets

# What a parser may take beyond what the process has at its start.
SPARE_BYTES = 512 * 2**20


def believe(key: VerifyKey, signature: bytes, message: bytes) -> None:
    """In place of verification: a signature of the right length is believed."""
    if len(signature) != SIGNATURE_BYTES:
        msg = "not a signature"
        raise BadSignatureError(msg)


def limit_memory() -> None:
    """A parser that allocates without measure then fails instead of paging."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    most = pages * resource.getpagesize() + SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def main() -> None:
    """Write the seeds where there are none, and fuzz."""
    program, group, folder, *options = sys.argv
    if not Path(folder).exists():
        seeds.main(group, Path(folder))
    VerifyKey.verify_raw = believe
    SigningKey.sign_raw = lambda key, message: bytes(SIGNATURE_BYTES)
    run = partial(targets.run_input, targets.GROUPS[group])
    atheris.Setup([program, folder, *options], run)
    limit_memory()
    atheris.Fuzz()


if __name__ == "__main__":
    main()
