import shutil

import pytest

from tests.privacy.ledger.synthetic import write_run


@pytest.fixture(scope="session")
def honest_run(tmp_path_factory):
    """A finished run that verifies. Copy it before changing it."""
    directory = tmp_path_factory.mktemp("run")
    write_run(directory)
    return directory


@pytest.fixture
def run_folder(honest_run, tmp_path):
    """A copy of the honest run that a test may spoil."""
    directory = tmp_path / "run"
    shutil.copytree(honest_run, directory)
    return directory
