"""What a claim says of privacy loss: the run's, each client's and each data set's."""

from __future__ import annotations

from fgrpo_secure.report.claim_terms import Value
from fgrpo_secure.report.facts import ClientFacts, DataSet, RunFacts
from fgrpo_secure.report.figures import FALSE_ALARMS
from fgrpo_secure.report.reasons import declined_what, in_words
from privacy.accountant import TRANSFER_SLACK, delta_slack
from privacy.attacker import Limits
from privacy.contribution import registered_event
from privacy.events import ROUNDING_VARIANCE
from privacy.ledger import Spend, claimed_epsilon, decimal_text, priced
from privacy.plan import Plan
from privacy.renyi import ORDERS, rdp_curve
from privacy.wire import rational


def loss_of(facts: RunFacts) -> dict[str, Value]:
    """Epsilon and delta of the run, by both accountants."""
    plan = facts.plan
    worst = facts.worst
    return {
        "epsilon_target": plan.epsilon,
        "delta": plan.delta,
        "epsilon": decimal_text(facts.epsilon),
        "epsilon_pld": decimal_text(worst.registered.epsilon_pld),
        "epsilon_rdp": decimal_text(worst.registered.epsilon_rdp),
        "of_client": worst.name,
        "epsilon_is_of": "all that the plan registers; what was seen may have decided "
        "that less was charged",
        "epsilon_spent": decimal_text(facts.spent),
        "epsilon_spent_is_of": "the charges of the run"
        if facts.finished
        else "the charges so far; the run has not ended",
        "accountants": [
            "privacy loss distribution, dp-accounting, add or remove (the claim)",
            f"Renyi divergence at integer orders {ORDERS[0]} to {ORDERS[-1]}, our own "
            "(the second opinion)",
        ],
        "slack": {
            "discrete_noise": f"variance less {ROUNDING_VARIANCE} grid steps squared",
            "epsilon": TRANSFER_SLACK,
            "delta": delta_slack(worst.registered.charges),
        },
        "renyi_curve": _curve(plan, worst),
    }


def _curve(plan: Plan, worst: ClientFacts) -> dict[str, Value] | None:
    """Renyi divergence of all that the most exposed client registers, by order."""
    if not plan.promises_privacy:
        return None
    curve = rdp_curve(priced(registered_event(plan, worst.name)))
    whole = curve * worst.registered.charges
    return {
        str(order): float(f"{value:.9g}")
        for order, value in zip(ORDERS.tolist(), whole.tolist(), strict=True)
    }


def client_of(client: ClientFacts) -> dict[str, Value]:
    """One client's spend, promise, refusals and data set."""
    published, missed, aborted = client.outcomes
    return {
        "name": client.name,
        "units": client.terms.units,
        "sampling_rate": rational(client.terms.sampling_rate),
        **_spent(client.spend),
        "registered": _spent(client.registered),
        "rounds": {"published": published, "missed": missed, "aborted": aborted},
        "declined": [
            {
                "what": declined_what(said),
                "this_run": said.this_run,
                "record": "refused" if said.opened else "declined",
                "round": said.round,
                "reason": said.reason.value,
                "in_words": in_words(said.reason),
            }
            for said in client.declined
        ],
        "resumed": client.resumed,
        "attacker": attacker_of(client.limits),
        "data_set": _data_set(client.data_set),
        "held_out_reward": {
            "before": client.reward_before,
            "after": client.reward_after,
            "signed": False,
        },
        "ledger": {
            "records": client.records,
            "head": client.head,
            "key": client.fingerprint,
        },
    }


def _data_set(data_set: DataSet) -> dict[str, Value]:
    budget = data_set.budget
    said: dict[str, Value] = {
        "runs": budget.runs,
        "earlier_runs": data_set.earlier,
        "later_runs": data_set.later,
        "charges": budget.lifetime.charges,
        "epsilon": decimal_text(claimed_epsilon(budget.lifetime)),
        "counted_by": budget.lifetime.claimed.value,
        "filter_order": budget.order,
        "cap_epsilon": decimal_text(budget.cap),
        "promised_epsilon": decimal_text(budget.promise),
        "delta": decimal_text(budget.lifetime.delta),
        "attacker": attacker_of(data_set.limits),
    }
    if budget.runs == 1:
        return said | {"attacker_rests_on": "the registered rounds of the one run"}
    return said | {
        "attacker_rests_on": "the Renyi divergence that the filter lets through under "
        "the promised epsilon, however the runs were chosen",
        "attacker_if_all_runs_were_fixed_in_advance": attacker_of(
            data_set.limits_if_fixed
        ),
    }


def _spent(spend: Spend) -> dict[str, Value]:
    return {
        "charges": spend.charges,
        "delta": decimal_text(spend.delta),
        "epsilon": decimal_text(claimed_epsilon(spend)),
        "epsilon_pld": decimal_text(spend.epsilon_pld),
        "epsilon_rdp": decimal_text(spend.epsilon_rdp),
    }


def attacker_of(limits: Limits) -> dict[str, Value]:
    """Upper bounds, which hold for either direction of the test."""
    return {
        "accuracy_at_even_odds": limits.accuracy,
        "true_positive_rate": {
            f"at_false_positive_rate_{rate:g}": limits.found(rate)
            for rate in FALSE_ALARMS
        },
    }
