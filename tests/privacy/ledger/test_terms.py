"""What a ledger reads of a plan, from strangers' bytes."""

from fractions import Fraction

import pytest

from privacy.errors import MalformedMessageError
from privacy.ledger.terms import read_terms
from tests.plans import cohort, make_plan


def test_the_terms_are_the_plans():
    plan = make_plan(trust="local", local_steps=3, inner_steps=2)
    terms = read_terms(plan.to_json())
    assert (terms.rounds, terms.local_steps) == (3, 3)
    assert terms.registered_charges == plan.registered_charges == 9
    assert terms.clients == {client.name for client in plan.clients}
    assert all(event.inner_steps == 2 for event in terms.events.values())


def test_each_client_is_held_to_its_own_rate():
    clients = (
        *cohort(40, names=["alpha"], rate=Fraction(1, 7)),
        *cohort(40, 40, names=["beta", "gamma"]),
    )
    plan = make_plan(clients=clients)
    rates = {
        name: event.sampling_rate
        for name, event in read_terms(plan.to_json()).events.items()
    }
    tenth = Fraction(1, 10)
    assert rates == {"alpha": Fraction(1, 7), "beta": tenth, "gamma": tenth}


@pytest.mark.parametrize("changes", [{"local_steps": 2}, {"inner_steps": 2}])
def test_a_plan_of_several_steps_without_local_trust_is_refused(changes):
    honest = make_plan().to_json()
    with pytest.raises(MalformedMessageError, match="local trust"):
        read_terms(honest | changes)
    assert read_terms(honest | changes | {"trust": "local"})


@pytest.mark.parametrize("name", ["epsilon", "delta"])
@pytest.mark.parametrize(
    "text",
    [
        *("8e-3", "0.50", "+0.5", " 0.5", "0.5 ", "00.5", ".5", "5.", "0.5_0"),
        *("0.\u0665", "inf", "Infinity", "nan", "0", "-0.5", "1E-400", "9" * 65),
        *("", 0.5, 8, None),
    ],
)
def test_an_epsilon_or_delta_that_is_not_in_its_one_form_is_refused(name, text):
    plan = make_plan().to_json()
    assert read_terms(plan | {name: "0.5"})
    with pytest.raises(MalformedMessageError, match=f"decimal '{name}'"):
        read_terms(plan | {name: text})


def test_only_an_epsilon_may_be_infinite_and_a_delta_is_below_one():
    plan = make_plan().to_json()
    assert read_terms(plan | {"epsilon": "infinity"}).epsilon.is_infinite()
    for text in ("infinity", "1", "2.5"):
        with pytest.raises(MalformedMessageError):
            read_terms(plan | {"delta": text})


@pytest.mark.parametrize("rate", [None, "2/20", "0/1", "3/2", 0.1, 1])
def test_a_client_without_a_rate_in_its_one_form_is_refused(rate):
    plan = make_plan().to_json()
    clients = [dict(client) for client in plan["clients"]]
    clients[1]["sampling_rate"] = rate
    with pytest.raises(MalformedMessageError):
        read_terms(plan | {"clients": clients})


@pytest.mark.parametrize("name", ["../server", "", "a/b", "-a", "a" * 64, "\u00e9", 3])
def test_a_client_whose_name_is_no_file_name_is_refused(name):
    plan = make_plan().to_json()
    clients = [dict(client) for client in plan["clients"]]
    clients[0]["name"] = name
    with pytest.raises(MalformedMessageError):
        read_terms(plan | {"clients": clients})
