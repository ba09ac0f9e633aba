"""What a cap promises over several runs, whose plans may depend on earlier ones."""

import math
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.errors import BudgetExceededError, LedgerError
from privacy.ledger import (
    Claim,
    ClientOpened,
    History,
    Intent,
    Joined,
    Ledger,
    Outcome,
    Reason,
    Role,
    Status,
    cap_order,
    charge_count,
    charged,
    claimed_epsilon,
    filter_epsilon,
    plan_digest,
    price_charges,
    spends_after,
    verify_ledger,
)
from privacy.ledger.payload import Header
from privacy.renyi import rdp_curve
from tests.plans import cohort
from tests.privacy.ledger.synthetic import (
    CLIENTS,
    SOFTWARE,
    SyntheticClient,
    event_of,
    forge,
    make_key,
    make_plan,
    payloads,
)

KEY = make_key("alpha")
ROSTER = {name: make_key(name).verify_key.raw for name in (*CLIENTS, "server")}
DELTA = Decimal("0.00001")
INFINITE = Decimal("Infinity")


def plan_of(noise=2**22, rate=Fraction(1, 50), rounds=50, epsilon="1000"):
    """Runs that differ in what a round costs; their own targets never bind."""
    clients = cohort(*[2000] * len(CLIENTS), rate=rate, names=CLIENTS)
    return make_plan(
        noise_variance=noise, clients=clients, rounds=rounds, epsilon=epsilon
    )


CHEAP = plan_of(rounds=40)
PLANS = (
    CHEAP,
    plan_of(noise=2**20, rounds=25),
    plan_of(noise=2**18, rounds=2),
    plan_of(noise=2**24, rate=Fraction(1, 5), rounds=60),
    plan_of(noise=2**21, rate=Fraction(1), rounds=3),
)


def nothing(charges, delta, registered):
    """An accountant under which the figure by PLD never refuses anything."""
    return Decimal(0), Decimal(0)


class Book:
    """A client's ledger in memory: the rules alone, without a disk."""

    def __init__(self, price=nothing):
        self.history = History("alpha", Role.CLIENT)
        self.price = price
        self.plan = None

    def append(self, record, run=None):
        header = Header(0, bytes(32), "alpha", Role.CLIENT, run or self.history.run)
        self.history = self.history.after(header, record)

    def open(self, plan, cap, delta=DELTA, order=None):
        before = self.history.opened
        run = (len(self.history.runs) + 1).to_bytes(16, "big")
        given = before.cap_order if before else cap_order(event_of(plan), cap, delta)
        record = ClientOpened(
            run=run,
            software=SOFTWARE,
            plan=plan.to_json(),
            plan_digest=plan_digest(plan.to_json()),
            roster=ROSTER,
            data=bytes(16),
            cap_epsilon=cap,
            cap_delta=delta,
            cap_order=given if order is None else order,
        )
        self.append(record, run)
        self.plan = plan

    def charge(self):
        """One more round, charged and lost."""
        number = self.history.round + 1
        self.append(Joined(number, 1, bytes(32), bytes(32)))
        spend, lifetime = spends_after(self.history, event_of(self.plan), 1, self.price)
        try:
            self.append(Intent(number, 1, event_of(self.plan), 1, spend, lifetime))
        finally:
            end = (Status.MISSED, Reason.INTERRUPTED, (), None, None, None)
            self.append(Outcome(number, 1, *end))


def converted(charges, order, delta=DELTA):
    """Epsilon at one order, by the formula of docs/privacy.md written out again."""
    total = 0.0
    for event, count in charges:
        q = float(event.sampling_rate)
        precision = event.norm_bound**2 / (event.noise_variance - 4)
        precision += event.statistic_norm_bound**2 / (event.statistic_variance - 4)
        terms = [
            math.comb(order, k)
            * (1 - q) ** (order - k)
            * q**k
            * math.exp(min(700, (k * k - k) * precision / 2))
            for k in range(order + 1)
        ]
        total += count * math.log(math.fsum(terms)) / (order - 1)
    return total + math.log1p(-1 / order) - math.log(float(delta) * order) / (order - 1)


