"""Federations in one process, closed when their test ends."""

import pytest

from tests.app.federation import Federation


@pytest.fixture
def federation(tmp_path):
    made = []

    def make(**settings):
        made.append(Federation(tmp_path / str(len(made)), **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()
