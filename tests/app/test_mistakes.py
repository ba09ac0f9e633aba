"""The mistakes that people make most, and what each is told.

Every one is made in a project that `fgrpo init` wrote, with the real command line. What
comes back is an exit status that is documented and two lines: what happened, and what
to do. Nothing of the data is in them.
"""

import json
import shutil

import pytest
import torch

from fgrpo_secure.cli import main
from fgrpo_secure.config import load_config
from fgrpo_secure.grpo.data import Example
from fgrpo_secure.preparation import make_plan, prepare_folder
from fgrpo_secure.trial import _held_out_notices

PLANTED = "planted-4711"
ABSENT_GPU = (
    f"cuda:{torch.cuda.device_count()}" if torch.cuda.is_available() else "cuda"
)


# How a mistake is made. Each of these gives a function of the project's folder, which
# spoils something there and returns what to add to the command line.


def setting(*overrides):
    return lambda folder: [word for text in overrides for word in ("--set", text)]


def toml(old, new, count=1):
    def spoil(folder):
        path = folder / "run.toml"
        text = path.read_text("utf-8")
        assert old in text
        path.write_text(text.replace(old, new, count))
        return []

    return spoil


def without(start, end):
    """Take out of run.toml what stands from one text up to the next other one."""

    def spoil(folder):
        path = folder / "run.toml"
        before, _, rest = path.read_text("utf-8").partition(start)
        path.write_text(before + end + rest.partition(end)[2])
        return []

    return spoil


def file(name, content):
    def spoil(folder):
        data = content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(data)
        return []

    return spoil


def rows(*values):
    return file("data/north.jsonl", "".join(json.dumps(row) + "\n" for row in values))


def other_data(name, content=""):
    """North's data are in another file, which holds this."""

    def spoil(folder):
        if content:
            (folder / name).write_text(content)
        return ["--set", f"client.north.data={name}"]

    return spoil


def reward(code):
    head = "def exact(prompts, completions, answer, **columns):\n    "
    return file("rewards.py", code if code.startswith("def") else head + code)


SAY_WHERE = "docs/configuration.md"


def both(one, other):
    return lambda folder: one(folder) + other(folder)


CONVERSATION = rows(
    {"prompt": [{"role": "user", "content": PLANTED}], "answer": "1"},
)

