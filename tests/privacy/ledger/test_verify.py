import contextlib
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from privacy.errors import (
    BadSignatureError,
    BrokenChainError,
    DisagreementError,
    LedgerError,
    UnsupportedEventError,
)
from privacy.ledger import (
    Claim,
    Declined,
    Ledger,
    Reason,
    Role,
    Status,
    claimed_epsilon,
    plan_digest,
    price_charges,
    read_history,
    verify_ledger,
)
from privacy.ledger.payload import KINDS
from privacy.ledger.steps import CLIENT_STEPS, SERVER_STEPS
from tests.privacy.ledger.synthetic import (
    CLIENTS,
    SyntheticClient,
    forge,
    make_key,
    make_plan,
    payloads,
    price,
)

KEY = make_key("alpha")
ROSTER = {name: make_key(name).verify_key.raw for name in (*CLIENTS, "server")}


def check(data, key=KEY.verify_key, **options):
    return verify_ledger(data, key=key, price=price, **options)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A ledger of one charged round; 6 lines."""
    path = tmp_path_factory.mktemp("small") / "alpha.jsonl"
    with Ledger.open(path, KEY, party="alpha", role=Role.CLIENT) as ledger:
        client = SyntheticClient(ledger, make_plan())
        client.open(ROSTER)
        client.join(1)
        client.intent(1)
        client.commit(1)
        client.outcome(1, Status.MISSED, Reason.DEADLINE)
        client.close()
    return path


@pytest.fixture(scope="module")
def alpha(honest_run):
    return honest_run / "ledger" / "alpha.jsonl"


def test_an_honest_ledger_verifies(alpha):
    ledger = check(alpha)
    assert (ledger.party, ledger.role) == ("alpha", Role.CLIENT)
    assert ledger.history.spend.charges == 3
    assert ledger.key == KEY.verify_key
    assert check(alpha.read_bytes(), key=None) == ledger


def declined(run=b"a run of another"):
    plan = make_plan(unit="patient_id")
    return Declined(
        run, "tests", plan.to_json(), plan.digest_bytes, ROSTER, Reason.POLICY_UNIT
    )


def test_a_ledger_verifies_with_plans_that_were_declined_anywhere_in_it(tmp_path):
    path = tmp_path / "alpha.jsonl"
    with Ledger.open(path, KEY, party="alpha", role=Role.CLIENT) as ledger:
        client = SyntheticClient(ledger, make_plan())
        ledger.append(declined())
        client.open(ROSTER)
        ledger.append(declined())
        client.join(1)
        ledger.append(declined())
        client.intent(1)
        client.commit(1)
        client.outcome(1, Status.MISSED, Reason.DEADLINE)
        client.close()
        ledger.append(declined())
    # A process that takes it up finds no run to resume.
    Ledger.open(path, KEY, party="alpha", role=Role.CLIENT).close()
    for key in (KEY.verify_key, None):
        found = check(path, key=key)
        assert found.history.records == 10
        (run,) = found.runs
        assert [entry.record.kind for entry in run.entries] == [
            "opened", "joined", "intent", "commit", "outcome", "closed",
        ]  # fmt: skip
    stranger = make_key("alpha", "other")
    with pytest.raises(LedgerError):
        check(path, key=stranger.verify_key)


def test_a_ledger_of_nothing_but_declined_plans_has_no_run_and_verifies(tmp_path):
    path = tmp_path / "alpha.jsonl"
    with Ledger.open(path, KEY, party="alpha", role=Role.CLIENT) as ledger:
        ledger.append(declined())
        other = replace(declined(), roster={"alpha": make_key("beta").verify_key.raw})
        with pytest.raises(LedgerError, match="another key"):
            ledger.append(other)
    assert check(path, key=None).runs == ()
    assert read_history(path, KEY.verify_key, "alpha").runs == frozenset()
    with pytest.raises(LedgerError):
        check(forge([payloads(path)[0]], make_key("beta")), key=None)


def test_a_run_that_is_cut_off_before_a_declined_plan_is_found(tmp_path):
    path = tmp_path / "alpha.jsonl"
    with Ledger.open(path, KEY, party="alpha", role=Role.CLIENT) as ledger:
        SyntheticClient(ledger, make_plan()).open(ROSTER)
        ledger.append(declined())
    with pytest.raises(LedgerError, match="not 'closed'"):
        check(path)
    check(path, closed=False)


def test_a_signer_under_a_key_of_low_order_is_nobody(alpha):
    first, *_ = payloads(alpha)
    first["roster"]["alpha"] = "00" * 32
    with pytest.raises(BadSignatureError, match="low order"):
        check(forge([first], KEY), key=None)


def test_any_byte_that_is_flipped_is_found(small):
    data = small.read_bytes()
    check(data)
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << (place % 8)
        with pytest.raises(LedgerError):
            check(bytes(changed))


def test_any_bit_of_a_line_that_is_flipped_is_found(small):
    lines = small.read_bytes().splitlines(keepends=True)
    last = len(b"".join(lines[:-1]))
    data = b"".join(lines)
    for bit in range(8 * last, 8 * len(data), 7):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(LedgerError):
            check(bytes(changed))


def test_any_line_that_is_dropped_swapped_repeated_or_cut_is_found(alpha):
    lines = alpha.read_bytes().splitlines(keepends=True)
    count = len(lines)
    for place in range(count):
        with pytest.raises(LedgerError):
            check(b"".join(lines[:place] + lines[place + 1 :]))
        with pytest.raises(LedgerError):
            check(b"".join(lines[: place + 1] + lines[place:]))
        with pytest.raises(LedgerError):
            check(b"".join(lines[:place]))
        with pytest.raises(LedgerError):
            check(b"".join(lines[:place]) + lines[place][:-1])
        for other in range(place):
            swapped = list(lines)
            swapped[place], swapped[other] = swapped[other], swapped[place]
            with pytest.raises(LedgerError):
                check(b"".join(swapped))


def test_bytes_put_in_anywhere_are_found(small):
    data = small.read_bytes()
    for place in range(0, len(data) + 1, 41):
        for extra in (b"\n", b" ", b"a", b"\0"):
            with pytest.raises(LedgerError):
                check(data[:place] + extra + data[place:])


def test_an_error_names_the_file_and_the_line(alpha, tmp_path):
    lines = alpha.read_bytes().splitlines(keepends=True)
    lines[4] = lines[4].replace(b"A", b"B", 1)
    path = tmp_path / "alpha.jsonl"
    path.write_bytes(b"".join(lines))
    with pytest.raises(LedgerError, match=r"^alpha\.jsonl:5: "):
        check(path)
    with pytest.raises(LedgerError, match=r"^missing\.jsonl: missing"):
        check(tmp_path / "missing.jsonl")
    with pytest.raises(LedgerError, match="missing, too large, or not a file"):
        check(tmp_path)


def test_a_ledger_of_another_signer_is_found(alpha):
    other = make_key("mallory")
    forged = forge(payloads(alpha), other)
    with pytest.raises(BadSignatureError):
        check(forged)
    with pytest.raises(BadSignatureError):
        check(forged, key=None)
    with pytest.raises(DisagreementError, match="pins another key"):
        check(forged, key=other.verify_key)


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [("seq", 5, "sequence number 5 where 4 belongs"), ("prev", "00" * 32, "link")],
)
def test_a_wrong_number_or_link_is_found_by_itself(alpha, name, value, what):
    key, records = make_key("alpha"), payloads(alpha)[:5]
    whole = forge(records, key, relink=False)
    check(whole, closed=False)
    records[4][name] = value
    with pytest.raises(BrokenChainError, match=f":5: .*{what}"):
        check(forge(records, key, relink=False), closed=False)


def test_one_line_of_another_signer_is_found(alpha):
    own, others = alpha.read_bytes(), forge(payloads(alpha), make_key("mallory"))
    lines, forged = own.splitlines(keepends=True), others.splitlines(keepends=True)
    for place in range(len(lines)):
        mixed = [*lines[:place], forged[place], *lines[place + 1 :]]
        with pytest.raises(BadSignatureError):
            check(b"".join(mixed))


def test_a_run_that_is_not_closed_is_found_unless_it_may_be(alpha):
    lines = alpha.read_bytes().splitlines(keepends=True)
    for count in range(1, len(lines)):
        data = b"".join(lines[:count])
        with pytest.raises(BrokenChainError, match="not 'closed'"):
            check(data)
        assert check(data, closed=False).history.records == count


def changed(alpha, place, change):
    """What the owner itself signs, with one record changed."""
    records = payloads(alpha)
    change(records[place])
    return forge(records, KEY)


INTENT = 2
CLOSED = 12

OWNERS_LIES = {
    "epsilon understated": (INTENT, lambda r: r["spend"].update(epsilon_pld="1.4")),
    "rdp understated": (INTENT, lambda r: r["spend"].update(epsilon_rdp="1.9")),
    "last digit": (INTENT, lambda r: r["spend"].update(epsilon_pld="1.500011")),
    "lifetime understated": (
        INTENT,
        lambda r: r["lifetime"].update(epsilon_pld="1"),
    ),
    "epsilon zero": (INTENT, lambda r: r["spend"].update(epsilon_pld="0")),
    "larger delta": (INTENT, lambda r: r["spend"].update(delta="0.001")),
    "larger lifetime delta": (INTENT, lambda r: r["lifetime"].update(delta="0.1")),
    "fewer charges": (6, lambda r: r["spend"].update(charges=1)),
    "fewer lifetime charges": (6, lambda r: r["lifetime"].update(charges=1)),
    "less noise": (INTENT, lambda r: r["event"].update(noise_variance="4194303")),
    "larger bound": (INTENT, lambda r: r["event"].update(norm_bound=1025)),
    "larger rate": (INTENT, lambda r: r["event"].update(sampling_rate="1/49")),
    "more steps": (INTENT, lambda r: r["event"].update(inner_steps=2)),
    "no statistic": (INTENT, lambda r: r["event"].update(statistic_variance="0")),
    "more releases": (INTENT, lambda r: r.update(releases=2)),
    "other round": (INTENT, lambda r: r.update(round=2)),
    "other attempt": (INTENT, lambda r: r.update(attempt=2)),
    "round repeated": (5, lambda r: r.update(round=1)),
    "round beyond": (8, lambda r: r.update(round=4)),
    "modulus": (3, lambda r: r.update(modulus_bits=31)),
    "not in the sum": (4, lambda r: r.update(survivors=["beta", "gamma"])),
    "too few survivors": (4, lambda r: r.update(survivors=["alpha"])),
    "unknown survivor": (4, lambda r: r.update(survivors=["alpha", "zeta"])),
    "other party": (4, lambda r: r.update(party="beta")),
    "other run": (4, lambda r: r.update(run="11" * 16)),
    "other role": (4, lambda r: r.update(role="server")),
    "records": (CLOSED, lambda r: r.update(records=12)),
    "published": (CLOSED, lambda r: r.update(published=3)),
    "missed": (CLOSED, lambda r: r.update(missed=1)),
    "closed spend": (CLOSED, lambda r: r["spend"].update(epsilon_pld="1")),
    "closed lifetime": (CLOSED, lambda r: r["lifetime"].update(charges=0)),
    "plan changed": (0, lambda r: r["plan"].update(rounds=4)),
    "plan digest": (0, lambda r: r.update(plan_digest="00" * 32)),
    "roster short": (0, lambda r: r["roster"].pop("gamma")),
    "roster long": (0, lambda r: r["roster"].update(delta="00" * 32)),
    "roster without server": (0, lambda r: r["roster"].pop("server")),
    "cap passed": (0, lambda r: r.update(cap_epsilon="4")),
}


@pytest.mark.parametrize("name", OWNERS_LIES)
def test_a_lie_that_the_owner_itself_signs_is_found(alpha, name):
    place, change = OWNERS_LIES[name]
    assert check(forge(payloads(alpha), KEY)).history.records == 13
    with pytest.raises(LedgerError, match=r"^ledger:\d+: "):
        check(changed(alpha, place, change))


DEAR = "0.001"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            {"spend": {"delta": DEAR, "epsilon_pld": "1.501", "epsilon_rdp": "2.003"}},
            "another delta",
        ),
        (
            {
                "lifetime": {
                    "delta": DEAR,
                    "epsilon_pld": "1.501",
                    "epsilon_rdp": "2.003",
                }
            },
            "another delta",
        ),
        (
            {
                "releases": 2,
                "spend": {
                    "charges": 2,
                    "epsilon_pld": "3.00001",
                    "epsilon_rdp": "4.00003",
                },
                "lifetime": {
                    "charges": 2,
                    "epsilon_pld": "3.0001",
                    "epsilon_rdp": "4.0003",
                },
            },
            "not the one that the plan registers",
        ),
    ],
)
def test_a_charge_off_the_plan_is_found_even_if_it_is_priced_right(small, change, what):
    records = payloads(small)
    for name, value in change.items():
        old = records[2][name]
        records[2][name] = old | value if isinstance(value, dict) else value
        if name != "releases":
            records[-1][name] = records[2][name]
    with pytest.raises(DisagreementError, match=f":3: .*{what}"):
        check(forge(records, KEY))


@pytest.mark.parametrize("place", range(1, 12))
def test_a_record_that_the_owner_leaves_out_is_found(alpha, place):
    records = payloads(alpha)
    # `joined` of the aborted round goes with its charge; alone each is found.
    del records[place]
    records[-1]["records"] = 12
    with pytest.raises(LedgerError):
        check(forge(records, KEY))


def test_a_charge_without_a_price_is_found_and_does_not_crash(alpha):
    def no_price(charges, delta, rounds):
        msg = "no"
        raise UnsupportedEventError(msg)

    def divides(charges, delta, rounds):
        return Decimal(1) / Decimal(0), Decimal(0)

    for accountant in (no_price, divides):
        with pytest.raises(DisagreementError, match=r":3: .*no price"):
            verify_ledger(alpha, key=KEY.verify_key, price=accountant)


def test_a_spend_above_the_target_is_found_even_if_it_is_priced_right(tmp_path):
    def dear(charges, delta, rounds):
        return Decimal(100), Decimal(200)

    path = tmp_path / "alpha.jsonl"
    with Ledger.open(path, KEY, party="alpha", role=Role.CLIENT) as ledger:
        client = SyntheticClient(ledger, make_plan())
        client.open(ROSTER, cap_epsilon=Decimal(1000))
        client.join(1)
        client.intent(1)
        client.outcome(1, Status.MISSED, Reason.DEADLINE)
        client.close()
    records = payloads(path)
    for record in (records[2], records[4]):
        record["spend"] |= {"epsilon_pld": "100", "epsilon_rdp": "200"}
        record["lifetime"] |= {"epsilon_pld": "100", "epsilon_rdp": "200"}
    with pytest.raises(LedgerError, match="target epsilon"):
        verify_ledger(forge(records, KEY), key=KEY.verify_key, price=dear)


def one_round(path, plan, accountant, **opening):
    """A closed run of one charge, written with this accountant's figures."""
    with Ledger.open(path, KEY, party="alpha", role=Role.CLIENT) as ledger:
        client = SyntheticClient(ledger, plan, accountant)
        client.open(ROSTER, **opening)
        client.join(1)
        client.intent(1)
        client.outcome(1, Status.MISSED, Reason.DEADLINE)
        client.close()
        return ledger.history


