"""Small runs in folders, at the accountant's real prices, for reports to be made of."""

from contextlib import contextmanager
from decimal import Decimal

from privacy.ledger import Reason, Refused, Status, price_charges
from tests.privacy.ledger.synthetic import SyntheticRun, make_plan

EARLIER = bytes(range(16, 32))
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
        opened = [client.open for client in self.clients.values()]
        for client, once in zip(self.clients.values(), opened, strict=True):
            client.open = lambda roster, once=once: once(roster, **changes)
        self.open()

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


def second_of_two(directory):
    """A run over ledgers that hold an earlier one."""
    with priced_run(directory) as run:
        for client in run.clients.values():
            client.open(run.roster, run=EARLIER)
            client.join(1)
            client.intent(1)
            client.outcome(1, Status.MISSED, Reason.DEADLINE)
            client.close()
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
