"""A process that answers like a site's, and learns nothing: it starts at once.

The run's name says how it behaves.
"""

import os
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

from fgrpo_secure.errors import StateError
from fgrpo_secure.runtime.envelope import Opening
from fgrpo_secure.runtime.orphans import end_group, end_with
from fgrpo_secure.runtime.worker import work
from privacy.errors import ReplayError
from privacy.wire import Reader, decode


class Fake:
    def handle(self, phase, name, payload):
        if phase == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if phase == "decline":
            message = "words for the operator; do something"
            raise ReplayError(message)
        if phase == "hang":
            time.sleep(600)
        if phase == "path":
            return os.environ.get("PYTHONPATH", "").encode()
        if phase == "pid":
            return str(os.getpid()).encode()
        return phase.encode() + b":" + payload


def main(arguments):
    pipe, lifeline = Connection(int(arguments[0])), int(arguments[1])
    end_with(lifeline)
    reader = Reader(pipe.recv_bytes())
    reader.field()
    opening = decode(Opening, reader.field())
    if opening.name == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        # It has started something, as a reward function may.
        subprocess.Popen(["/bin/sleep", "600"])
    if opening.name == "crashing":
        os.kill(os.getpid(), signal.SIGKILL)

    def opened(progress):
        progress("rollouts", 1, 10)
        if opening.name == "refused":
            raise StateError("private words", "mend it")
        return {"north": Fake()}

    work(pipe, opened, lambda: Path(arguments[2]) / "crash.log")
    end_group()


if __name__ == "__main__":
    main(sys.argv[1:])
