"""What either side of a round holds it to: the plan, the pinned keys, the adapter."""

from __future__ import annotations

from collections.abc import Mapping

from privacy.crypto import Label, VerifyKey, sha256
from privacy.plan import SERVER, Plan
from privacy.secagg.terms import RoundTerms


def adapter_digest(adapter: bytes) -> bytes:
    """What ledgers and messages call an adapter by, 32 bytes."""
    return sha256(Label.ADAPTER, adapter)


def round_terms(
    plan: Plan,
    *,
    roster: Mapping[str, VerifyKey],
    federation: str,
    round_number: int,
    adapter: bytes,
) -> RoundTerms:
    """What a party holds a round to: its own plan, and the adapter it has in hand."""
    return RoundTerms(
        federation=federation,
        plan_digest=plan.digest_bytes,
        adapter_digest=adapter_digest(adapter),
        round_number=round_number,
        cohort={client.name: roster[client.name] for client in plan.clients},
        server=roster[SERVER],
        min_survivors=plan.min_survivors,
        colluders=plan.colluders,
        modulus_bits=plan.modulus_bits,
        vector_length=plan.vector_length,
    )