def test_an_infinite_figure_falls_back_to_the_other_accountant(tmp_path):
    figures = [Decimal("Infinity"), Decimal(5)]

    def price_of(charges, delta, rounds):
        return tuple(figures)

    path = tmp_path / "alpha.jsonl"
    history = one_round(path, make_plan(), price_of)
    assert claimed_epsilon(history.spend) == 5
    assert history.lifetime_spend.claimed is Claim.RDP
    verify_ledger(path, key=KEY.verify_key, price=price_of)
    records = payloads(path)
    figures[1] = Decimal("Infinity")
    for record in (records[2], records[4]):
        record["spend"]["epsilon_rdp"] = "infinity"
    with pytest.raises(LedgerError, match="target epsilon"):
        verify_ledger(forge(records, KEY), key=KEY.verify_key, price=price_of)


def test_the_accountants_own_figures_verify_to_the_digit(tmp_path):
    path = tmp_path / "alpha.jsonl"
    history = one_round(path, make_plan(), price_charges)
    assert 0 < history.spend.epsilon_pld < history.spend.epsilon_rdp
    verify_ledger(path, key=KEY.verify_key)
    for which, figure in (("spend", "epsilon_pld"), ("lifetime", "epsilon_rdp")):
        records = payloads(path)
        stated = Decimal(records[2][which][figure])
        records[2][which][figure] = str(stated - Decimal("0.000001"))
        with pytest.raises(DisagreementError, match=r":3: .*not what"):
            verify_ledger(forge(records, KEY), key=KEY.verify_key)


