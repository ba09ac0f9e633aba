"""A ledger's codes in words for people: why something was declined or ended."""

from __future__ import annotations

from collections.abc import Mapping

from fgrpo_secure.report.facts import Declination
from privacy.ledger import Reason

_WORDS: Mapping[Reason, str] = {
    Reason.BELOW_THRESHOLD: "too few clients for a sum",
    Reason.MALFORMED_MESSAGE: "a message was not in its form",
    Reason.BAD_SIGNATURE: "a signature was not that of the party it named",
    Reason.FAULTY_SERVER: "the coordinator broke the protocol",
    Reason.FAULTY_CLIENT: "a client broke the protocol",
    Reason.FAULTY_PEER_OR_SERVER: "another client or the coordinator broke the "
    "protocol",
    Reason.SERVER_ABORTED: "the coordinator ended the round",
    Reason.DEADLINE: "no answer came in time",
    Reason.LEFT_OUT: "the sum was opened without this client",
    Reason.INTERRUPTED: "a process ended during the round",
    Reason.STOPPED: "a party stopped",
    Reason.REFUSED: "a client declined",
    Reason.REPLAY: "something was offered that had been there before",
    Reason.PLAN_MISMATCH: "it was not the plan that was agreed on",
    Reason.ADAPTER_MISMATCH: "it was not the adapter that was named",
    Reason.UNKNOWN_PARTY: "a party that is not in the plan",
    Reason.BUDGET_EXCEEDED: "it would have passed the target or the cap on epsilon",
    Reason.UNSUPPORTED_EVENT: "its cost in privacy cannot be computed",
    Reason.LEDGER_UNRELIABLE: "a ledger could not be relied upon",
    Reason.EQUIVOCATION: "the coordinator signed two histories",
    Reason.ROLLBACK: "a ledger was an older copy of itself",
    Reason.POLICY_EPSILON: "the site's policy allows less epsilon",
    Reason.POLICY_DELTA: "the site's policy allows a smaller delta only",
    Reason.POLICY_COHORT: "the site's policy asks for more clients",
    Reason.POLICY_SURVIVORS: "the site's policy asks for more clients in a sum",
    Reason.POLICY_COLLUDERS: "the site's policy asks for a promise against more "
    "clients that work together",
    Reason.POLICY_UNIT: "the site's policy does not allow this privacy unit",
    Reason.POLICY_TRUST: "the site's policy does not allow this kind of trust",
    Reason.POLICY_MODEL: "the site's policy does not list this base model",
    Reason.POLICY_REWARD: "the site's policy does not list this reward function",
    Reason.POLICY_CODE: "a reward function's file is not the one that the site's "
    "policy lists",
    Reason.POLICY_TASK: "the site's policy has no task with this data and these "
    "rewards",
    Reason.NOT_APPROVED: "the site's operator has not approved it",
    Reason.ENVIRONMENT: "the site's own files, policy or machine did not allow it",
}


def in_words(reason: Reason) -> str:
    """Why, for people."""
    return _WORDS[reason]


def declined_what(said: Declination) -> str:
    """What a client said no to."""
    whole = "the plan as a whole" if said.opened else "the plan, before opening it"
    what = f"round {said.round:,}" if said.round else whole
    return what if said.this_run else f"{what}, of another run"
