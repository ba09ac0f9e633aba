"""A plan in words that a person can agree to."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from privacy.plan import Plan

_WIDTH = 78


def explain(plan: Plan, facts: Mapping[str, Any]) -> str:
    """What a plan promises, to whom, and what it costs.

    Args:
        plan: the registered terms.
        facts: as `fgrpo plan --json` prints them.

    Returns:
        Text for a terminal.
    """
    batches = sorted(set(facts["expected_batch"].values()))
    batch = (
        f"{batches[0]:g}" if len(batches) == 1 else f"{batches[0]:g}-{batches[-1]:g}"
    )
    statistic = facts["statistic_multiplier"]
    rows = [
        ("plan", facts["digest"]),
        ("unit", f"{plan.unit}: one present or absent at one client"),
        ("trust", f"{plan.trust}: the sum of the clients' noise shares protects"),
        (
            "clients",
            f"{facts['clients']}, at least {plan.min_survivors} in every sum, "
            f"{plan.colluders} may collude; threshold {plan.threshold}",
        ),
        ("rounds", f"{plan.rounds}, every one charged when it begins"),
        (
            "draw",
            f"each unit with probability {facts['sampling_rate']:g}, about {batch} "
            "units a client and round",
        ),
        ("clip norm", f"{facts['clip_norm']:g} (D = {plan.norm_bound} grid steps)"),
        (
            "noise",
            f"multiplier {facts['noise_multiplier']:.4f} in the sum; each share has a "
            f"deviation of {facts['noise_share_std']:.0f} grid steps",
        ),
        (
            "statistic",
            "none"
            if statistic is None
            else f"mean reward, multiplier {statistic:.3g}, seen by its client alone",
        ),
        (
            "epsilon",
            f"{facts['epsilon_pld']:.4f} by PLD (the claim), "
            f"{facts['epsilon_rdp']:.4f} by RDP; target {facts['epsilon_target']:g}",
        ),
        ("delta", f"{facts['delta']:g}"),
        (
            "sends",
            f"{facts['bytes_per_round']:,} bytes a client and round: "
            f"{plan.dimension:,} numbers modulo 2**{plan.modulus_bits}",
        ),
    ]
    table = "\n".join(f"{name:>10}  {text}" for name, text in rows)
    promise = (
        "Promised: whoever sees everything that the run publishes, the coordinator "
        f"and up to {plan.colluders} colluding clients included, cannot tell whether "
        f"any one {plan.unit} was in a client's data, up to (epsilon, delta). A person "
        "with data at several clients, or behind several prompts, is covered several "
        "times less."
    )
    limits = (
        "Not promised: anything about which clients take part, when, or how large "
        "their data sets are; protection if more clients collude than stated; or that "
        "a client which poisons its own update does no harm. SECURITY.md says more."
    )
    return "\n\n".join(
        [table, textwrap.fill(promise, _WIDTH), textwrap.fill(limits, _WIDTH)]
    )