# (the mistake, the command, how it is made, status, what happened, what to do)
MISTAKES = [
    # The file.
    (
        "no section [federation]",
        "plan",
        without("[federation]", "[[client]]"),
        2,
        "federation is missing, and has no default",
        "Add the section [federation]: `fgrpo init DIR` writes a file",
    ),
    (
        "no clients at all",
        "plan",
        without("[[client]]", "[model]"),
        2,
        "client is missing",
        "Add the [[client]] tables",
    ),
    (
        "no delta",
        "plan",
        toml("delta = 0.0001", ""),
        2,
        "privacy.delta is missing, and has no default",
        "Add it; docs/configuration.md says what delta means",
    ),
    (
        "a key with a letter missing",
        "plan",
        toml("sampling_rate =", "sampling_rat ="),
        2,
        "privacy.sampling_rat is not a known key",
        "Did you mean sampling_rate?",
    ),
    (
        "a client's key with a letter too much",
        "plan",
        toml("eval_data =", "evals_data ="),
        2,
        "client.north.evals_data is not a known key",
        "Did you mean eval_data?",
    ),
    (
        "a section with a letter missing",
        "plan",
        toml("[server]", "[sever]"),
        2,
        "sever is not a known key",
        "Did you mean [server]?",
    ),
    (
        "a key in a section where it does not belong",
        "plan",
        setting("grpo.learning_rate=0.1"),
        2,
        "grpo.learning_rate is not a known key",
        "learning_rate belongs in [server]",
    ),
    (
        "a key of another program",
        "plan",
        setting("grpo.num_train_epochs=3"),
        2,
        "grpo.num_train_epochs is not a known key",
        "Remove num_train_epochs, or see docs/configuration.md",
    ),
    (
        "a bracket that is not closed",
        "plan",
        toml("[privacy]", "[privacy"),
        2,
        "is not valid TOML",
        "Correct that line",
    ),
    (
        "a client in single brackets",
        "plan",
        both(without("[[client]]", "[model]"), toml("[model]", "[client]\n[model]")),
        2,
        "client is written in another way than it is read",
        "Write [[client]], in double brackets, once for each",
    ),
    (
        "a section in double brackets",
        "plan",
        both(toml("[model]", "[[model]]"), setting("model.base=embedded:tiny")),
        2,
        "model is written in another way than it is read",
        "Write [model], in single brackets",
    ),
    (
        "a --set without a section",
        "plan",
        setting("rounds=3"),
        2,
        "--set rounds=3 is not section.key=value",
        "--set privacy.rounds=5",
    ),
    (
        "a --set for a client that there is not",
        "plan",
        setting("client.nord.units=3"),
        2,
        "there is no client of that name",
        "with a NAME of the configuration",
    ),
    # The promise.
    (
        "epsilon as text",
        "plan",
        toml("epsilon = 8", 'epsilon = "8"'),
        2,
        "epsilon is text",
        "Write a number, without quotes",
    ),
    (
        "epsilon 0",
        "plan",
        setting("privacy.epsilon=0"),
        2,
        "privacy.epsilon should be greater than 0",
        SAY_WHERE,
    ),
    (
        "an epsilon that no noise can meet",
        "plan",
        setting("privacy.epsilon=0.000001"),
        6,
        "no noise meets the target epsilon",
        "Ask for a larger one, run fewer rounds, or lower the sampling rate",
    ),
    (
        "an epsilon with more decimals than a ledger has",
        "plan",
        setting("privacy.epsilon=7.1234567"),
        6,
        "epsilon has more decimals than ledgers record",
        "Give at most 6",
    ),
    (
        "a statistic that uses all of epsilon",
        "plan",
        setting("privacy.statistic_multiplier=0.2"),
        6,
        "the statistic alone spends the target epsilon",
        "Raise statistic_multiplier",
    ),
    (
        "a delta too large for the data",
        "plan",
        setting("privacy.delta=0.01"),
        6,
        "delta = 0.01 is too large for 1000 units",
        "Use at most 1/(10 N), for example 1e-4",
    ),
    (
        "a sampling rate above 1",
        "plan",
        setting("privacy.sampling_rate=64"),
        2,
        "privacy.sampling_rate should be less than or equal to 1",
        "Correct sampling_rate; docs/configuration.md",
    ),
    (
        "a sampling rate of 0",
        "plan",
        setting("privacy.sampling_rate=0"),
        2,
        "privacy.sampling_rate should be greater than 0",
        "Correct sampling_rate",
    ),
    (
        "too few prompts for the sampling rate",
        "plan",
        setting("privacy.sampling_rate=0.0005"),
        2,
        "At sampling_rate = 0.0005 client north would draw less than one unit a round",
        "Raise [privacy] sampling_rate until 32 or more are drawn a round",
    ),
    (
        "too few declared units for the sampling rate",
        "plan",
        setting("privacy.sampling_rate=0.0005", "client.north.units=1600"),
        2,
        "client north would draw less than one unit a round",
        "Raise [privacy] sampling_rate: 0.02 draws 32 of the declared units a round",
    ),
    (
        "more prompts of a unit than a plan can hold",
        "plan",
        setting("privacy.unit=answer", f"privacy.max_prompts_per_unit={10**30}"),
        2,
        "privacy.max_prompts_per_unit should be less than or equal to 2147483647",
        "Correct max_prompts_per_unit",
    ),
    (
        "a clip norm of a million digits",
        "plan",
        setting("privacy.clip_norm=1e-9999999"),
        2,
        "clip_norm has more than 1000 digits",
        "Write a number of a usual size",
    ),
    (
        "no rounds",
        "plan",
        setting("privacy.rounds=0"),
        2,
        "privacy.rounds should be greater than or equal to 1",
        "Correct rounds",
    ),
    (
        "a trust that there is not",
        "plan",
        setting("privacy.trust=central"),
        2,
        "privacy.trust should be 'distributed' or 'local'",
        "Correct trust",
    ),
    (
        "several steps under one noise",
        "plan",
        setting("privacy.local_steps=4"),
        2,
        "does not cover what one unit of an early step changes in the later ones",
        'Set trust = "local", whose every step carries all of its noise',
    ),
    (
        "a rate of a client at which it would draw nothing",
        "plan",
        setting("client.north.sampling_rate=0.0005"),
        2,
        "At sampling_rate = 0.0005 client north would draw less than one unit a round",
        "Raise its sampling_rate until 32 or more are drawn",
    ),
    (
        "a column as the unit without a bound on its prompts",
        "plan",
        setting("privacy.unit=answer"),
        2,
        "max_prompts_per_unit is missing",
        "State how many prompts of one 'answer' may count",
    ),
    (
        "a unit that is no column",
        "plan",
        setting("privacy.unit=patient", "privacy.max_prompts_per_unit=2"),
        3,
        "no column 'patient', which [privacy] unit names",
        "Name one of its columns, or use 'prompt'. `fgrpo check` lists the columns",
    ),
    (
        "a unit that is no column, found by its owner",
        "check",
        setting("privacy.unit=patient", "privacy.max_prompts_per_unit=2"),
        3,
        "no column 'patient', which [privacy] unit names",
        "Its columns are: answer, prompt.",
    ),
    # The parties.
    (
        "two clients",
        "plan",
        without('[[client]]\nname = "west"', "[model]"),
        6,
        "2 clients, and secure aggregation needs 3",
        "Add clients",
    ),
    (
        "two clients of one name",
        "plan",
        toml('name = "west"', 'name = "north"'),
        6,
        "two clients have one name",
        "Give each its own",
    ),
    (
        "a client's name with a space",
        "plan",
        toml('name = "west"', 'name = "far west"'),
        6,
        "a client's name has letters, digits and ._- only",
        "Rename 'far west'",
    ),
    (
        "more survivors than clients",
        "plan",
        setting("federation.min_survivors=4"),
        6,
        "min_survivors is 4 of 3 clients",
        "Set it to at most 3",
    ),
    (
        "as many colluders as clients",
        "plan",
        setting("federation.colluders=3"),
        6,
        "colluders is 3 of 3 clients",
        "Set it to at most 2",
    ),
    (
        "colluders that leave no honest noise",
        "plan",
        setting("federation.min_survivors=2", "federation.colluders=2"),
        6,
        "min_survivors = 2 with colluders = 2 leaves no honest noise share",
        "Raise min_survivors above colluders",
    ),
    (
        "fewer units than there are, in a plan",
        "plan",
        setting("client.north.units=900"),
        2,
        "Client north declares fewer units than it has",
        "Declare at least as many as there are",
    ),
    (
        "fewer units than there are",
        "check",
        setting("client.north.units=900"),
        2,
        "Client north declares fewer units than it has",
        "Declare at least as many as there are",
    ),
    # The learner.
    (
        "a group of one completion",
        "plan",
        setting("grpo.group_size=1"),
        2,
        "grpo.group_size should be greater than or equal to 2",
        "Correct group_size",
    ),
    (
        "a loss over the whole batch",
        "plan",
        setting("grpo.loss=dapo"),
        2,
        "dapo divides by the tokens of the whole batch",
        'Use loss "dr_grpo" or "grpo"',
    ),
    (
        "texts longer than the model has positions",
        "plan",
        setting("grpo.max_prompt_tokens=5000"),
        2,
        "together pass the model's 64 positions",
        "Lower one of them",
    ),
    # The model.
    (
        "a directory that is not there",
        "plan",
        setting("model.base=./nowhere"),
        4,
        "There is no model directory ./nowhere",
        "relative paths resolve from the configuration file",
    ),
    (
        "a hub name without a network",
        "plan",
        setting("model.base=somebody/something"),
        4,
        "somebody/something is no directory, and the hub did not give it",
        "without a network, download it first",
    ),
    (
        "a directory without a model",
        "plan",
        setting("model.base=data"),
        4,
        "The model in the directory",
        "Give a directory with a causal model, its tokenizer and safetensors",
    ),
    (
        "an embedded model that there is not",
        "plan",
        setting("model.base=embedded:large"),
        2,
        "There is no embedded model 'large'",
        'base = "embedded:tiny"',
    ),
    (
        "target modules that there are not",
        "plan",
        setting("model.target_modules=query"),
        4,
        "No layer of LlamaForCausalLM is named 'query'",
        "such as: down_proj",
    ),
    (
        "a rank above the model's width",
        "plan",
        setting("model.lora_rank=5000"),
        4,
        "lora_rank 5000 is more than",
        "Choose a rank of at most 96",
    ),
    (
        "layers that there are not",
        "plan",
        setting("model.layers=[99]"),
        4,
        "The layers [99] hold none of",
        "Choose among the layers 0 to 2",
    ),
    (
        "a GPU that is not there",
        "plan",
        setting(f"machine.device={ABSENT_GPU}"),
        2,
        f'device = "{ABSENT_GPU}" is not here',
        'Set device = "cpu", or install a torch built for the GPU',
    ),
    (
        "a device that there is not",
        "plan",
        setting("machine.device=gpu"),
        2,
        'device = "gpu" is not here',
        'Set device = "cpu"',
    ),
    # The data.
    (
        "a data file that is not there",
        "plan",
        other_data("data/nord.jsonl"),
        3,
        "There is no file",
        "relative ones resolve from the configuration file",
    ),
    (
        "an empty file",
        "plan",
        file("data/north.jsonl", ""),
        3,
        "north.jsonl is empty",
        "Give a data set with rows",
    ),
    (
        "a table with a head alone",
        "plan",
        other_data("data/north.csv", "prompt,answer\n"),
        3,
        "north.csv holds no rows",
        "Give a data set with rows",
    ),
    (
        "a file of another type",
        "plan",
        other_data("north.xlsx", PLANTED),
        3,
        "north.xlsx is of no known kind",
        "Use one of: .csv, .json, .jsonl, .parquet",
    ),
    (
        "no column prompt",
        "plan",
        rows({"question": PLANTED, "answer": "1"}),
        3,
        "north.jsonl has no column 'prompt'",
        "Rename or add it. `fgrpo check` lists the columns for their owner.",
    ),
    (
        "no column prompt, found by its owner",
        "check",
        rows({"question": PLANTED, "answer": "1"}),
        3,
        "north.jsonl has no column 'prompt'",
        "Rename or add it. Its columns are: answer, question.",
    ),
    (
        "a table without a head",
        "plan",
        other_data("data/north.csv", f"4711,{PLANTED},yes\n4712,Jane,no\n"),
        3,
        "north.csv has no column 'prompt'",
        "Its first line may not name its columns",
    ),
    (
        "an object whose keys are people",
        "plan",
        rows({PLANTED: "a", "Prompt": "b"}),
        3,
        "north.jsonl has no column 'prompt'",
        "'Prompt' comes close",
    ),
    (
        "a prompt with half of a surrogate pair",
        "plan",
        rows({"prompt": "a"}, {"prompt": f"{PLANTED} \ud800"}),
        3,
        "north.jsonl, row 2: the prompt is not valid Unicode",
        "Mend the text where it was cut, or leave the row out",
    ),
    (
        "a held-out row with half of a surrogate pair",
        "check",
        file("data/north-heldout.jsonl", '{"prompt": "' + PLANTED + '\\ud800"}\n'),
        3,
        "north-heldout.jsonl, row 1: the prompt is not valid Unicode",
        "Mend the text",
    ),
    (
        "held-out rows without a column that the reward takes",
        "check",
        file("data/north-heldout.jsonl", '{"prompt": "a", "right": "1"}\n'),
        3,
        "rewards.py:exact takes 'answer', and the data have no such column",
        "Rename the argument or the column. Its columns are: prompt, right.",
    ),
    (
        "a prompt that is a number",
        "plan",
        rows({"prompt": "a", "answer": "1"}, {"prompt": 4711, "answer": PLANTED}),
        3,
        "north.jsonl, row 2: the prompt is neither text nor a list of messages",
        '{"role": "user", "content": "..."}',
    ),
    (
        "a line that is not JSON",
        "plan",
        file("data/north.jsonl", '{"prompt": "a"}\n{"prompt": "' + PLANTED),
        3,
        "north.jsonl cannot be read: line 2 is not JSON",
        "Check its encoding (UTF-8) and its form",
    ),
    (
        "a file that is not UTF-8",
        "plan",
        file("data/north.jsonl", f'{{"prompt": "{PLANTED} é"}}'.encode("latin-1")),
        3,
        "it is not UTF-8",
        "Check its encoding",
    ),
    (
        "a column by the name of an argument",
        "plan",
        rows({"prompt": "a", "completions": PLANTED}),
        3,
        "the column 'completions' is one that reward functions receive",
        "Rename the column",
    ),
    (
        "a conversation for a model without a chat template",
        "check",
        both(CONVERSATION, reward("return [0.0 for _ in completions]\n")),
        4,
        "the tokenizer has no chat template",
        "Use an instruction-tuned model, or plain text",
    ),
    # The reward.
    (
        "a reward file that is not there",
        "check",
        setting("client.north.reward=reward.py:exact"),
        3,
        "reward.py for the reward",
        "Paths resolve from the directory of the configuration file",
    ),
    (
        "a reward function that is not there",
        "check",
        setting("client.north.reward=rewards.py:exakt"),
        3,
        "has no function exakt",
        "it has: exact",
    ),
    (
        "a reward without a function",
        "check",
        setting("client.north.reward=rewards.py"),
        3,
        "'rewards.py' does not name a reward",
        "Write module:function or file.py:function",
    ),
    (
        "a reward module that is not installed",
        "check",
        setting("client.north.reward=no_such_package.rewards:exact"),
        3,
        "cannot be imported (ModuleNotFoundError",
        "install what it imports",
    ),
    (
        "a reward file with a slip of the pen",
        "check",
        reward("def exact(prompts, completions:\n    return []\n"),
        3,
        "cannot be imported (SyntaxError: '(' was never closed in rewards.py, line 1)",
        "Correct it",
    ),
    (
        "a reward file that fails and quotes the data",
        "check",
        reward(f"def late(): pass\n\nnames = {{}}\nnames['{PLANTED}']\n"),
        3,
        "cannot be imported (KeyError in rewards.py, line 4)",
        "Correct it",
    ),
    (
        "a reward range upside down",
        "plan",
        setting("client.north.reward_range=[1, 0]"),
        2,
        "client.north: the reward_range [1, 0] is empty",
        "Write the least and then the greatest value",
    ),
    (
        "a reward range with a number missing",
        "plan",
        setting("client.north.reward_range=[1]"),
        2,
        "client.north.reward_range.0.1",
        "docs/configuration.md says what reward_range means",
    ),
    (
        "a reward range that is infinite",
        "plan",
        setting("client.north.reward_range=[0, inf]"),
        2,
        "client.north.reward_range.0.1 should be a finite number",
        "Correct reward_range",
    ),
    (
        "a client without a name",
        "plan",
        toml('name = "south"', ""),
        2,
        "client.(number 2).name is missing",
        "Add it",
    ),
    (
        "two rewards and one range",
        "plan",
        setting('client.north.reward=["rewards.py:exact", "rewards.py:exact"]'),
        2,
        "client.north: 2 in reward and 1 in reward_range",
        "Give each reward its own [low, high]",
    ),
    (
        "a reward that takes a column which the data do not have",
        "check",
        reward("def exact(prompts, completions, solution):\n    return [0.0]\n"),
        3,
        "rewards.py:exact takes 'solution', and the data have no such column",
        "Rename the argument or the column. Its columns are: answer, prompt.",
    ),
    (
        "a reward that looks for a column which the data do not have",
        "check",
        reward("return [float(columns['solution'] == c) for c in completions]\n"),
        3,
        "rewards.py:exact raised KeyError in rewards.py, line 2, when it was tried",
        "Its columns are: answer, prompt.",
    ),
    (
        "a reward that fails and quotes the data",
        "check",
        reward("raise ValueError(prompts[0])\n"),
        3,
        "raised ValueError in rewards.py, line 2",
        "Run it by itself",
    ),
    (
        "a reward for text where the prompts are conversations",
        "check",
        CONVERSATION,
        3,
        "raised AttributeError in rewards.py, line",
        'its text is completion[0]["content"]',
    ),
    (
        "a reward that gives one number for all",
        "check",
        reward("return [1.0]\n"),
        3,
        "returned 1 values for 4 completions",
        "Return one number or None for each completion",
    ),
    (
        "a reward that gives a number and no list",
        "check",
        reward("return 1.0\n"),
        3,
        "returned float instead of a list",
        "Return one number or None for each completion",
    ),
    (
        "a reward that returns nothing",
        "check",
        reward("sum(1 for _ in completions)\n"),
        3,
        "returned NoneType instead of a list",
        "Return one number or None for each completion",
    ),
    (
        "a reward that gives text",
        "check",
        reward("return ['right' for _ in completions]\n"),
        3,
        "returned a str among its values",
        "Return one number or None for each completion",
    ),
    (
        "a held-out file that is not there",
        "check",
        setting("client.north.eval_data=data/held.jsonl"),
        3,
        "There is no file",
        "Check the path",
    ),
    (
        "a check of a client that there is not",
        "check",
        lambda folder: ["--client", "nord"],
        2,
        "There is no client nord",
        "Name one of: north, south, west",
    ),
]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mistakes") / "mine"
    assert main(["init", str(folder), "--yes"]) == 0
    return folder


