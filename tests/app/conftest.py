"""Federations in one process, closed when their test ends."""

import pytest

from tests.app.federation import Federation
from tests.app.sites import Sites


@pytest.fixture
def federation(tmp_path):
    made = []

    def make(**settings):
        made.append(Federation(tmp_path / str(len(made)), **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def sites(tmp_path):
    made = Sites(tmp_path)
    yield made
    for ledger in made.open_ledgers:
        ledger.close()
