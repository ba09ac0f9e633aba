"""A worker whose server is gone ends, wherever it stands.

It holds its clients' ledgers, and until it lets go of them the run cannot be taken up.
To wait for the end of what it computes can take hours, and a reward function that waits
for something may never come to an end at all.
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from multiprocessing import parent_process
from multiprocessing.process import BaseProcess
from typing import NoReturn

from privacy.ledger.durable import WRITING

_STATUS = 1


def end_with_parent() -> None:
    """Have this process end soon after the one that started it, however that ended.

    Nothing is asked of the operating system but that a pipe ends with its writer.

    Guarantee:
        No line of a ledger and no file that is written as a whole is cut in two.
    """
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: BaseProcess) -> None:
    parent.join()
    with WRITING:
        # Whatever else this process holds or computes is nobody's any more.
        os._exit(_STATUS)


def end_with(lifeline: int) -> None:
    """Have this process, and what it started, end once its supervisor is gone.

    Args:
        lifeline: what is read of a pipe whose other end the supervisor alone holds. The
            system closes that, however the supervisor ended.

    Guarantee:
        As `end_with_parent`.
    """
    threading.Thread(target=_watch_lifeline, args=(lifeline,), daemon=True).start()


def _watch_lifeline(lifeline: int) -> None:
    with suppress(OSError):
        os.read(lifeline, 1)
    end_group()


def end_group() -> NoReturn:
    """End this process and all that it started, a reward's processes among them."""
    with WRITING:
        # It was started as the leader of a group of its own.
        os.killpg(0, signal.SIGKILL)
        os._exit(_STATUS)