@pytest.fixture
def project(written, tmp_path):
    return shutil.copytree(written, tmp_path / "mine")


def told(capsys, *arguments):
    """Run a command that fails; returns its status, what happened and what to do."""
    status = main([str(argument) for argument in arguments])
    shown = capsys.readouterr()
    # A run says first what it does; its mistakes are the last that is said.
    told_first = ("Loading libraries", "Registering the plan")
    lines = [x for x in shown.err.splitlines() if not x.startswith(told_first)]
    assert len(lines) == 2, shown.err
    assert lines[0].startswith("fgrpo: ")
    assert lines[1].startswith("       ")
    assert lines[0].endswith(".")
    assert lines[1].endswith((".", "?"))
    assert not shown.out
    assert PLANTED not in shown.err
    return status, lines[0].removeprefix("fgrpo: "), lines[1].strip()


@pytest.mark.parametrize(
    ("command", "make", "status", "happened", "to_do"),
    [mistake[1:] for mistake in MISTAKES],
    ids=[mistake[0] for mistake in MISTAKES],
)
def test_a_mistake_is_told_with_what_to_do(
    project, capsys, command, make, status, happened, to_do
):
    extra = make(project)
    if command == "check":
        # Locality is probed elsewhere; here it would only take time.
        extra = ["--set", "machine.microbatch=1", *extra]
    found, what, fix = told(capsys, command, project / "run.toml", *extra)
    assert found == status
    assert happened in what
    assert to_do in fix


