import json
from dataclasses import replace

import pytest

from privacy.errors import BrokenChainError, LedgerError
from privacy.ledger import History, Phase, Role, charge_count, charged, plan_digest
from privacy.ledger.payload import decode_record
from tests.privacy.ledger.synthetic import event_of, make_plan, payloads


@pytest.fixture(scope="module")
def alpha(honest_run):
    return payloads(honest_run / "ledger" / "alpha.jsonl")


@pytest.fixture(scope="module")
def server(honest_run):
    return payloads(honest_run / "ledger" / "server.jsonl")


def replay(records):
    """The history of payloads, whose links are not looked at here."""
    header, _ = decode_record(records[0])
    history = History(header.party, header.role)
    for record in records:
        history = history.after(*decode_record(record))
    return history


def copied(records):
    return json.loads(json.dumps(records))


def record_like(record, kind, **fields):
    header = {
        name: record[name] for name in ("v", "seq", "prev", "party", "role", "run")
    }
    return header | {"kind": kind} | fields


def test_replaying_gives_the_state(alpha, server):
    history = replay(alpha[:7])
    assert history.phase is Phase.CHARGED
    assert history.unfinished
    assert (history.round, history.attempt, history.records) == (2, 1, 7)
    assert charge_count(history.charges) == history.spend.charges == 2
    assert history.totals() == (history.spend, history.lifetime_spend)
    assert replay(server).phase is Phase.CLOSED
    assert replay(server).published == 2
    assert not replay(server).unfinished


def test_totals_without_a_charge_are_zero_at_the_right_deltas(alpha):
    spend, lifetime = replay(alpha[:1]).totals()
    assert (spend.charges, spend.epsilon_pld, str(spend.delta)) == (0, 0, "0.00001")
    assert (lifetime.charges, lifetime.epsilon_rdp, str(lifetime.delta)) == (
        0,
        0,
        "0.0001",
    )
    with pytest.raises(BrokenChainError):
        History("alpha", Role.CLIENT).totals()
    with pytest.raises(BrokenChainError):
        History("alpha", Role.CLIENT).cap_delta  # noqa: B018


def test_equal_events_are_counted_together():
    first, second = event_of(make_plan()), event_of(make_plan(norm_bound=1025))
    charges = charged(charged(charged((), first, 1), second, 2), first, 3)
    assert charges == ((first, 4), (second, 2))
    assert charge_count(charges) == 6


SECOND_RUN = "22" * 16


def reopened(records, **changes):
    again = copied(records[0]) | {"run": SECOND_RUN} | changes
    again["plan_digest"] = plan_digest(again["plan"]).hex()
    return [*records, again]


def test_a_second_run_on_the_same_data_may_be_opened(alpha):
    history = replay(reopened(alpha))
    assert history.charges == ()
    assert charge_count(history.lifetime) == 3
    assert history.run.hex() == SECOND_RUN
    # A run that was never closed may be followed by another, too.
    assert charge_count(replay(reopened(alpha[:4])).lifetime) == 1


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("another data set", lambda r: {"data": "11" * 16}),
        ("a cap at another delta", lambda r: {"cap_delta": "0.001"}),
        ("no cap, where", lambda r: {"cap_epsilon": "infinity"}),
        ("a run that was opened", lambda r: {"run": r["run"]}),
        ("another privacy unit", lambda r: {"plan": r["plan"] | {"unit": "patient"}}),
        ("another key", lambda r: {"roster": r["roster"] | {"alpha": "11" * 32}}),
    ],
)
def test_a_second_run_must_be_of_the_same_data_unit_key_and_cap_delta(
    alpha, what, change
):
    with pytest.raises(LedgerError, match=what):
        replay(reopened(alpha, **change(alpha[0])))


def test_the_server_holds_one_run_and_only_the_server_is_called_so(alpha, server):
    with pytest.raises(LedgerError, match="holds one run"):
        replay(reopened(server))
    with pytest.raises(LedgerError, match="only the server's ledger"):
        replay([record | {"party": "beta"} for record in copied(server)])
    with pytest.raises(LedgerError, match="only the server's ledger"):
        replay([record | {"party": "server"} for record in copied(alpha)])


def test_a_party_that_is_not_in_the_roster_has_no_ledger(alpha):
    with pytest.raises(LedgerError, match="does not hold this party"):
        replay([record | {"party": "delta"} for record in copied(alpha)])


