import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.errors import BelowThresholdError, PlanMismatchError
from privacy.secagg.terms import require_clients
from tests.privacy.secagg.harness import identity, make_terms


@pytest.mark.parametrize(
    ("clients", "colluders", "threshold"),
    [(3, 0, 2), (3, 1, 3), (4, 0, 3), (4, 1, 3), (10, 3, 7), (200, 66, 134)],
)
def test_the_threshold_is_half_of_clients_and_colluders_plus_one(
    clients, colluders, threshold
):
    terms = make_terms(clients, colluders=colluders, min_survivors=colluders + 2)
    assert terms.roster_threshold(clients) == threshold


@settings(deadline=None)
@given(st.integers(3, 200), st.data())
def test_two_quorums_of_one_roster_share_an_honest_client(clients, data):
    colluders = data.draw(st.integers(0, clients - 2))
    terms = make_terms(200, colluders=colluders, min_survivors=2)
    threshold = terms.roster_threshold(clients)
    # Two sets of t among n share at least 2t - n; colluders answer both.
    assert 2 * threshold - clients > colluders
    assert threshold <= clients
    # One fewer would not do: it is the least threshold.
    assert 2 * (threshold - 1) - clients <= colluders


def test_too_few_adverts_end_the_round():
    terms = make_terms(5, min_survivors=2)
    for clients in (0, 1, 2):
        with pytest.raises(BelowThresholdError, match="3 are needed"):
            terms.roster_threshold(clients)
    with pytest.raises(BelowThresholdError, match="5 are needed"):
        make_terms(5, min_survivors=5).roster_threshold(4)
    # Of three clients with three colluders t would be 4.
    with pytest.raises(BelowThresholdError):
        make_terms(6, colluders=3, min_survivors=5).roster_threshold(3)


def test_the_least_number_of_survivors_is_the_larger_bound():
    terms = make_terms(10, min_survivors=5)
    assert terms.least_clients(3) == 5
    assert terms.least_clients(7) == 7
    require_clients(5, 5, "did it")
    with pytest.raises(BelowThresholdError, match="4 clients did it and 5 are needed"):
        require_clients(4, 5, "did it")


def test_a_cohort_that_is_too_small_or_too_large_is_refused():
    with pytest.raises(PlanMismatchError, match="needs 3"):
        make_terms(2)
    with pytest.raises(PlanMismatchError, match="at most 200"):
        make_terms(201)


def test_a_cohort_of_more_than_200_is_refused_with_the_reason():
    make_terms(200)
    with pytest.raises(PlanMismatchError) as caught:
        make_terms(201)
    said = str(caught.value)
    assert said.startswith("201 clients: ")
    assert "a malicious server that says who dropped out cuts some honest" in said
    assert "with a few colluders, and opens their sum alone" in said
    assert said.endswith("; use several cohorts")


def test_two_parties_with_one_identity_are_refused():
    terms = make_terms(3)
    cohort = dict(terms.cohort)
    cohort["client-001"] = cohort["client-000"]
    with pytest.raises(PlanMismatchError, match="one identity"):
        make_terms(3, cohort=cohort)
    with pytest.raises(PlanMismatchError, match="one identity"):
        make_terms(3, server=terms.cohort["client-002"])


def test_a_client_is_found_by_its_identity():
    terms = make_terms(3)
    assert terms.name_of(identity("client-001").verify_key) == "client-001"
    with pytest.raises(PlanMismatchError, match="not in the cohort"):
        terms.name_of(identity("stranger").verify_key)