# Folders.


@pytest.mark.parametrize("command", ["plan", "run", "check"])
def test_a_configuration_that_is_not_there(tmp_path, capsys, command):
    status, what, fix = told(capsys, command, tmp_path / "missing.toml")
    assert status == 2
    assert "There is no configuration file" in what
    assert "`fgrpo init DIR` writes one to start from" in fix


def test_an_output_folder_with_other_things_in_it(project, capsys):
    status, what, fix = told(capsys, "run", project / "run.toml", "--output", project)
    assert status == 5
    assert "is not empty and is not a run" in what
    assert "Choose another --output" in fix


def test_an_output_folder_of_a_finished_run(project, capsys, tmp_path):
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "summary.json").write_text("{}")
    status, what, fix = told(
        capsys, "run", project / "run.toml", "--output", tmp_path / "done"
    )
    assert status == 5
    assert "holds a finished run" in what
    assert "Choose another --output" in fix


def test_a_run_that_is_resumed_with_another_configuration(project, capsys, tmp_path):
    root = tmp_path / "begun"
    config, _ = load_config(str(project / "run.toml"))
    plan, _ = make_plan(config)
    prepare_folder(root, config, plan)
    changed = ["--set", "privacy.rounds=9"]
    status, what, fix = told(
        capsys, "run", project / "run.toml", "--output", root, *changed
    )
    assert status == 5
    assert "holds an unfinished run of another plan" in what
    assert f"Go on with it by `fgrpo run {root / 'config.toml'} --output {root}`" in fix


