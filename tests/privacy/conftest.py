"""Clients that have opened a run."""

import pytest

from tests.plans import make_plan
from tests.privacy.door import Site


@pytest.fixture
def site(tmp_path):
    made = []

    def make(*, cap="200", **changes):
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Site(folder, make_plan(**changes), cap=cap))
        return made[-1]

    yield make
    for one in made:
        one.ledger.close()