@pytest.mark.parametrize(
    "said", [("joined", 2, 1), ("intent", 1, 1), ("intent", 2, 2), ("intent", 2, 1)]
)
def test_a_resumption_says_what_was_last(alpha, said):
    last, number, attempt = said
    resumed = record_like(
        alpha[7], "resumed", last=last, round=number, attempt=attempt, torn_bytes=0
    )
    if said == ("intent", 2, 1):
        assert replay([*alpha[:7], resumed]).phase is Phase.INTERRUPTED
        return
    with pytest.raises(LedgerError, match="does not say what was last"):
        replay([*alpha[:7], resumed])


def test_a_refusal_changes_nothing(alpha):
    fields = {"reason": "policy_epsilon", "offer_digest": None}
    for count in range(1, 12):
        refused = record_like(alpha[count], "refused", round=0, attempt=0, **fields)
        before, after = replay(alpha[:count]), replay([*alpha[:count], refused])
        assert (after.phase, after.charges) == (before.phase, before.charges)
    refused = record_like(alpha[5], "refused", round=0, attempt=1, **fields)
    with pytest.raises(LedgerError, match="stand only together"):
        replay([*alpha[:5], refused])


def declined_like(record, opened, **changes):
    fields = {name: opened[name] for name in ("software", "plan", "plan_digest")}
    fields |= {"roster": opened["roster"], "reason": "policy_epsilon"}
    return record_like(record, "declined", **fields) | {"run": "11" * 16} | changes


def test_a_plan_that_is_declined_changes_nothing_at_any_place(alpha):
    for count in range(1, len(alpha) + 1):
        like = alpha[min(count, len(alpha) - 1)]
        for run in ("11" * 16, alpha[0]["run"]):
            declined = declined_like(like, alpha[0], run=run)
            before, after = replay(alpha[:count]), replay([*alpha[:count], declined])
            assert after == replace(before, records=before.records + 1, last="declined")


def test_a_plan_that_was_declined_does_not_bind_the_run_that_follows(alpha):
    other = copied(alpha)[0]["plan"] | {"unit": "patient_id", "format": "unheard of"}
    digest = plan_digest(other).hex()
    declined = declined_like(alpha[0], alpha[0], plan=other, plan_digest=digest)
    following = replay([declined, declined, *alpha[:-1]])
    assert following.runs == replay(alpha[:-1]).runs
    assert following.charges == replay(alpha[:-1]).charges
    assert following.terms.unit == "prompt"


@pytest.mark.parametrize(
    ("change", "what"),
    [({"plan_digest": "11" * 32}, "digest of the plan"), ({"roster": {}}, "party")],
)
def test_a_declined_plan_is_named_by_its_digest_and_its_signer(alpha, change, what):
    with pytest.raises(LedgerError, match=what):
        replay([declined_like(alpha[0], alpha[0], **change)])


SERVERS_LIES = {
    "member unknown": (2, {"members": ["alpha", "zeta"]}),
    "sharers beyond the roster": (3, {"sharers": ["alpha", "beta", "gamma", "zeta"]}),
    "survivors beyond the sharers": (3, {"sharers": ["alpha", "beta"]}),
    "head of a stranger": (4, {"heads": {"zeta": "11" * 32}}),
    "dropout unknown": (7, {"dropouts": ["zeta"]}),
    "other survivors": (4, {"survivors": ["alpha", "beta"]}),
    "other adapter": (4, {"adapter_before": "11" * 32}),
    "other round": (4, {"round": 2}),
    "round repeated": (5, {"round": 1}),
    "round beyond": (5, {"round": 4}),
    "not the published adapter": (5, {"adapter_digest": "11" * 32}),
    "counts": (12, {"aborted": 0}),
    "run": (6, {"run": "11" * 16}),
}


@pytest.mark.parametrize("name", SERVERS_LIES)
def test_a_server_record_that_contradicts_the_others_is_refused(server, name):
    place, change = SERVERS_LIES[name]
    records = copied(server)
    records[place] |= change
    with pytest.raises(LedgerError):
        replay(records)


def moved(server, **changes):
    """What the server says after its second round, which was aborted."""
    opened = server[5]
    fields = {
        "round": 2,
        "attempt": 1,
        "adapter_before": opened["adapter_digest"],
        "adapter_after": "22" * 32,
    }
    return record_like(server[8], "moved", **(fields | changes))


def test_an_aborted_round_is_followed_by_where_other_cohorts_moved_the_adapter(server):
    history = replay([*server[:8], moved(server)])
    assert (history.adapter.hex(), history.moved) == ("22" * 32, 1)
    assert (history.phase, history.published, history.aborted) == (Phase.IDLE, 1, 1)
    third = copied(server[8]) | {"adapter_digest": "22" * 32}
    assert replay([*server[:8], moved(server), third]).round == 3
    with pytest.raises(LedgerError, match="start from the published adapter"):
        replay([*server[:9][:8], moved(server), copied(server[8])])