def test_an_output_that_cannot_be_made(project, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    status, what, fix = told(
        capsys, "run", project / "run.toml", "--output", tmp_path / "file" / "out"
    )
    assert status == 5
    assert str(tmp_path / "file") in what
    assert "may be written to and has room" in fix


def test_a_new_project_in_a_folder_that_is_not_empty(project, capsys):
    before = {path: path.read_bytes() for path in project.rglob("*.toml")}
    status, what, fix = told(capsys, "init", project, "--yes")
    assert status == 5
    assert "is not an empty folder" in what
    assert "nothing is written over other files" in fix
    assert {path: path.read_bytes() for path in project.rglob("*.toml")} == before


@pytest.mark.parametrize(
    ("words", "status", "happened", "to_do"),
    [
        (["--clients", "a,b"], 2, "at least 3 clients", "north,south,west"),
        (["--clients", "a,b,a"], 2, "name stands twice", "Name each once"),
        (["--clients", "a,b,far west"], 6, "a client's name has", "Rename 'far west'"),
        (["--epsilon", "eight"], 2, "eight is no number above 0", "--epsilon"),
        (["--rounds", "0"], 2, "0 is no whole number above 0", "--rounds"),
        (["--unit", "answer"], 2, "The unit cannot be 'answer'", "whose a row is"),
        (["--base", "embedded:large"], 2, "no embedded model 'large'", "embedded:tiny"),
    ],
)
def test_a_new_project_that_cannot_be(tmp_path, capsys, words, status, happened, to_do):
    found, what, fix = told(capsys, "init", tmp_path / "new", "--yes", *words)
    assert found == status
    assert happened in what
    assert to_do in fix
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("words", [[], ["fly"], ["plan", "--colour"], ["init"]])
def test_a_command_that_is_none(capsys, words):
    with pytest.raises(SystemExit) as ended:
        main(words)
    shown = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert shown[0].startswith("usage: fgrpo")
    assert shown[-2].startswith("fgrpo: ")
    assert "--help` says more" in shown[-1]


# What is no error and yet nothing that one would want.


def looked(capsys, project, *words):
    status = main(["check", str(project / "run.toml"), "--client", "north", *words])
    assert status == 0
    shown = capsys.readouterr().out
    assert "for their owner's eyes" in shown
    assert "written into the configuration is itself a release" in shown
    assert PLANTED not in shown
    return [line.strip() for line in shown.splitlines() if line.startswith("  look:")]


def test_prompts_that_would_be_cut_are_counted_for_their_owner(project, capsys):
    found = looked(capsys, project, "--set", "grpo.max_prompt_tokens=9")
    assert len(found) == 1
    assert "1000 of 1000 prompts are longer than max_prompt_tokens = 9" in found[0]
    assert "Raise it, or shorten them. Choose it from what is known" in found[0]
    assert "is itself a release" in found[0]
    # The longest prompt has 11 tokens, and no one row's length is said.
    assert "11" not in found[0]


def test_values_beyond_the_range_are_counted_for_their_owner(project, capsys):
    reward("return [10.0 for _ in completions]\n")(project)
    (found,) = looked(capsys, project)
    assert "gave 32 of 32 values outside its reward_range; they are clipped" in found
    assert "State the least and the greatest value" in found


def test_a_reward_that_knows_no_number_is_named_to_its_owner(project, capsys):
    reward("return [None for _ in completions]\n")(project)
    (found,) = looked(capsys, project)
    assert "gave no number for any of 32 completions" in found
    assert "Return a number wherever one is known" in found


def test_rows_that_do_not_count_are_counted_for_their_owner(project, capsys):
    row = {"prompt": "add 12+19=", "answer": "31"}
    rows(row, row, row | {"prompt": "add 12+29="})(project)
    (found,) = looked(capsys, project)
    assert "1 rows repeat a prompt; the first of each counts" in found
    words = column("answer", most=1)
    (project / "rewards.py").write_text(
        "def exact(prompts, completions): return [float(len(c)) for c in completions]"
    )
    (found,) = (x for x in looked(capsys, project, *words) if "do not count" in x)
    assert "2 rows do not count" in found
    assert "their unit has more than 1. Raise max_prompts_per_unit" in found
    assert "a number that is read off them" in found


def test_held_out_prompts_that_are_trained_on_are_counted_for_their_owner(
    project, capsys
):
    shared = {"prompt": PLANTED[:5], "answer": "1"}
    rows(shared, {"prompt": "add 12+19=", "answer": "31"})(project)
    (project / "data/north-heldout.jsonl").write_text(json.dumps(shared) + "\n")
    (found,) = looked(capsys, project)
    assert "1 of 1 held-out prompts are in the data too, and a run shows them" in found
    assert "Take them out of one of the two" in found
    (found,) = looked(capsys, project, "--set", "client.north.eval_public=false")
    assert "a run shows them" not in found


def column(name, most=4):
    text = [f'privacy.unit="{name}"', f"privacy.max_prompts_per_unit={most}"]
    return [word for override in text for word in ("--set", override)]


def of_patients(project, ids, held_out=("other",)):
    """North's rows and held-out rows are of these patients, each with one prompt."""
    (project / "rewards.py").write_text(
        "def exact(prompts, completions): return [float(len(c)) for c in completions]"
    )
    for name, values, prompt in (("", ids, "add 1+"), ("-heldout", held_out, "add 2+")):
        path = project / f"data/north{name}.jsonl"
        made = [{"prompt": f"{prompt}{i}", "pid": v} for i, v in enumerate(values)]
        path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return [*column("pid"), "--set", "client.north.reward_range=[0, 99]"]


def test_held_out_rows_of_trained_units_are_counted_for_their_owner(project, capsys):
    words = of_patients(project, [PLANTED, "b", "c"], [PLANTED, "d", "c", PLANTED])
    (found,) = looked(capsys, project, *words)
    assert "3 of 4 held-out rows have a pid that rows of the data have too" in found
    assert "and a run shows them, since they are declared public" in found
    assert "Hold whole units out" in found
    private = ["--set", "client.north.eval_public=false"]
    (found,) = looked(capsys, project, *words, *private)
    assert "a run shows them" not in found


def test_held_out_rows_of_others_are_nothing_to_look_at(project, capsys):
    words = of_patients(project, ["a", "b"], ["c", None])
    assert looked(capsys, project, *words) == []


PLACEHOLDERS = ["unknown", "NULL", "NaN", "N/A", "None", "-", "0", " unknown ", "<unk>"]


def test_ids_that_stand_for_nobody_are_counted_for_their_owner(project, capsys):
    ids = [*PLACEHOLDERS, "unknown", "P7", PLANTED, "00", "nana"]
    (found,) = looked(capsys, project, *of_patients(project, ids))
    assert "10 rows have one of 9 values as pid that usually say" in found
    assert "All rows of one are one unit: leave them out" in found


def test_a_number_can_stand_for_nobody_too(project, capsys):
    (found,) = looked(capsys, project, *of_patients(project, [0, 0, 7, 10]))
    assert "2 rows have one of 1 values as pid" in found


def test_ids_that_cannot_be_seen_are_counted_for_their_owner(project, capsys):
    ids = ["\u200b", "\ufeff\u200d", "\u3164", "P\u200b7", "P7"]
    (found,) = looked(capsys, project, *of_patients(project, ids))
    assert "3 rows have a pid of characters that cannot be seen" in found
    assert "Say whose they are, or leave them out" in found


def test_a_check_on_conversations_counts_what_is_held_out_too():
    talk = ({"role": "user", "content": PLANTED},)
    turned = ({"content": PLANTED, "role": "user"},)
    rows = [Example(talk, {}), Example("plain", {})]
    held_out = [Example(turned, {}), Example(PLANTED, {})]
    assert _held_out_notices(rows, [], public=True, unit="prompt") == []
    (found,) = _held_out_notices(rows, held_out, public=False, unit="prompt")
    assert found.startswith("1 of 2 held-out prompts are in the data too.")
    assert PLANTED not in found


def test_a_check_in_which_no_reward_gives_a_number_is_json_all_the_same(
    project, capsys
):
    reward("return [None for _ in completions]\n")(project)
    words = ["check", str(project / "run.toml"), "--client", "north"]
    assert main([*words, "--json"]) == 0

    def refuse(constant):
        raise AssertionError(constant)

    found = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert found[0]["mean"] is None
    assert main(words) == 0
    assert "mean reward unknown of [0, 1]" in capsys.readouterr().out


def test_a_project_without_a_mistake_gives_nothing_to_look_at(project, capsys):
    assert looked(capsys, project) == []
