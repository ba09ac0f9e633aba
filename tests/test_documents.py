"""What the documents say of tests must be so: each test that they name exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("audits/*.md"),
        *ROOT.glob("benchmarks/*.md"),
    ]
)
TEST_NAME = re.compile(r"\btest_[a-z0-9_]+\b(?!\.py|/)")
TEST_PATH = re.compile(r"\btests/[\w/]+(?:\.py)?")
CODE_PATH = re.compile(r"`((?:privacy|fgrpo_secure|audits|benchmarks)/[\w/]+\.py)`")
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


def known_names():
    """All test functions and test modules there are."""
    found = set()
    for path in ROOT.glob("tests/**/test_*.py"):
        found.add(path.stem)
        tree = ast.parse(path.read_text("utf-8"))
        found |= {
            node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
        }
    return found


NAMES = known_names()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_test_that_a_document_names_exists(path):
    text = path.read_text("utf-8")
    named = set(TEST_NAME.findall(text))
    assert named <= NAMES, named - NAMES
    paths = set(TEST_PATH.findall(text))
    assert not [found for found in paths if not (ROOT / found).exists()]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_file_that_a_document_points_to_exists(path):
    text = path.read_text("utf-8")
    assert not [f for f in CODE_PATH.findall(text) if not (ROOT / f).exists()]
    linked = [path.parent / found for found in LINK.findall(text)]
    assert not [str(found) for found in linked if not found.exists()]


def test_every_section_of_the_guarantee_that_promises_something_names_a_test():
    text = (ROOT / "docs/privacy.md").read_text("utf-8")
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    silent = [s.splitlines()[0] for s in sections if not TEST_NAME.search(s)]
    # What is not covered, and the literature, promise nothing.
    assert [re.sub(r"^\d+\. ", "", title) for title in silent] == [
        "What is not covered",
        "Sources",
    ]


def test_every_claim_of_security_names_the_test_that_attacks_it():
    text = (ROOT / "SECURITY.md").read_text("utf-8")
    claims = text.partition("## Claims")[2].partition("## What the claims rest on")[0]
    rows = [
        line
        for line in claims.splitlines()
        if line.startswith("| ") and not line.startswith(("| claim ", "| lie "))
    ]
    assert len(rows) > 30
    for row in rows:
        last = row.rstrip("| ").rpartition("|")[2]
        assert TEST_NAME.search(last) or TEST_PATH.search(last), row
