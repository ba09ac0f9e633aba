"""A ledger's whole spend in words: `fgrpo ledger verify` and `fgrpo ledger show`."""

from decimal import Decimal

import pytest

from fgrpo_secure.cli import main
from privacy.ledger import (
    Budget,
    Ledger,
    Reason,
    Role,
    Status,
    claimed_epsilon,
    price_charges,
    show,
    verify_ledger,
    verify_run,
    write_key_file,
)
from tests.privacy.ledger.synthetic import (
    CLIENTS,
    SyntheticClient,
    make_key,
    make_plan,
    price,
)

KEY = make_key("alpha")
ROSTER = {name: make_key(name).verify_key.raw for name in (*CLIENTS, "server")}


def write(path, *runs, accountant=price_charges):
    """A ledger of closed runs of one charge each; a run is what it is opened with."""
    for number, (plan, opening) in enumerate(runs, 1):
        with Ledger.open(path, KEY, party="alpha", role=Role.CLIENT) as ledger:
            client = SyntheticClient(ledger, plan, accountant)
            client.open(ROSTER, run=bytes([number]) * 16, **opening)
            client.join(1)
            client.intent(1)
            client.outcome(1, Status.MISSED, Reason.DEADLINE)
            client.close()
    return verify_ledger(path, key=KEY.verify_key, price=accountant)


@pytest.fixture
def path(tmp_path):
    (tmp_path / "ledger").mkdir()
    (tmp_path / "keys").mkdir()
    write_key_file(tmp_path / "keys" / "alpha.pub", KEY.verify_key)
    return tmp_path / "ledger" / "alpha.jsonl"


def test_one_run_is_claimed_by_pld_and_several_by_the_filter(path):
    plan = make_plan()
    one = Budget.of(write(path, (plan, {})).runs)
    assert claimed_epsilon(one.lifetime) == one.lifetime.epsilon_pld
    assert one.words() == (
        f"lifetime epsilon {one.lifetime.epsilon_pld} by PLD, of a cap of 20 at delta "
        "0.0001; 1 run, 1 charge"
    )
    path.unlink()
    path.with_name(path.name + ".head").unlink()
    two = Budget.of(write(path, (plan, {}), (plan, {"cap_epsilon": Decimal(25)})).runs)
    assert claimed_epsilon(two.lifetime) == two.lifetime.epsilon_rdp
    assert two.words() == (
        f"lifetime epsilon {two.lifetime.epsilon_rdp} by the Renyi filter at order "
        f"{two.order}, of a cap of 25 at delta 0.0001 (raised from 20); 2 runs, "
        "2 charges"
    )


def test_a_ledger_is_shown_and_verified_with_its_lifetime_and_cap(path, capsys):
    plan = make_plan()
    ledger = write(path, (plan, {}), (plan, {}))
    words = Budget.of(ledger.runs).words()
    assert main(["ledger", "verify", str(path)]) == 0
    assert f"  {words}\n" in capsys.readouterr().out
    shown = show(path)
    assert f"filter at order {ledger.history.cap_order}" in shown[1]
    counted = claimed_epsilon(ledger.history.lifetime_spend)
    line = f"of all runs: charge 2, epsilon {counted} as the filter counts at delta"
    assert sum(line in text for text in shown) == 2
    assert sum("of all runs: charge 1," in text for text in shown) == 2


def test_a_run_without_a_promise_says_infinity_as_everything_else_does(path, capsys):
    plan = make_plan(epsilon="infinity", noise_variance=0, statistic_variance=0)
    write(path, (plan, {"cap_epsilon": Decimal("Infinity")}))
    assert main(["ledger", "verify", str(path)]) == 0
    assert main(["ledger", "show", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "lifetime epsilon infinity by the Renyi filter" in shown
    assert "of a cap of infinity" in shown
    assert "Infinity" not in shown


def test_a_folder_is_reported_with_every_data_sets_budget(honest_run):
    report = verify_run(honest_run, price=price)
    assert report.budgets.keys() == set(CLIENTS)
    for name, spend in report.spends.items():
        assert report.budgets[name].lifetime.charges == spend.charges
        assert report.budgets[name].cap == 20