@pytest.mark.parametrize(
    ("place", "changes", "what"),
    [
        (8, {"adapter_before": "11" * 32}, "another adapter than the round"),
        (8, {"round": 1}, "another round or attempt"),
        (8, {"round": 3}, "another round or attempt"),
        # Not before the round has ended, and not after a sum that moved the adapter.
        (7, {}, "cannot follow"),
        (5, {"round": 1}, "no round was just aborted"),
        (1, {}, "another round or attempt"),
    ],
)
def test_an_adapter_that_moved_otherwise_is_refused(server, place, changes, what):
    with pytest.raises(LedgerError, match=what):
        replay([*server[:place], moved(server, **changes)])


def test_an_adapter_moves_once_in_a_round(server):
    records = [*server[:8], moved(server)]
    again = moved(server, adapter_after="33" * 32)
    onward = moved(server, adapter_before="22" * 32, adapter_after="33" * 32)
    for second in (again, onward):
        with pytest.raises(LedgerError, match="no round was just aborted"):
            replay([*records, second])


@pytest.mark.parametrize("kind", ["published", "moved"])
def test_a_step_that_moves_nothing_leaves_no_room_for_another(server, kind):
    """After both, the adapter is still the one that the round started from."""
    if kind == "published":
        records, number = copied(server[:5]), 1
        records[4]["adapter_after"] = records[4]["adapter_before"]
    else:
        start, number = server[5]["adapter_digest"], 2
        records = [*server[:8], moved(server, adapter_after=start)]
    start = records[-1]["adapter_before"]
    with pytest.raises(LedgerError, match="no round was just aborted"):
        replay([*records, moved(server, round=number, adapter_before=start)])


@pytest.mark.parametrize(
    ("place", "change", "what"),
    [
        (6, {"members": ["alpha", "beta", "zeta"]}, "not in the plan"),
        (8, {"round": 4}, "beyond the rounds of the plan"),
    ],
)
def test_a_server_record_that_contradicts_the_plan_alone_is_refused(
    server, place, change, what
):
    records = copied(server[: place + 1])
    replay(records)
    records[place] |= change
    with pytest.raises(LedgerError, match=what):
        replay(records)


def test_a_sum_of_too_few_is_refused_even_if_the_server_says_so_everywhere(server):
    records = copied(server)
    for place in (3, 4):
        records[place]["survivors"] = ["alpha"]
    with pytest.raises(LedgerError, match="1 survivors where a roster of 3 needs 2"):
        replay(records)


@pytest.mark.parametrize(
    ("members", "colluders", "min_survivors", "least"),
    [(3, 0, 1, 2), (3, 1, 1, 3), (3, 0, 3, 3), (2, 0, 1, 2), (2, 1, 1, 2)],
)
def test_a_sum_needs_the_threshold_of_its_roster_and_min_survivors(
    server, members, colluders, min_survivors, least
):
    records = copied(server[:5])
    terms = {"colluders": colluders, "min_survivors": min_survivors}
    records[0]["plan"] |= terms
    records[0]["plan_digest"] = plan_digest(records[0]["plan"]).hex()
    names = ["alpha", "beta", "gamma"]
    records[2]["members"] = records[3]["sharers"] = names[:members]
    records[4]["heads"] = {}
    for survivors in range(1, members + 1):
        for place in (3, 4):
            records[place]["survivors"] = names[:survivors]
        if survivors >= least:
            assert replay(records).published == 1
            continue
        with pytest.raises(LedgerError, match=f"roster of {members} needs {least}"):
            replay(records)


def test_a_client_refuses_to_record_a_sum_below_min_survivors(alpha):
    records = copied(alpha)
    records[4]["survivors"] = ["alpha"]
    with pytest.raises(LedgerError, match="min_survivors"):
        replay(records)


def test_a_sum_of_strangers_is_refused(alpha):
    records = copied(alpha)
    records[4]["survivors"] = ["alpha", "beta", "zeta"]
    with pytest.raises(LedgerError, match="not in the plan"):
        replay(records)


def test_a_client_that_names_itself_among_the_survivors_cannot_have_missed(alpha):
    records = copied(alpha)
    records[4] |= {"status": "missed", "reason": "left_out"}
    with pytest.raises(LedgerError, match="this client is in the sum"):
        replay(records)


def test_an_attempt_may_be_made_again_under_a_higher_number_only(alpha):
    records = copied(alpha[:8])
    joined = copied(alpha[5]) | {"attempt": 2}
    assert replay([*records, joined]).attempt == 2
    with pytest.raises(LedgerError, match="not later"):
        replay([*records, copied(alpha[5])])