def test_the_filter_counts_what_its_formula_says():
    charges = tuple((event_of(plan), 3) for plan in PLANS[:4])
    for order in (2, 5, 9):
        found = filter_epsilon(charges, DELTA, order)
        exact = Decimal(converted(charges, order))
        assert Decimal("-1e-9") <= found - exact <= Decimal("0.0000011")
    assert filter_epsilon((), DELTA, 9) == 0
    silent = event_of(
        make_plan(epsilon="infinity", noise_variance=0, statistic_variance=0)
    )
    assert filter_epsilon(((silent, 1),), DELTA, 9) == INFINITE
    assert filter_epsilon(charges, INFINITE, 9) == INFINITE


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(PLANS), st.integers(0, 60), st.integers(1, 40)),
        min_size=1,
        max_size=6,
    )
)
def test_no_sequence_of_runs_passes_any_cap_that_it_was_opened_under(moves):
    """Plans, caps and how far each run goes are chosen by whoever wants to spend most.

    The accountant that would refuse a single run is switched off, so that only the
    filter stands in the way.
    """
    book, opened = Book(), []
    for plan, rounds, eighths in moves:
        before = book.history
        cap = Decimal(eighths) / 8
        try:
            book.open(plan, cap)
        except BudgetExceededError:
            assert book.history is before
            continue
        # What was charged before a record with a larger cap keeps the smaller one.
        opened.append((cap, before.lifetime))
        for _ in range(min(rounds, plan.rounds)):
            try:
                book.charge()
            except BudgetExceededError:
                break
    order = book.history.cap_order if opened else 2
    for cap, _ in opened:
        later = [place for place, (other, _) in enumerate(opened) if other > cap]
        runs = later[0] if later else len(opened)
        charges = opened[runs][1] if later else book.history.lifetime
        if runs > 1:
            assert converted(charges, order) <= float(cap) + 1e-9


