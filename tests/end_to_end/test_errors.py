"""Mistakes that only a running client finds."""

import pytest

from fgrpo_secure.cli import main
from tests.end_to_end.program import Program, kinds, write_config


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    """A run whose reward function returns too few numbers."""
    folder = tmp_path_factory.mktemp("refused")
    config = write_config(folder / "given", machine={"workers": 1})
    code = "def exact(prompts, completions, **columns): return [len(prompts[0])]\n"
    (config.parent / "rewards.py").write_text(code)
    program = Program(folder, "run", config, "--output", folder / "out", "--json")
    status = program.wait()
    return folder / "out", status, program


def test_a_mistake_that_a_worker_finds_gets_two_lines_and_its_exit_status(refused):
    _, status, program = refused
    assert status == 3
    what, fix = program.stderr.splitlines()[-2:]
    assert what.startswith("fgrpo: ")
    assert "rewards.py" in what
    assert "1 values for 4 completions" in what
    assert fix.startswith("       ")
    assert "Traceback" not in program.stderr
    assert program.stdout == ""


def test_nothing_is_charged_when_a_client_cannot_be_opened(refused):
    output, _, _ = refused
    for path in (output / "ledger").glob("*.jsonl"):
        assert "intent" not in kinds(path)
    assert not (output / "summary.json").exists()
    assert main(["ledger", "verify", str(output)]) == 1
