"""What ledgers call the program that ran: anybody with the same code computes it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fgrpo_secure
import privacy
from fgrpo_secure import __version__, software
from fgrpo_secure.software import code_digest

ROOT = Path(fgrpo_secure.__file__).parents[1]


def test_it_names_version_and_code_in_the_form_of_a_ledger():
    name, version, word, digest = software.software().split(" ")
    assert (name, version, word) == ("fgrpo-secure", __version__, "code")
    assert len(bytes.fromhex(digest)) == 32
    assert len(software.software()) <= 100


def test_the_digest_is_what_the_tools_of_the_page_compute():
    page = (ROOT / "docs/ledger.md").read_text("utf-8")
    part = page.split("**What ran.**")[1]
    command = part.split("```\n")[1].strip()
    done = subprocess.run(  # noqa: S602
        command, shell=True, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[0] == software.software().rpartition(" ")[2]
    assert command in (software.__doc__ or "")


@pytest.fixture
def copied(tmp_path):
    """The two packages as an installation without git has them."""
    for package in (fgrpo_secure, privacy):
        folder = Path(package.__file__).parent
        leave = shutil.ignore_patterns("__pycache__")
        shutil.copytree(folder, tmp_path / folder.name, ignore=leave)
    return tmp_path / "fgrpo_secure", tmp_path / "privacy"


def test_an_installed_copy_has_the_same_digest_and_a_changed_one_another(copied):
    own = software.software().rpartition(" ")[2]
    assert code_digest(copied) == own
    changed = copied[1] / "noise.py"
    text = changed.read_text("utf-8")
    changed.write_text(text + "\n")
    assert code_digest(copied) != own
    changed.write_text(text)
    (copied[0] / "more.py").write_text("")
    assert code_digest(copied) != own


def test_without_its_source_it_still_has_a_name(copied, monkeypatch):
    for folder in copied:
        shutil.rmtree(folder)
    assert code_digest(copied) is None
    monkeypatch.setattr(software, "_PACKAGES", copied)
    software.software.cache_clear()
    try:
        assert software.software() == f"fgrpo-secure {__version__}"
    finally:
        software.software.cache_clear()


def test_two_processes_in_other_folders_say_the_same(tmp_path):
    code = "from fgrpo_secure.software import software; print(software())"
    done = subprocess.run(  # noqa: S603
        [
            sys.executable,
            "-c",
            f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == software.software()
