"""What a client's runs leave to an attacker: this one, and all in its ledger."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from fgrpo_secure.guarantee import limits_of
from privacy.attacker import NO_LIMIT, Limits, Tradeoff, filter_limit, tradeoff
from privacy.errors import UnsupportedEventError
from privacy.events import Event
from privacy.ledger import Budget, Run, VerifiedLedger, charge_count, priced
from privacy.plan import Plan


class Exposure:
    """What is left to an attacker; what is equal among clients is priced once.

    Args:
        plan: of the run that the report is of.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._of_run: dict[object, Tradeoff] = {}
        self._if_fixed: dict[object, Tradeoff] = {}

    def of_run(self, run: Run, name: str) -> Tradeoff:
        """Of all that this run registers, or was charged where that is more."""
        if not self._plan.promises_privacy:
            return NO_LIMIT
        charged = charge_count(run.history.charges)
        if charged > self._plan.registered_charges:
            return self.if_fixed([run], name, Decimal(self._plan.delta))
        rate = self._plan.client(name).sampling_rate
        if rate not in self._of_run:
            self._of_run[rate] = limits_of(self._plan, name)
        return self._of_run[rate]

    def if_fixed(self, runs: Sequence[Run], name: str, delta: Decimal) -> Tradeoff:
        """Of all that these runs register, as if they had been fixed in advance."""
        counts: dict[Event, int] = {}
        for run in runs:
            terms, history = run.history.terms, run.history
            if terms is None:
                continue
            try:
                event = priced(terms.events[name])
            except UnsupportedEventError:
                return NO_LIMIT
            most = max(terms.registered_charges, charge_count(history.charges))
            counts[event] = counts.get(event, 0) + most
        key = tuple(sorted(counts.items(), key=str)), delta
        if key not in self._if_fixed:
            self._if_fixed[key] = tradeoff(counts, delta)
        return self._if_fixed[key]

    def of_data_set(
        self, ledger: VerifiedLedger, own: Tradeoff
    ) -> tuple[Limits, Limits]:
        """Of all runs in a ledger: however they were chosen, and if they were fixed."""
        if len(ledger.runs) == 1:
            return own, own
        budget = Budget.of(ledger.runs)
        delta = budget.lifetime.delta
        anyhow = filter_limit(budget.order, float(budget.promise), float(delta))
        return anyhow, self.if_fixed(ledger.runs, ledger.party, delta)
