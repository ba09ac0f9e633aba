"""A worker whose server is gone ends, wherever it stands.

It holds its clients' ledgers, and until it lets go of them the run cannot be taken up.
To wait for the end of what it computes can take hours, and a reward function that waits
for something may never come to an end at all.
"""

from __future__ import annotations

import os
import threading
from multiprocessing import parent_process
from multiprocessing.process import BaseProcess

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
