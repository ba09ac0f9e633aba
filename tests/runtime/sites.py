"""A server and sites joined by an engine in memory, which may lose what it carries."""

import threading
import time

from fgrpo_secure.runtime.courier import Courier, Patience
from fgrpo_secure.runtime.desk import Desk
from fgrpo_secure.runtime.trainer import DeclinedError
from privacy.crypto import SigningKey
from privacy.ledger import Reason

JOB = "job-1"
RUN = bytes(range(16))
SERVER = SigningKey(b"s" * 32)
QUICK = Patience(again=0.02, absent=0.4, straggler=0.3, together=0.5, enough=0.8)
ENDLESS = 60.0


def key_of(name):
    return SigningKey(name.encode().ljust(32, b"."))


class FakeTrainer:
    """Answers what it is asked; may be slow, decline, or die of it."""

    def __init__(self, name):
        self.name = name
        self.asked, self.openings = [], []
        self.is_alive = False
        self.is_halted = False
        self.behave = lambda phase, payload: name.encode() + b":" + payload
        self.refuse = None
        self.gate = threading.Event()
        self.gate.set()

    def open(self, run, opening):
        if self.is_halted:
            raise DeclinedError(Reason.STOPPED, "halted", "resume")
        if self.refuse is not None:
            raise DeclinedError(self.refuse, "private words", "mend it")
        self.openings.append(opening)
        self.is_alive = True

    def reopen(self):
        if not self.openings:
            raise DeclinedError(Reason.STOPPED, "nothing is open", "open it")
        self.open(RUN, self.openings[-1])

    def ask(self, phase, payload):
        self.gate.wait(ENDLESS)
        self.asked.append(phase)
        return self.behave(phase, payload)

    def die(self, phase, payload):
        self.is_alive = False
        raise DeclinedError(Reason.INTERRUPTED, "it died", "it is started again")

    def halt(self):
        self.is_halted, self.is_alive = True, False

    def resume(self):
        self.is_halted = False


class World:
    """One server and its sites.

    Args:
        folder: for the sites' stop files.
        names: the cohort.
        lose: called with "down" or "up", a site and a count; whether that is lost.
    """

    def __init__(self, folder, names=("a", "b", "c"), lose=lambda way, site, n: False):
        self.folder = folder
        self.names = names
        self.lose = lose
        self.counts = {}
        self.silences, self.absences, self.logs = [], [], {}
        self.trainers, self.desks = {}, {}
        self.is_stopped = False
        self.connected = set()
        self.courier = Courier(
            post=self,
            job=JOB,
            run=RUN,
            key=SERVER,
            sites={name: key_of(name).verify_key for name in names},
            patience=QUICK,
            on_silence=lambda name, why: self.silences.append((name, why)),
            on_absence=lambda there, gone: self.absences.append(sorted(gone)),
            stopped=lambda: self.is_stopped,
        )

    def __enter__(self):
        for name in self.names:
            self.begin(name)
        return self

    def __exit__(self, *error):
        for trainer in self.trainers.values():
            trainer.gate.set()
        for desk in self.desks.values():
            desk.end()

    def begin(self, name, nonce=None, key=None):
        """Start a site's process, or another life of it."""
        self.trainers.setdefault(name, FakeTrainer(name)).resume()
        self.desks[name] = Desk(
            site=name,
            job=JOB,
            key=key or key_of(name),
            server=SERVER.verify_key,
            nonce=nonce or name.encode().ljust(32, b"!"),
            trainer=self.trainers[name],
            stop_file=self.folder / f"{name}.stop",
            send_hello=lambda data: self._up(name, self.courier.hear, data),
            send_answer=lambda data: self._up(
                name, lambda told: self.courier.take(name, told), data
            ),
            say=self.logs.setdefault(name, []).append,
            beat=0.05,
        )
        self.desks[name].start()

    def send(self, site, data):
        """Bring a request to a site, as an engine would."""
        if self._lost("down", site) or site not in self.desks:
            return False
        self.desks[site].receive(data)
        return True

    def is_connected(self, site):
        return site in self.connected

    def until(self, condition):
        """Wait for what other threads bring about."""
        end = time.monotonic() + ENDLESS
        while not condition():
            assert time.monotonic() < end, "it never came about"
            time.sleep(0.005)

    def ready(self):
        """Wait until every site has said hello."""
        self.until(lambda: self.courier.present == set(self.names))
        return self

    def ask(self, phase, deadline=ENDLESS, names=None, number=0):
        """Carry a phase with a message for each site."""
        self.courier.begin(number)
        messages = {name: b"to " + name.encode() for name in names or self.names}
        return self.courier.exchange(phase, messages, deadline)

    def _up(self, name, take, data):
        if self._lost("up", name):
            return False
        take(data)
        return True

    def _lost(self, way, site):
        count = self.counts[way, site] = self.counts.get((way, site), 0) + 1
        return self.lose(way, site, count)
