"""`fgrpo init`: what it writes runs as it stands, and it writes over nothing."""

import importlib.util
import io
import json
import tomllib
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest

from fgrpo_secure.cli import main
from fgrpo_secure.config import PrivacySection, load_config, parse_config
from fgrpo_secure.grpo.data import load_examples
from fgrpo_secure.scaffold import (
    EXPECTED_BATCH,
    HELD_OUT_ROWS,
    SAMPLE_ROWS,
    Answers,
    ask,
    make_answers,
    render,
    suggested_delta,
    suggested_rate,
    write_project,
)
from fgrpo_secure.task import load_task, load_units
from tests.end_to_end.program import ROOT

COLUMN = Answers(unit="patient_id")
BIG = make_answers(
    {
        "clients": "a, b, c,d,e.5",
        "units": "20000",
        "epsilon": "2.5",
        "rounds": "40",
        "unit": "case",
    }
)


def written(folder, answers=None):
    write_project(folder, answers or Answers())
    config, _ = load_config(str(folder / "run.toml"))
    return config


def test_a_new_project_holds_what_its_owner_changes_and_nothing_else(tmp_path, capsys):
    folder = tmp_path / "mine"
    assert main(["init", str(folder), "--yes"]) == 0
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    names = ("north", "south", "west")
    data = {f"data/{name}{part}.jsonl" for name in names for part in ("", "-heldout")}
    assert found == {"run.toml", "rewards.py"} | data
    shown = capsys.readouterr().out
    assert all(str(folder / name) in shown for name in found)
    assert f"plan {folder / 'run.toml'}" in shown


