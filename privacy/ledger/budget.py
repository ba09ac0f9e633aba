"""What a ledger has spent over all its runs, and the most that it may."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from privacy.ledger.codes import Claim
from privacy.ledger.fields import decimal_text
from privacy.ledger.history import claimed_epsilon
from privacy.ledger.records import ClientOpened, Lifetime
from privacy.ledger.verify import Run


@dataclass(frozen=True, slots=True)
class Budget:
    """What a client's data set has spent, and the most that it may.

    Attributes:
        runs: in its ledger.
        lifetime: what all of them were charged.
        cap: most that they may be charged.
        former_cap: the smallest that an earlier run of the ledger had; the cap where
            it was never raised.
        promise: the largest that any run of the ledger had. A cap that was lowered
            binds the spend; what was seen before may have decided on it.
        order: at which the filter counts.
    """

    runs: int
    lifetime: Lifetime
    cap: Decimal
    former_cap: Decimal
    promise: Decimal
    order: int

    @staticmethod
    def of(runs: Sequence[Run]) -> Budget:
        """The budget at the end of a client's runs."""
        opened = [run.opened for run in runs if isinstance(run.opened, ClientOpened)]
        caps = [record.cap_epsilon for record in opened]
        history = runs[-1].history
        return Budget(
            runs=len(runs),
            lifetime=history.totals()[1],
            cap=caps[-1],
            former_cap=min(caps),
            promise=max(caps),
            order=history.cap_order,
        )

    def words(self) -> str:
        """One line for people."""
        by = "PLD"
        if self.lifetime.claimed is Claim.RDP:
            by = f"the Renyi filter at order {self.order}"
        raised = ""
        if self.former_cap < self.cap:
            raised = f" (raised from {decimal_text(self.former_cap)})"
        if self.promise > self.cap:
            raised = f" (lowered: the promise is {decimal_text(self.promise)})"
        return (
            f"lifetime epsilon {decimal_text(claimed_epsilon(self.lifetime))} by {by}, "
            f"of a cap of {decimal_text(self.cap)} at delta "
            f"{decimal_text(self.lifetime.delta)}{raised}; "
            f"{_counted(self.runs, 'run')}, {_counted(self.lifetime.charges, 'charge')}"
        )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
