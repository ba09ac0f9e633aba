"""The files of a reward: which count, under which hash, and that no others run."""

import hashlib
import importlib
import os
import subprocess
import sys

import pytest

from fgrpo_secure.errors import RewardError
from fgrpo_secure.grpo.reward_sources import reward_sources
from fgrpo_secure.grpo.rewards import RewardSpec, load_rewards

SCORE = "def score(completions, **columns):\n    return [{}] * len(completions)\n"


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Write files, and forget afterwards what was imported of them."""
    before = set(sys.modules)
    place = tmp_path / "own"

    def write(**named):
        for name, text in named.items():
            path = place.joinpath(*name.split("__in__")[::-1]).with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return place

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def names(target, place):
    return sorted(one.name for one in reward_sources(target, place).files.values())


def loaded(target, place, sha256=None):
    sha256 = sha256 or reward_sources(target, place).sha256
    return load_rewards([RewardSpec(target, 0, 9, sha256=sha256)], place)


def scored(rewards):
    return rewards.score(["p"], ["c"], {}).tolist()


def test_a_file_that_stands_alone_has_the_hash_that_sha256sum_prints(files):
    place = files(rewards="import math\nimport numpy\n" + SCORE.format(1))
    found = reward_sources("rewards.py:score", place)
    data = (place / "rewards.py").read_bytes()
    assert found.sha256 == hashlib.sha256(data).hexdigest()
    assert found.name == "rewards.py:score"


def test_with_others_it_is_the_hash_of_what_sha256sum_prints(files):
    place = files(
        rewards="import marks\n" + SCORE.format("marks.MOST"),
        marks="from limits import MOST\n",
        limits="MOST = 2\n",
        unused="",
    )
    printed = subprocess.run(
        ["sha256sum", "limits.py", "marks.py", "rewards.py"],  # noqa: S607
        cwd=place,
        capture_output=True,
        check=True,
    ).stdout
    found = reward_sources("rewards.py:score", place)
    assert found.sha256 == hashlib.sha256(printed).hexdigest()


@pytest.mark.parametrize(
    "line",
    [
        "import marks",
        "import marks as other",
        "from marks import MOST",
        "def late():\n    import marks",
        "try:\n    import marks\nexcept ImportError:\n    marks = None",
        "import sys, os\nsys.path.insert(0, os.path.dirname(__file__))\nimport marks",
    ],
)
def test_an_import_counts_wherever_it_stands(files, line):
    place = files(rewards=f"{line}\n{SCORE.format(1)}", marks="MOST = 1\n")
    before = reward_sources("rewards.py:score", place).sha256
    assert names("rewards.py:score", place) == ["marks.py", "rewards.py"]
    files(marks="MOST = 2\n")
    assert reward_sources("rewards.py:score", place).sha256 != before
    with pytest.raises(RewardError, match="has changed since"):
        loaded("rewards.py:score", place, before)


def test_a_module_in_a_package_counts_with_all_that_it_reaches_there(
    files, monkeypatch
):
    place = files(
        __init____in__judges="from judges.fair import score\n",
        fair__in__judges="from . import marks\n" + SCORE.format("marks.most()"),
        marks__in__judges="def most():\n    from judges.deep import least\n"
        "    return least.VALUE\n",
    )
    (place / "judges/deep").mkdir()
    (place / "judges/deep/__init__.py").write_text('"""Nothing."""\n')
    (place / "judges/deep/least.py").write_text("VALUE = 3\n")
    monkeypatch.syspath_prepend(str(place))
    assert names("judges.fair:score", place) == [
        *("__init__.py", "deep/__init__.py", "deep/least.py", "fair.py", "marks.py")
    ]
    rewards = loaded("judges.fair:score", place)
    assert scored(rewards) == [3.0]
    # What is exchanged now is not run, though it is imported when it is called.
    (place / "judges/deep/least.py").write_text("VALUE = 8\n")
    assert scored(rewards) == [3.0]


def test_a_package_that_only_describes_itself_changes_no_hash(files, monkeypatch):
    place = files(
        __init____in__judges='"""Judges."""\n', fair__in__judges=SCORE.format(1)
    )
    monkeypatch.syspath_prepend(str(place))
    found = reward_sources("judges.fair:score", place)
    data = (place / "judges/fair.py").read_bytes()
    assert found.sha256 == hashlib.sha256(data).hexdigest()
    files(__init____in__judges='"""Judges."""\nimport os\n')
    assert reward_sources("judges.fair:score", place).sha256 != found.sha256


def test_compiled_code_beside_an_imported_file_is_not_run(files, monkeypatch):
    place = files(rewards="import marks\n" + SCORE.format("marks.MOST"))
    planted, honest = "MOST = 8\n", "MOST = 4\n"
    path = place / "marks.py"
    path.write_text(planted)
    os.utime(path, (0, 0))
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    importlib.import_module("marks")
    del sys.modules["marks"]
    # Of one length and one time, so that Python takes the compiled code.
    path.write_text(honest)
    os.utime(path, (0, 0))
    assert importlib.import_module("marks").MOST == 8
    assert scored(loaded("rewards.py:score", place)) == [4.0]


def test_a_file_that_is_exchanged_while_it_is_loaded_is_not_run(files, monkeypatch):
    place = files(
        rewards="from pathlib import Path\n"
        "Path(__file__).with_name('marks.py').write_text('MOST = 8')\n"
        "import marks\n" + SCORE.format("marks.MOST"),
        marks="MOST = 4\n",
    )
    assert scored(loaded("rewards.py:score", place)) == [4.0]
    assert (place / "marks.py").read_text() == "MOST = 8"


def test_links_lead_into_the_folder_and_out_of_it(files, tmp_path, monkeypatch):
    place = files(rewards="import marks\nimport more\n" + SCORE.format(1))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "marks.py").write_text("MOST = 1\n")
    (place / "marks.py").symlink_to(elsewhere / "marks.py")
    (place / "more.py").write_text("")
    link = tmp_path / "link"
    link.symlink_to(place)
    monkeypatch.syspath_prepend(str(link))
    wanted = ["marks.py", "more.py", "rewards.py"]
    assert names("rewards.py:score", place) == wanted
    assert names("rewards.py:score", link) == wanted


def test_what_is_installed_within_the_folder_belongs_to_the_environment(
    files, monkeypatch
):
    place = files(rewards="import thing\n" + SCORE.format(1))
    installed = place / "venv/lib/site-packages"
    installed.mkdir(parents=True)
    (installed / "thing.py").write_text("import other\n")
    monkeypatch.syspath_prepend(str(installed))
    assert names("rewards.py:score", place) == ["rewards.py"]


def test_a_name_that_could_be_either_of_two_files_is_refused(files):
    place = files(rewards="import json\n" + SCORE.format(1), json="")
    with pytest.raises(RewardError, match="another module as well"):
        reward_sources("rewards.py:score", place)


def test_two_rewards_do_not_get_each_others_files(files, tmp_path):
    place = files(rewards="import marks\n" + SCORE.format("marks.MOST"), marks="MOST=1")
    other = tmp_path / "other"
    other.mkdir()
    for name in ("rewards.py", "marks.py"):
        (other / name).write_bytes((place / name).read_bytes())
    loaded("rewards.py:score", place)
    loaded("rewards.py:score", place)
    with pytest.raises(RewardError, match="has that name"):
        loaded("rewards.py:score", other)


def test_what_is_no_source_beside_a_reward_is_refused(files, monkeypatch):
    place = files(rewards="import native\n" + SCORE.format(1))
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    (place / f"native{suffix}").write_bytes(b"")
    monkeypatch.syspath_prepend(str(place))
    with pytest.raises(RewardError, match="no Python source"):
        reward_sources("rewards.py:score", place)


def test_reading_runs_nothing(files, tmp_path):
    marker = tmp_path / "ran"
    mark = f"open({str(marker)!r}, 'w').close()\n"
    place = files(rewards=f"import marks\n{mark}{SCORE.format(1)}", marks=mark)
    reward_sources("rewards.py:score", place)
    assert not marker.exists()
    loaded("rewards.py:score", place)
    assert marker.exists()
