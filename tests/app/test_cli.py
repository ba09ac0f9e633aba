"""The command line: what other programs read, and errors in two lines."""

import json
import os
import re
import subprocess
import sys
from datetime import datetime

import pytest

from fgrpo_secure.cli import main
from fgrpo_secure.software import software
from tests.end_to_end.program import ROOT, environment, write_config

COMMANDS = (
    [],
    ["init"],
    ["check"],
    ["plan"],
    ["price"],
    ["run"],
    ["ledger"],
    ["ledger", "verify"],
    ["ledger", "show"],
    ["policy"],
    ["policy", "init"],
    ["policy", "check"],
    ["policy", "approve"],
    ["eval"],
)


def ended(arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return caught.value.code


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(command, capsys):
    assert ended([*command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: fgrpo")
    assert len(shown.splitlines()) > 4


def test_the_version_is_printed(capsys):
    assert ended(["--version"]) == 0
    assert capsys.readouterr().out == f"{software()}\n"


def test_the_module_of_the_commands_is_the_command_too(tmp_path):
    """It would else end with 0, whatever it was asked to verify."""
    asked = ["ledger", "verify", str(tmp_path)]
    for module in ("fgrpo_secure", "fgrpo_secure.cli"):
        command = [sys.executable, "-m", module, *asked]
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1, module
        assert "plan.json: missing" in done.stdout


def test_help_and_prices_answer_without_loading_torch():
    code = (
        "import sys\n"
        "from fgrpo_secure.cli import main\n"
        "main(['price', '--sampling-rate', '.5', '--noise-multiplier', '4',"
        " '--rounds', '2', '--delta', '1e-5'])\n"
        "print(sorted({'torch', 'transformers', 'peft'} & set(sys.modules)))\n"
    )
    found = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert found.stdout.splitlines()[-1] == "[]"


# Prices.


def priced(capsys, **changes):
    terms = {
        "sampling-rate": "0.01",
        "noise-multiplier": "1",
        "rounds": "1000",
        "delta": "1e-5",
    } | {name.replace("_", "-"): text for name, text in changes.items()}
    words = [word for name, text in terms.items() for word in (f"--{name}", text)]
    assert main(["price", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("terms", "pld", "rdp"),
    [
        ({}, 1.82824, 2.10775),
        (
            {"sampling_rate": "0.02", "rounds": "300"},
            2.19829,
            2.59222,
        ),
        (
            {
                "sampling_rate": "0.032",
                "noise_multiplier": "0.8",
                "rounds": "100",
            },
            3.87180,
            4.64173,
        ),
    ],
)
def test_prices_are_the_published_ones(capsys, terms, pld, rdp):
    found = priced(capsys, **terms)
    assert found.keys() == {"epsilon_pld", "epsilon_rdp"}
    assert found["epsilon_pld"] == pytest.approx(pld, abs=1e-3)
    assert found["epsilon_rdp"] == pytest.approx(rdp, abs=1e-3)


def test_a_rate_may_be_a_fraction(capsys):
    assert priced(capsys, sampling_rate="1/100") == priced(capsys)


def test_inner_steps_are_one_event_and_cost_more_than_rounds(capsys):
    """Four steps on each of 1000 draws: 13.4, where 4000 draws would be 3.7."""
    found = priced(capsys, inner_steps="4")
    assert found["epsilon_pld"] == pytest.approx(13.4, abs=0.1)


def test_a_price_is_printed_for_people_too(capsys):
    words = "--sampling-rate .01 --noise-multiplier 1 --rounds 1000 --delta 1e-5"
    assert main(["price", *words.split()]) == 0
    shown = capsys.readouterr().out
    assert "1.828" in shown
    assert "2.107" in shown


@pytest.mark.parametrize(
    "change",
    [
        {"sampling_rate": "0"},
        {"sampling_rate": "1.5"},
        {"noise_multiplier": "0"},
        {"noise_multiplier": "-1"},
        {"noise_multiplier": "nan"},
        {"noise_multiplier": "inf"},
        {"rounds": "0"},
        {"delta": "0"},
        {"delta": "1"},
        {"inner_steps": "0"},
    ],
)
def test_a_price_that_makes_no_sense_is_refused(change, capsys):
    terms = {
        "sampling_rate": "0.1",
        "noise_multiplier": "2",
        "rounds": "10",
        "delta": "1e-5",
    } | change
    words = [
        word
        for name, text in terms.items()
        for word in (f"--{name.replace('_', '-')}", text)
    ]
    code = main(["price", *words, "--json"])
    shown = capsys.readouterr()
    assert code == 6
    assert two_lines(shown.err)
    assert not shown.out


@pytest.mark.parametrize("text", ["x", "1/0", "nan", "inf", ""])
def test_a_rate_that_is_no_number_is_a_usage_error(text, capsys):
    words = ["--noise-multiplier", "2", "--rounds", "10", "--delta", "1e-5"]
    assert ended(["price", "--sampling-rate", text, *words]) == 2
    assert "is not a number" in capsys.readouterr().err


# Plans.

PLAN_KEYS = {
    "digest",
    "unit",
    "trust",
    "attack",
    "epsilon_target",
    "epsilon_pld",
    "epsilon_rdp",
    "delta",
    "rounds",
    "sampling_rate",
    "expected_batch",
    "noise_multiplier",
    "statistic_multiplier",
    "noise_share_std",
    "clip_norm",
    "norm_bound",
    "dimension",
    "modulus_bits",
    "rotation",
    "bytes_per_round",
    "bytes_per_parameter",
    "clients",
    "min_survivors",
    "colluders",
    "threshold",
}


def test_a_plan_says_for_programs_what_it_promises(capsys):
    assert main(["plan", "tiny", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.keys() >= PLAN_KEYS
    assert found["unit"] == "prompt"
    assert found["trust"] == "distributed"
    assert (found["epsilon_target"], found["delta"]) == (8.0, 1e-5)
    assert 7.99 < found["epsilon_pld"] <= 8.0 < found["epsilon_rdp"]
    assert found["bytes_per_round"] == 4 * (found["dimension"] + 1)
    assert found["bytes_per_parameter"] == found["bytes_per_round"] / found["dimension"]
    assert (found["norm_bound"], found["modulus_bits"]) == (2**15, 32)
    assert found["rotation"] is False
    assert len(found["digest"]) == 64
    # Two honest shares of three survivors with one colluder.
    wanted = found["noise_multiplier"] * found["norm_bound"] / 2**0.5
    assert found["noise_share_std"] == pytest.approx(wanted, rel=1e-6)


def test_a_plan_says_for_people_what_it_promises_and_what_not(capsys):
    assert main(["plan", "tiny"]) == 0
    shown = capsys.readouterr().out
    titles = ("Protected", "From whom", "How far", "Not protected", "The plan")
    assert [line for line in shown.splitlines() if line.strip() in titles] == [*titles]
    for word in ("epsilon", "delta", "distributed"):
        assert word in shown
    assert max(map(len, shown.splitlines())) < 120


# Errors: two lines, an exit status for the kind, no traceback.


def two_lines(text):
    lines = [line for line in text.splitlines() if line.startswith(("fgrpo:", "   "))]
    return (
        "Traceback" not in text
        and len(lines) == 2
        and lines[0].startswith("fgrpo: ")
        and lines[1].startswith("       ")
    )


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path / "given")


def broken(path, name="sums", rows=None, text=None):
    data = path.parent / f"data/{name}.jsonl"
    data.write_text(text or "".join(json.dumps(row) + "\n" for row in rows))


def refused(capsys, arguments):
    code = main(list(map(str, arguments)))
    shown = capsys.readouterr()
    assert two_lines(shown.err), shown.err
    assert not shown.out
    return code, shown.err


@pytest.mark.parametrize(
    ("override", "code", "word"),
    [
        ("privacy.epsilon=0", 2, "epsilon"),
        ("privacy.rouns=0", 2, "rouns"),
        ("grpo.loss=dapo", 2, "dapo divides by the tokens of the whole batch"),
        ("grpo.scale_rewards=batch", 2, "batch"),
        ("grpo.max_prompt_tokens=5000", 2, "tokens"),
        ("privacy.unit=patient", 2, "patient"),
        ("client.sums.data=none.jsonl", 3, "none.jsonl"),
        ("client.sums.data=rewards.py", 3, "rewards.py"),
        ("model.base=nowhere", 4, "nowhere"),
        ("model.target_modules=no_proj", 4, "no_proj"),
        ("model.lora_rank=5000", 4, "lora_rank"),
        ("model.layers=[99]", 4, "99"),
        ("privacy.local_steps=2", 2, "local_steps"),
        ("client.sums.sampling_rate=2", 2, "sampling_rate"),
        ("privacy.delta=0.01", 6, "delta"),
        ("federation.min_survivors=5", 6, "min_survivors"),
        ("federation.colluders=3", 6, "colluders"),
        ("privacy.epsilon=0.000001", 6, "epsilon"),
    ],
)
def test_a_users_mistake_gets_two_lines_and_its_exit_status(
    config, capsys, override, code, word
):
    found, shown = refused(capsys, ["plan", config, "--set", override])
    assert found == code
    assert word in shown


@pytest.mark.parametrize(
    ("rows", "word"),
    [
        ([{"question": "planted", "answer": "1"}], "no column 'prompt'"),
        ([{"prompt": 17, "answer": "planted"}], "row 1"),
        ([{"prompt": "a", "completions": "planted"}], "completions"),
    ],
)
def test_data_that_cannot_be_used_is_an_error_without_its_text(
    config, capsys, rows, word
):
    broken(config, rows=rows)
    code, shown = refused(capsys, ["plan", config])
    assert code == 3
    assert word in shown
    assert "planted" not in shown


def test_a_line_that_is_not_json_is_named_by_its_number(config, capsys):
    broken(config, text='{"prompt": "a"}\n{"prompt": "planted\n')
    code, shown = refused(capsys, ["plan", config])
    assert code == 3
    assert "line 2" in shown
    assert "planted" not in shown


def test_a_configuration_that_is_missing_is_an_error(capsys):
    assert refused(capsys, ["plan", "none.toml"])[0] == 2
    assert refused(capsys, ["run", "none.toml"])[0] == 2


def test_a_ledger_that_is_missing_is_an_error(tmp_path, capsys):
    assert main(["ledger", "verify", str(tmp_path / "none.jsonl")]) == 1
    assert "none.jsonl" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    assert main(["ledger", "verify", str(tmp_path / "empty")]) == 1
    assert capsys.readouterr().out
    assert refused(capsys, ["ledger", "show", tmp_path / "empty"])[0] == 2


def test_an_adapter_that_is_missing_or_of_another_model_is_an_error(
    tmp_path, config, capsys
):
    path = config.parent / "config.toml"
    arguments = ["eval", path, "--adapter", tmp_path]
    # Without a public evaluation set there is nothing to score.
    code, shown = refused(capsys, arguments)
    assert (code, "eval_public" in shown) == (2, True)
    public = ["client.sums.eval_public=true", "client.sums.eval_data=data/sums.jsonl"]
    words = [word for text in public for word in ("--set", text)]
    assert refused(capsys, [*arguments, *words])[0] == 4


def test_a_run_without_an_output_gets_a_new_folder_named_by_its_configuration():
    from fgrpo_secure.preparation import default_folder

    assert re.fullmatch(r"runs/tiny-\d{8}T\d{6}Z", str(default_folder("tiny")))


def test_a_clock_that_went_back_leads_to_no_folder_of_another_run(
    tmp_path, monkeypatch
):
    from fgrpo_secure import preparation

    class Stopped:
        @staticmethod
        def now(zone):
            return datetime(2026, 1, 2, tzinfo=zone)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(preparation, "datetime", Stopped)
    names = []
    for _ in range(3):
        folder = preparation.default_folder("tiny")
        folder.mkdir(parents=True)
        names.append(folder.name)
    first = "tiny-20260102T000000Z"
    assert names == [first, f"{first}-2", f"{first}-3"]


@pytest.mark.parametrize("arguments", [[], ["plan", "--colour"], ["fly"]])
def test_a_wrong_command_is_a_usage_error(arguments, capsys):
    assert ended(arguments) == 2
    assert "usage:" in capsys.readouterr().err


def test_a_reader_that_goes_away_gets_no_traceback():
    """As `fgrpo plan | head -0` does."""
    reading, writing = os.pipe()
    os.close(reading)
    words = "price --sampling-rate .5 --noise-multiplier 4 --rounds 2 --delta 1e-5"
    found = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "fgrpo_secure", *words.split()],
        env=environment(),
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=120,
    )
    os.close(writing)
    assert found.returncode != 0
    assert "Traceback" not in found.stderr
