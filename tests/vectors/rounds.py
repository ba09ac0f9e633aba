"""Vectors of a whole round.

Four clients, of which the last deals key shares and sends no vector. Everything that is
drawn in it is in the file, so that a second implementation can play every part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from privacy.plan import SERVER
from privacy.secagg.server import abort_message
from tests.privacy.secagg.harness import (
    PHASES,
    Counter,
    Play,
    identity,
    ledger_head,
    make_terms,
)
from tests.vectors.form import Case, File, good

TERMS = make_terms(4, modulus_bits=20, vector_length=3)
DROPOUT = "client-003"
ANOTHER = b"\x0e" * 32


def until(phase: str, *, round_number: int = 7, answered: bool = False) -> Play:
    """The round up to where clients have the messages of a phase, or answered them."""
    play = Play(replace(TERMS, round_number=round_number), restoring=False)
    for earlier in PHASES[: PHASES.index(phase)]:
        play.answer(earlier)
        if earlier == "masked":
            del play.replies[DROPOUT]
        play.collect()
    if answered:
        play.answer(phase)
    return play


def whole_round() -> File:
    """Every message of an honest round, and what follows from them."""
    play = Play(TERMS, restoring=False)
    valid = [good("terms", **_terms()), *_secrets()]
    for phase in PHASES:
        for name, message in play.messages.items():
            if phase in ("advert", "shares", "consistency", "reveal"):
                # The same for everybody: once is enough.
                valid.append(good(f"to answer with {phase}", message=message))
                break
            valid.append(good(f"to {name}, to answer with {phase}", message=message))
        play.answer(phase)
        if phase == "masked":
            del play.replies[DROPOUT]
        valid += [
            good(f"{phase} of {name}", message=message)
            for name, message in play.replies.items()
        ]
        play.collect()
    unmasked = play.server
    valid += [
        good(
            "hashes",
            offer_digest=unmasked.desk.offer_digest,
            roster_hash=until("shares").server.roster.roster_hash,
            sharers_hash=until("masked").server.deal.sharers_hash,
            survivors_hash=until("consistency").server.survivors_hash,
            transcript_hash=unmasked.transcript_hash,
        ),
        good(
            "transcript",
            entries=[
                {"phase": e.phase, "party": e.party, "outcome": e.outcome}
                for e in unmasked.transcript
            ],
        ),
        good("sum", survivors=unmasked.survivors, words=unmasked.residues.tolist()),
        good(
            "published",
            next_adapter_digest=ANOTHER,
            message=unmasked.publish(ANOTHER, ledger_head(SERVER)),
        ),
        good(
            "aborted",
            reason="too few clients",
            message=abort_message(
                TERMS,
                unmasked.desk.offer_digest,
                identity(SERVER),
                "too few clients",
                ledger_head(SERVER),
            ),
        ),
    ]
    about = (
        "A round of four clients; client-003 deals key shares and sends no vector. "
        "`drawn_for_keys` are the seeds of the encryption and mask keys and b; "
        "`drawn_for_shares` the coefficients for b, then those for the mask key."
    )
    return File(about, tuple(valid))


def _terms() -> Mapping[str, object]:
    return {
        "federation": TERMS.federation,
        "plan_digest": TERMS.plan_digest,
        "adapter_digest": TERMS.adapter_digest,
        "round_number": TERMS.round_number,
        "cohort": {name: key.raw for name, key in TERMS.cohort.items()},
        "server": TERMS.server.raw,
        "min_survivors": TERMS.min_survivors,
        "colluders": TERMS.colluders,
        "modulus_bits": TERMS.modulus_bits,
        "vector_length": TERMS.vector_length,
        "deadlines": [1, 2, 3, 4, 5],
        "threshold": TERMS.roster_threshold(len(TERMS.cohort)),
    }


def _secrets() -> list[Case]:
    threshold = TERMS.roster_threshold(len(TERMS.cohort))
    cases = [
        good(
            f"secrets of {SERVER}",
            identity_seed=identity(SERVER).seed,
            nonce=Counter("server")(32),
            ledger_head=ledger_head(SERVER),
        )
    ]
    vectors = Play(TERMS, restoring=False).vectors
    for name in TERMS.cohort:
        keys, polynomials = Counter("join " + name), Counter("deal " + name)
        cases.append(
            good(
                f"secrets of {name}",
                identity_seed=identity(name).seed,
                drawn_for_keys=[keys(32) for _ in range(3)],
                drawn_for_shares=[polynomials(32) for _ in range(2 * (threshold - 1))],
                vector=vectors[name].residues.tolist(),
                ledger_head=ledger_head(name),
            )
        )
    return cases


def files() -> dict[str, File]:
    """By file name, without its suffix."""
    return {"round": whole_round()}
