"""Small runs in folders, at the accountant's real prices, for reports to be made of."""

from contextlib import contextmanager
from decimal import Decimal
from functools import partial

from privacy.ledger import Declined, Reason, Refused, Status, price_charges
from tests.privacy.ledger.synthetic import RUN, SOFTWARE, SyntheticRun, make_plan

OTHER = bytes(range(16, 32))
PRIVATE = {"noise_variance": 2**21, "min_survivors": 2}
WITHOUT_NOISE = {"epsilon": "infinity", "noise_variance": 0, "statistic_variance": 0}
LOCAL = {"trust": "local", "rounds": 3, "local_steps": 1}


class PricedRun(SyntheticRun):
    """A run whose ledgers verify under the accountant of the program."""

    def __init__(self, directory, **terms):
        directory.mkdir(parents=True, exist_ok=True)
        super().__init__(directory, make_plan(**(PRIVATE | terms)))
        for client in self.clients.values():
            client.price = price_charges

    def open_with(self, **changes):
        """The server's and the clients' first lines."""
        opened = {name: client.open for name, client in self.clients.items()}
        for name, client in self.clients.items():
            client.open = partial(opened[name], **changes)
        self.open()
        for name, client in self.clients.items():
            client.open = opened[name]

    def write_summary(self, **changes):
        super().write_summary(**changes)
        if not self.plan.promises_privacy:
            path = self.directory / "summary.json"
            text = path.read_text("utf-8").replace("Infinity", '"infinity"')
            path.write_text(text)


@contextmanager
def priced_run(directory, **terms):
    """A run whose files are closed in the end, whatever it has come to."""
    run = PricedRun(directory, **terms)
    try:
        yield run
    finally:
        run.close_files()


def finished(directory, cap=20, **terms):
    """Round 1 of all, round 2 aborted, round 3 without gamma, and closed."""
    with priced_run(directory, **terms) as run:
        run.open_with(cap_epsilon=Decimal(cap))
        run.rounds()
        run.finish()
    return directory


def unfinished(directory, **terms):
    """One round, and a second one under way."""
    with priced_run(directory, **terms) as run:
        run.open()
        run.gather(1)
        run.publish(1, tuple(run.clients))
        run.gather(2)
    return directory


def another_run(run, **changes):
    """A run of one missed round in every client's ledger, before or after this one."""
    for client in run.clients.values():
        client.open(run.roster, run=OTHER, **changes)
        client.join(1)
        client.intent(1)
        client.outcome(1, Status.MISSED, Reason.DEADLINE)
        client.close()


def second_of_two(directory, cap=20):
    """A run over ledgers that hold an earlier one."""
    with priced_run(directory) as run:
        another_run(run, cap_epsilon=Decimal(cap))
        run.open_with(cap_epsilon=Decimal(cap))
        run.rounds()
        run.finish()
    return directory


def first_of_two(directory):
    """A run over ledgers that have gone on to a later one, under a larger cap."""
    with priced_run(directory) as run:
        run.open_with(cap_epsilon=Decimal(4))
        run.rounds()
        run.finish()
        another_run(run, cap_epsilon=Decimal(5))
    return directory


def all_aborted(directory):
    """One round, which gave no sum."""
    with priced_run(directory, rounds=1) as run:
        run.open()
        run.gather(1)
        run.abort(1)
        run.finish()
    return directory


def colluding(directory):
    """A plan whose promise holds against one client that works with the server."""
    with priced_run(directory, colluders=1, min_survivors=3, rounds=1) as run:
        run.open()
        run.gather(1)
        run.publish(1, tuple(run.clients))
        run.finish()
    return directory


def resumed(directory):
    """Processes died after the last round, and others closed the ledgers."""
    with priced_run(directory) as run:
        run.open()
        run.rounds()
        for ledger in (run.server, run.clients["alpha"].ledger):
            ledger.append(ledger.history.resumption(0))
        run.finish()
    return directory


def decline(run, name, reason, handle=RUN):
    """A client's own rules keep it out of a run that it does not open."""
    plan = run.plan
    run.clients[name].ledger.append(
        Declined(
            handle, SOFTWARE, plan.to_json(), plan.digest_bytes, run.roster, reason
        )
    )


def declining(directory):
    """Gamma declined another run and this one before it was approved."""
    with priced_run(directory) as run:
        decline(run, "gamma", Reason.POLICY_EPSILON, OTHER)
        decline(run, "gamma", Reason.NOT_APPROVED)
        run.open()
        run.rounds()
        run.finish()
    return directory


def refusing(directory):
    """Gamma declines round 1 before anything is charged."""
    with priced_run(directory) as run:
        run.open()
        gamma = run.clients["gamma"]
        gamma.ledger.append(Refused(0, 0, Reason.POLICY_COHORT, None))
        run.gather(1)
        run.publish(1, tuple(run.clients))
        run.finish()
    return directory