def test_what_is_written_can_be_checked_and_planned(tmp_path, capsys):
    config = str(tmp_path / "run.toml")
    assert main(["init", str(tmp_path), "--yes"]) == 0
    assert main(["check", config]) == 0
    capsys.readouterr()
    assert main(["plan", config, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert 7.9 < plan["epsilon_pld"] <= 8
    assert set(plan["expected_batch"].values()) == {float(EXPECTED_BATCH)}


def test_the_same_answers_give_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        write_project(tmp_path / name, COLUMN)
    for path in (tmp_path / "one").rglob("*.*"):
        other = tmp_path / "two" / path.relative_to(tmp_path / "one")
        assert path.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("folder", ["", "deep/down"])
def test_a_folder_may_be_new_or_empty(tmp_path, folder):
    assert written(tmp_path / folder).privacy.rounds == 10


# run.toml.


def test_every_line_of_privacy_has_a_sentence_that_explains_it():
    for answers in (Answers(), COLUMN):
        lines = render(answers).partition("[federation]")[0].splitlines()
        keys = [at for at, line in enumerate(lines) if line and line[0].isalpha()]
        named = {lines[at].partition(" ")[0] for at in keys}
        # One draw, one step and 32 bits are what a beginner needs not decide.
        optional = {"local_steps", "inner_steps", "modulus_bits", "rotation"}
        if answers is not COLUMN:
            optional |= {"max_prompts_per_unit"}
        assert named == set(PrivacySection.model_fields) - optional
        assert all(lines[at - 1].startswith("# ") for at in keys)
        assert all(lines[at - 1].endswith(".") for at in keys)


def test_the_answers_are_what_the_configuration_says():
    config = parse_config(render(BIG), Path("/nowhere"), "test")
    assert [client.name for client in config.client] == ["a", "b", "c", "d", "e.5"]
    assert {client.units for client in config.client} == {20000}
    assert config.privacy.unit == "case"
    assert config.privacy.max_prompts_per_unit == 4
    assert config.privacy.epsilon == Decimal("2.5")
    assert config.privacy.rounds == 40
    assert config.privacy.delta == Decimal("0.000001")
    assert config.privacy.sampling_rate == Decimal("0.005")
    assert config.federation.min_survivors == 4


@pytest.mark.parametrize("answers", [Answers(), COLUMN, BIG], ids="abc")
def test_no_line_is_wider_than_a_screen_and_no_placeholder_is_left(answers):
    text = render(answers)
    assert "$" not in text
    assert max(map(len, text.splitlines())) <= 88
    assert "\n\n\n" not in text


@pytest.mark.parametrize("units", [1, 9, 10, 11, 364, 1000, 1001, 3000, 99999])
def test_a_suggested_delta_is_the_largest_power_of_ten_that_a_plan_accepts(units):
    delta = suggested_delta(units)
    assert Fraction(delta) <= Fraction(1, 10 * units) < 10 * Fraction(delta)


@pytest.mark.parametrize("units", [1, 20, 150, 200, 364, 1000, 3000, 10**6])
def test_a_suggested_rate_draws_about_as_many_units_as_are_wanted(units):
    rate = suggested_rate(units)
    assert 0 < rate <= Decimal("0.5")
    batch = float(rate * units)
    wanted = min(EXPECTED_BATCH, units / 2)
    assert abs(batch - wanted) <= 0.05 * wanted


def test_a_directory_as_the_base_is_found_from_where_the_file_will_lie(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(ROOT / "fgrpo_secure")
    answers = make_answers({"base": "assets/tiny"})
    config = written(tmp_path / "mine", answers)
    assert config.model.base == str(ROOT / "fgrpo_secure" / "assets" / "tiny")


def test_a_hub_name_as_the_base_stays_one_and_gets_a_models_usual_settings(tmp_path):
    config = written(tmp_path, make_answers({"base": "some/model"}))
    assert config.model.base == "some/model"
    assert config.model.target_modules == ("q_proj", "v_proj")
    assert config.grpo.max_tokens == 64


def test_the_embedded_model_is_named_the_same_from_any_folder(tmp_path):
    found = {written(tmp_path / name).model.base for name in ("a", "b/c")}
    assert found == {str(ROOT / "fgrpo_secure" / "assets" / "tiny")}


# Rewards and data.


def test_the_reward_is_a_working_one(tmp_path):
    write_project(tmp_path, Answers())
    spec = importlib.util.spec_from_file_location("made", tmp_path / "rewards.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.exact(["p"] * 3, [" 12 ", "13", ""], ["12"] * 3, further=[1] * 3)
    assert found == [1.0, 0.0, 0.0]


def test_the_rows_are_those_of_the_package_and_no_two_clients_share_any(tmp_path):
    names = tuple(f"c{number}" for number in range(9))
    config = written(tmp_path, Answers(clients=names))
    known = {
        line
        for path in (ROOT / "fgrpo_secure" / "assets" / "data").glob("*.jsonl")
        for line in path.read_text("utf-8").splitlines()
    }
    seen = set()
    for client in config.client:
        for source, count in ((client.data, SAMPLE_ROWS), (client.eval_data, 100)):
            lines = Path(source).read_text("utf-8").splitlines()
            assert len(lines) == count
            assert known >= set(lines)
            assert not seen & set(lines)
            seen |= set(lines)
    assert HELD_OUT_ROWS == 100


def test_as_many_clients_as_a_cohort_holds_each_get_rows(tmp_path):
    names = tuple(f"c{number}" for number in range(60))
    for client in written(tmp_path, Answers(clients=names)).client:
        assert len(load_examples(client.data)) == SAMPLE_ROWS


def test_units_of_a_column_are_made_up_and_some_have_more_than_may_count(tmp_path):
    config = written(tmp_path, COLUMN)
    client = config.client_named("north")
    units = load_units(config, client)
    assert len(units) == COLUMN.unit_count
    sizes = {len(unit.examples) for unit in units.values()}
    assert sizes == {1, 2, 3, 4}
    examples = load_examples(client.data)
    assert len(examples) == SAMPLE_ROWS
    assert all(e.columns["patient_id"].startswith("made-up-") for e in examples)


def test_nobody_of_the_sample_is_held_out_and_trained_on(tmp_path):
    for client in written(tmp_path, COLUMN).client:
        trained, held_out = (
            {example.columns["patient_id"] for example in load_examples(source)}
            for source in (client.data, client.eval_data)
        )
        assert not trained & held_out
        assert len(held_out) > 1


def test_a_check_of_the_sample_finds_nobody_who_is_held_out_and_trained_on(
    tmp_path, capsys
):
    written(tmp_path / "mine", COLUMN)
    assert main(["check", str(tmp_path / "mine" / "run.toml"), "--client", "west"]) == 0
    assert "held-out" not in capsys.readouterr().out


def test_a_unit_column_may_not_be_one_that_the_sample_needs(tmp_path):
    from fgrpo_secure.errors import ConfigurationError

    for column in ("answer", "prompts", "completions", " "):
        with pytest.raises(ConfigurationError, match="unit cannot be"):
            make_answers({"unit": column})


def test_the_sample_is_one_that_a_client_can_open(tmp_path):
    from fgrpo_secure.task import load_run_policy

    config = written(tmp_path, COLUMN)
    task = load_task(config, config.client_named("west"), load_run_policy(config))
    longest = max(len(row) for rows in task.prompts.values() for row in rows)
    assert longest <= config.grpo.max_prompt_tokens


# Questions.


class Terminal:
    """Answers questions from a list, and remembers what was asked and said."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked, self.said = [], []

    def read(self, question):
        self.asked.append(question)
        return self.answers.pop(0)

    def say(self, text):
        self.said.append(text)


def test_empty_answers_are_the_defaults():
    terminal = Terminal(*[""] * 6)
    assert ask({}, terminal.read, terminal.say) == Answers()
    assert len(terminal.asked) == 6
    assert "[north,south,west]" in terminal.asked[0]
    assert "[embedded:tiny]" in terminal.asked[1]


def test_what_was_given_is_not_asked_and_a_wrong_answer_is_asked_again():
    terminal = Terminal("a,b", "a,b,c", "", "", "500", "none", "2")
    found = ask({"rounds": "7", "epsilon": "1"}, terminal.read, terminal.say)
    assert found.clients == ("a", "b", "c")
    assert (found.rounds, found.epsilon) == (7, 1)
    assert "at least 3 clients" in terminal.said[0]
    assert terminal.answers == ["none", "2"]


def test_the_number_of_units_that_is_proposed_is_that_of_the_sample():
    terminal = Terminal("", "", "patient_id", "", "", "")
    ask({}, terminal.read, terminal.say)
    assert f"[{COLUMN.unit_count}]" in terminal.asked[3]


class Standard(io.StringIO):
    """Standard input that is a terminal."""

    def isatty(self):
        return True


@pytest.mark.parametrize("given", [None, io.StringIO("a,b,c\n" * 6)])
def test_nothing_is_asked_where_nobody_can_answer(tmp_path, monkeypatch, given):
    monkeypatch.setattr("sys.stdin", given)
    monkeypatch.setattr("builtins.input", lambda _: pytest.fail("asked"))
    assert main(["init", str(tmp_path / "new")]) == 0


def test_nothing_is_asked_of_whoever_says_yes(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", Standard())
    monkeypatch.setattr("builtins.input", lambda _: pytest.fail("asked"))
    assert main(["init", str(tmp_path / "new"), "--yes"]) == 0


def test_a_person_at_a_terminal_is_asked(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", Standard("x,y,z\n\n\n3000\n2\n\n"))
    assert main(["init", str(tmp_path / "new")]) == 0
    config, _ = load_config(str(tmp_path / "new" / "run.toml"))
    assert [client.name for client in config.client] == ["x", "y", "z"]
    assert (config.privacy.epsilon, config.privacy.delta) == (2, Decimal("0.00001"))


def test_whoever_leaves_the_questions_gets_no_files(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", Standard("x,y,z\n"))
    assert main(["init", str(tmp_path / "new")]) == 2
    assert "nothing was written" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_every_file_that_is_written_from_is_in_the_package():
    tree = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    packages = tree["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert "fgrpo_secure" in packages
    scaffold = ROOT / "fgrpo_secure" / "assets" / "scaffold"
    names = {path.name for path in scaffold.iterdir()}
    assert names >= {"run.toml", "client.toml", "rewards.py"}