def test_the_tables_speak_of_every_kind_of_record():
    for role, steps in ((Role.CLIENT, CLIENT_STEPS), (Role.SERVER, SERVER_STEPS)):
        kinds = {kind for row in steps.values() for kind in row}
        assert kinds == set(KINDS[role])
        assert {phase for row in steps.values() for phase in row.values()} == set(steps)


@given(st.binary(max_size=400))
def test_no_bytes_do_more_than_be_refused(data):
    with pytest.raises(LedgerError):
        check(data, closed=False)


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_a_spliced_ledger_does_no_more_than_be_refused(small, data):
    whole = small.read_bytes()
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    middle = data.draw(st.binary(max_size=20))
    spliced = whole[:start] + middle + whole[end:]
    if spliced == whole:
        return
    with pytest.raises(LedgerError):
        check(spliced)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 2**53 - 1)
    | st.sampled_from(
        ["", "1/50", "1E-400", "9" * 50, "1e-5", "0" * 64, "alpha", "server", "8"]
    )
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["alpha", "name", "x"]), inner, max_size=2)
    ),
    max_leaves=5,
)


def places(value, path=()):
    """Where every value inside a JSON object stands."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*path, key)
            yield from places(inner, (*path, key))


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_no_value_that_an_owner_signs_crashes_the_verifier(small, data):
    records = payloads(small)
    place = data.draw(st.integers(0, len(records) - 1))
    *path, last = data.draw(st.sampled_from(sorted(places(records[place]))))
    owner = records[place]
    for key in path:
        owner = owner[key]
    owner[last] = data.draw(VALUES)
    if place == 0 and isinstance(records[0].get("plan"), dict):
        # A plan with a fitting digest gets past the first check.
        records[0]["plan_digest"] = plan_digest(records[0]["plan"]).hex()
    with contextlib.suppress(LedgerError):
        check(forge(records, KEY))
