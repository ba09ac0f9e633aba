"""Properties of the source itself: one door, one source of randomness, no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KERNEL = sorted((ROOT / "privacy").rglob("*.py"))
APPLICATION = sorted((ROOT / "fgrpo_secure").rglob("*.py"))
AUDITS = sorted((ROOT / "audits").rglob("*.py"))
SOURCES = KERNEL + APPLICATION + AUDITS

# Torch's generator has a seed. These make public things with it: the adapter's
# published matrix A, the dummies of the locality probe, and the tiny base model.
PUBLIC_AND_SEEDED = {
    "fgrpo_secure/grpo/adapter.py",
    "fgrpo_secure/grpo/gradient_probe.py",
    "fgrpo_secure/grpo/locality.py",
    "fgrpo_secure/assets/make.py",
}
SEEDED_NAMES = {
    "Generator",
    "manual_seed",
    "seed",
    "default_rng",
    "RandomState",
    "rand",
    "randn",
    "randint",
    "rand_like",
    "randn_like",
    "normal_",
    "uniform_",
    "multinomial",
    "bernoulli",
    "dropout",
}


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def tree_of(path):
    return ast.parse(path.read_text("utf-8"))


def dotted(node):
    """`a.b.c` for a chain of attributes, else an empty text."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def imported(tree):
    """Every module that a source imports, and every `module.name`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def calls(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_the_sources_are_found():
    names = {name_of(path) for path in SOURCES}
    assert {"privacy/contribution.py", "privacy/randomness.py"} <= names
    assert {"fgrpo_secure/client.py", "fgrpo_secure/server.py"} <= names


def test_only_the_contribution_makes_a_noised_vector():
    makers = {
        name_of(path)
        for path in SOURCES
        for call in calls(tree_of(path))
        if dotted(call.func).split(".")[-1] == "NoisedVector"
    }
    assert makers == {"privacy/contribution.py"}


def test_a_noised_vector_is_not_made_by_replacing_parts_of_another():
    for path in SOURCES:
        tree = tree_of(path)
        if not any(name.endswith("NoisedVector") for name in imported(tree)):
            continue
        for call in calls(tree):
            made_by = dotted(call.func).split(".")[-1]
            assert made_by not in {"replace", "__new__", "__replace__"}, name_of(path)


def test_only_one_place_makes_a_contribution():
    makers = {
        name_of(path)
        for path in SOURCES
        for call in calls(tree_of(path))
        if dotted(call.func).split(".")[-1] == "Contribution"
    }
    assert makers == {"privacy/contribution.py"}


@pytest.mark.parametrize("source", ["urandom", "getrandom", "SystemRandom", "uuid4"])
def test_the_systems_generator_is_read_in_one_module(source):
    readers = {
        name_of(path)
        for path in SOURCES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute | ast.Name)
        and dotted(node).split(".")[-1] == source
    }
    assert readers == ({"privacy/randomness.py"} if source == "urandom" else set())


def test_no_source_opens_a_device_of_randomness():
    for path in SOURCES:
        assert "/dev/urandom" not in path.read_text("utf-8"), name_of(path)
        assert "/dev/random" not in path.read_text("utf-8"), name_of(path)


@pytest.mark.parametrize("module", ["random", "numpy.random", "secrets", "uuid"])
def test_no_source_imports_another_generator(module):
    for path in SOURCES:
        found = [
            name
            for name in imported(tree_of(path))
            if name == module or (name or "").startswith(f"{module}.")
        ]
        assert not found, name_of(path)


def test_no_source_reaches_numpys_generator_as_an_attribute():
    for path in SOURCES:
        for node in ast.walk(tree_of(path)):
            text = dotted(node)
            assert not text.startswith(("np.random", "numpy.random")), name_of(path)


def test_a_generator_with_a_seed_is_used_for_public_things_alone():
    users = {
        name_of(path)
        for path in SOURCES
        for call in calls(tree_of(path))
        if dotted(call.func).split(".")[-1] in SEEDED_NAMES
    }
    assert users <= PUBLIC_AND_SEEDED


def test_only_system_entropy_is_passed_where_randomness_is_asked_for():
    """An argument named `entropy` is handed on, or it is the system's."""
    for path in SOURCES:
        for call in calls(tree_of(path)):
            for keyword in call.keywords:
                if keyword.arg == "entropy":
                    assert dotted(keyword.value) in {"system_entropy", "entropy"}
            if dotted(call.func).split(".")[-1] == "RandomStream":
                (argument,) = call.args
                # `noise` keys a second stream from the first one, which is as secret.
                assert dotted(argument) in {"system_entropy", "entropy", "stream.bytes"}


def test_cryptography_stands_behind_one_module():
    users = {
        name_of(path)
        for path in SOURCES
        for name in imported(tree_of(path))
        if (name or "").split(".")[0] == "cryptography"
    }
    # The second verifier has nothing of ours, and so not our cryptography either.
    assert users == {"privacy/crypto.py", "audits/verify_ledger.py"}


def test_the_kernel_never_checks_by_assertion():
    """`python -O` removes assertions; a check that fails has to raise."""
    for path in KERNEL:
        for node in ast.walk(tree_of(path)):
            assert not isinstance(node, ast.Assert), name_of(path)


def test_no_source_pickles():
    for path in SOURCES:
        found = {(name or "").split(".")[0] for name in imported(tree_of(path))}
        assert not {"pickle", "marshal", "shelve", "dill"} & found, name_of(path)


def test_the_kernel_is_imported_without_torch():
    modules = [
        name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for path in KERNEL
    ]
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "heavy = {'torch', 'transformers', 'peft', 'opacus', 'datasets', 'pydantic',"
        " 'fgrpo_secure'} & set(sys.modules)\n"
        "print(sorted(heavy))\n"
    )
    found = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert found.stdout.strip() == "[]"