def test_a_run_that_was_chosen_after_another_is_held_to_the_filter_and_not_to_pld():
    """As if both had been fixed in advance, PLD would let many more rounds through."""
    cap = Decimal(4)
    book = Book(price_charges)
    book.open(plan_of(noise=2**20, rounds=20), cap)
    for _ in range(20):
        book.charge()
    assert book.history.lifetime_spend.claimed is Claim.PLD
    dear = plan_of(noise=2**20, rate=Fraction(1, 20), rounds=400)
    book.open(dear, cap)
    # Most of it is charged at once, since a figure by PLD takes its time.
    order, allowed = book.history.cap_order, 1
    while (
        filter_epsilon(
            charged(book.history.lifetime, event_of(dear), allowed), DELTA, order
        )
        <= cap
    ):
        allowed += 1
    book.price = nothing
    for _ in range(allowed - 2):
        book.charge()
    book.price = price_charges
    book.charge()
    last = book.history.lifetime_spend
    assert charge_count(book.history.charges) == allowed - 1
    assert last.claimed is Claim.RDP
    assert claimed_epsilon(last) == last.epsilon_rdp <= cap
    with pytest.raises(BudgetExceededError, match="own cap"):
        book.charge()
    more = charged(book.history.lifetime, event_of(dear), allowed // 4)
    as_if_fixed, _ = price_charges(more, DELTA, dear.rounds)
    assert as_if_fixed < cap < filter_epsilon(more, DELTA, order)


def tight(plan):
    """A cap that a run meets by PLD and not by the filter, at any order."""
    registered = ((event_of(plan), plan.rounds),)
    pld, rdp = price_charges(registered, DELTA, plan.rounds)
    assert pld < rdp
    return (pld + rdp) / 2


def test_no_second_run_follows_one_that_only_pld_allows_however_little_it_charged():
    """Else which accountant is valid would depend on what the first run showed."""
    cap = tight(CHEAP)
    for rounds in (0, 1, CHEAP.rounds):
        book = Book(price_charges if rounds == 1 else nothing)
        book.open(CHEAP, cap)
        for _ in range(rounds):
            book.charge()
        small = plan_of(noise=2**26, rounds=1)
        with pytest.raises(BudgetExceededError, match="leaves the filter no second"):
            book.open(small, cap)
        # Under a cap that the first run fits by the filter it may follow.
        first = filter_epsilon(book.history.first, DELTA, book.history.cap_order)
        with pytest.raises(BudgetExceededError):
            book.open(small, first - Decimal("0.000001"))
        book.open(small, first)


def test_the_cap_of_a_later_run_may_be_lower_and_then_binds():
    book = Book()
    book.open(CHEAP, Decimal(20))
    book.charge()
    first = filter_epsilon(book.history.first, DELTA, book.history.cap_order)
    book.open(PLANS[1], first)
    order = book.history.cap_order
    while (
        filter_epsilon(
            charged(book.history.lifetime, event_of(PLANS[1]), 1), DELTA, order
        )
        <= first
    ):
        book.charge()
    with pytest.raises(BudgetExceededError, match="own cap"):
        book.charge()
    assert 1 <= charge_count(book.history.charges) < PLANS[1].rounds


def test_the_claim_changes_with_the_second_run_even_before_it_charges():
    book = Book(price_charges)
    book.open(CHEAP, Decimal(20))
    assert book.history.totals()[1].claimed is Claim.PLD
    book.charge()
    one = book.history.totals()[1]
    book.open(CHEAP, Decimal(20))
    assert book.history.totals()[1].claimed is Claim.RDP
    assert book.history.totals()[1].epsilon_rdp == one.epsilon_rdp
    assert claimed_epsilon(book.history.totals()[1]) > claimed_epsilon(one)


@pytest.mark.parametrize("order", [2, 255])
def test_the_order_of_the_filter_follows_from_the_first_record(order):
    right = cap_order(event_of(CHEAP), Decimal(20), DELTA)
    assert right not in {2, 255}
    with pytest.raises(LedgerError, match="another order"):
        Book().open(CHEAP, Decimal(20), order=order)
    book = Book()
    book.open(CHEAP, Decimal(20))
    with pytest.raises(LedgerError, match="another order for the filter than before"):
        book.open(CHEAP, Decimal(20), order=order)
    # It does not move with a later run or a later cap.
    assert cap_order(event_of(PLANS[3]), Decimal(40), DELTA) != right
    book.open(PLANS[3], Decimal(40))
    assert book.history.cap_order == right


def test_without_a_cap_any_order_will_do_and_nothing_is_refused():
    baseline = make_plan(epsilon="infinity", noise_variance=0, statistic_variance=0)
    book = Book(lambda *_: (INFINITE, INFINITE))
    book.open(baseline, INFINITE)
    book.charge()
    book.open(baseline, INFINITE)
    book.charge()
    assert claimed_epsilon(book.history.lifetime_spend) == INFINITE
    with pytest.raises(BudgetExceededError):
        book.open(CHEAP, Decimal(20))


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    """A ledger of two runs, each of one charge and closed: 5 lines each."""
    path = tmp_path_factory.mktemp("two") / "alpha.jsonl"
    for number in (1, 2):
        with Ledger.open(path, KEY, party="alpha", role=Role.CLIENT) as ledger:
            client = SyntheticClient(ledger, CHEAP, price_charges)
            client.open(ROSTER, run=bytes([number]) * 16)
            client.join(1)
            client.intent(1)
            client.outcome(1, Status.MISSED, Reason.DEADLINE)
            client.close()
    return path


def lifetime(**changes):
    return lambda record: record["lifetime"].update(changes)


LIES = {
    "order of the first run": (0, lambda r: r.update(cap_order=r["cap_order"] + 1)),
    "order of the second run": (5, lambda r: r.update(cap_order=r["cap_order"] - 1)),
    "order out of range": (0, lambda r: r.update(cap_order=257)),
    "the tighter figure claimed": (7, lifetime(claimed="pld")),
    "the looser figure claimed": (2, lifetime(claimed="rdp")),
    "no figure claimed": (7, lifetime(claimed="gdp")),
    "the filter's figure understated": (7, lifetime(epsilon_rdp="0.1")),
    "the first run's filter figure": (2, lifetime(epsilon_rdp="0.1")),
    "the figure by PLD": (7, lifetime(epsilon_pld="0.01")),
    "earlier runs forgotten": (7, lifetime(charges=1)),
    "the claim when closed": (9, lifetime(claimed="pld")),
    "the cap at another delta": (5, lambda r: r.update(cap_delta="0.001")),
    "a cap below what was spent": (5, lambda r: r.update(cap_epsilon="0.01")),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_about_the_lifetime_is_found_though_its_owner_signed_it(two_runs, name):
    verify_ledger(two_runs, key=KEY.verify_key)
    records = payloads(two_runs)
    place, change = LIES[name]
    change(records[place])
    with pytest.raises(LedgerError, match=rf"^ledger:{place + 1}: "):
        verify_ledger(forge(records, KEY), key=KEY.verify_key)


def test_a_crash_between_runs_and_rounds_forgets_no_charge(two_runs, tmp_path):
    path = tmp_path / "alpha.jsonl"
    for suffix in ("", ".head"):
        source = two_runs.with_name(two_runs.name + suffix)
        path.with_name(path.name + suffix).write_bytes(source.read_bytes())
    ledger = Ledger.open(path, KEY, party="alpha", role=Role.CLIENT)
    client = SyntheticClient(ledger, CHEAP, price_charges)
    client.open(ROSTER, run=bytes([3]) * 16)
    client.join(1)
    client.intent(1)
    ledger.close()
    with Ledger.open(path, KEY, party="alpha", role=Role.CLIENT) as ledger:
        assert ledger.history.first == ((event_of(CHEAP), CHEAP.rounds),)
        assert ledger.history.lifetime_spend.charges == 3
        client = SyntheticClient(ledger, CHEAP, price_charges)
        client.intent(1)
        assert ledger.history.lifetime_spend.charges == 4
        counted = filter_epsilon(
            ((event_of(CHEAP), 4),), ledger.history.cap_delta, ledger.history.cap_order
        )
        assert ledger.history.lifetime_spend.epsilon_rdp == counted


def test_ten_thousand_rounds_are_counted_by_kind_and_not_one_by_one():
    events = [event_of(plan_of(noise=2**22 + 1024 * place)) for place in range(20)]
    charges = tuple((event, 500) for event in events)
    assert charge_count(charges) == 10_000
    rdp_curve.cache_clear()
    filter_epsilon(charges, DELTA, 8)
    filter_epsilon(charged(charges, events[-1], 1), DELTA, 8)
    used = rdp_curve.cache_info()
    assert used.misses == 20
    assert used.hits == 20


def test_a_run_charges_no_more_than_it_registered_however_often_it_is_interrupted():
    """Theorem 5 counts on it."""
    book = Book()
    book.open(plan_of(rounds=2), Decimal(100))
    event = event_of(book.plan)
    book.append(Joined(1, 1, bytes(32), bytes(32)))
    for again in range(2):
        book.append(
            Intent(1, 1, event, 1, *spends_after(book.history, event, 1, book.price))
        )
        if again == 0:
            book.append(book.history.resumption(0))
    book.append(Outcome(1, 1, Status.MISSED, Reason.INTERRUPTED, (), None, None, None))
    with pytest.raises(
        BudgetExceededError, match="more charges than the plan registers"
    ):
        book.charge()
    assert charge_count(book.history.charges) == 2


def test_a_figure_beyond_the_digits_of_a_ledger_is_infinite_and_no_crash():
    event = replace(event_of(CHEAP), noise_variance=5)
    for count in (1, 10**6, 10**31):
        counted = filter_epsilon(((event, count),), DELTA, 256)
        assert counted.is_infinite() == (count == 10**31)


@pytest.mark.parametrize("delta", ["0", "1", "2.5", "Infinity"])
def test_a_cap_at_a_delta_that_promises_nothing_opens_no_run(delta):
    with pytest.raises(LedgerError, match="delta"):
        Book().open(CHEAP, Decimal(20), Decimal(delta))
