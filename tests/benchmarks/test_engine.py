"""The engine's benchmark: its sizes, its stand-ins, its sums and what it writes."""

import importlib
import json
import os
import sys
from pathlib import Path

import engine
import engine_parts
import engine_timeline
import pytest
from engine_parts import PHASES

from fgrpo_secure.errors import StateError

RESULTS = Path(engine.__file__).parent / "results"
D = 1000


@pytest.fixture(scope="module")
def played():
    """Rounds over local pipes, by stand-ins."""
    return engine.play_locally({"sites": 3, "rounds": [(D, 2)]})


def test_stand_ins_carry_the_bytes_of_a_round(played):
    note = played[str(D)]["notes"][-1]
    expected = engine_parts.sizes(D, 3)
    # Before the body: how much to answer, and its length.
    assert note["down"] == {p: 3 * (expected[p][0] + 16) for p in PHASES}
    assert note["up"] == {p: 3 * expected[p][1] for p in PHASES}
    assert note["seconds"].keys() == set(PHASES)


def test_a_vector_goes_up_and_an_adapter_down_once_a_round():
    sizes = engine_parts.sizes(10**7, 3)
    assert sizes["offer"][0] == pytest.approx(40e6, rel=1e-3)
    assert sizes["shares"][1] == pytest.approx(40e6, rel=1e-3)
    rest = [*sizes["offer"][1:], *sizes["shares"][:1]]
    rest += [size for p in PHASES if p not in {"offer", "shares"} for size in sizes[p]]
    assert max(rest) < 2000


def test_a_site_that_does_not_answer_is_no_measurement():
    class Silent:
        def gather(self, number, cohorts):
            pass

        def exchange(self, phase, messages, deadline):
            return {"a": b""}

    with pytest.raises(RuntimeError, match="no answer to 'offer' from b"):
        engine_parts.play(Silent(), ["a", "b"], D, [1])


def test_nothing_is_replaced_unless_it_is_asked_for(monkeypatch):
    monkeypatch.delenv(engine_parts.KIND, raising=False)
    before = list(sys.meta_path)
    engine_parts.install()
    assert sys.meta_path == before


def test_what_is_replaced_is_there_to_be_replaced(monkeypatch):
    """A patch of a name that the product has no more would measure the product."""
    for kind in engine_parts._PATCHES.values():
        for name, patch in kind.items():
            module = importlib.import_module(name)
            names = {"_MODULE", "serve", "Meter", "Server", "Site", "Draws", "Learner"}
            assert names & vars(module).keys(), name
            assert callable(patch)
    trainer = importlib.import_module("fgrpo_secure.runtime.trainer")
    monkeypatch.setattr(trainer, "_MODULE", trainer._MODULE)
    engine_parts._replace_trainer(trainer)
    assert importlib.util.find_spec(trainer._MODULE) is not None


def test_the_environment_is_put_back(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "before")
    monkeypatch.delenv(engine_parts.ORDER, raising=False)

    def fail():
        with engine.environment(engine_parts.STAND_IN, tmp_path):
            assert os.environ["PYTHONPATH"].endswith("before")
            assert os.environ[engine_parts.ORDER] == str(tmp_path)
            raise StateError("a", "b")

    with pytest.raises(StateError):
        fail()
    assert os.environ["PYTHONPATH"] == "before"
    assert engine_parts.ORDER not in os.environ


def test_cells_of_another_machine_are_not_kept(tmp_path):
    path = tmp_path / "engine.json"
    old = {"sites": 3, "dimension": D, "load": [0, 0]}
    path.write_text(json.dumps({"machine": {"cores": 1}, "cells": [old]}), "utf-8")
    new = {"sites": 10, "dimension": D}
    assert engine._merged(path, {"cores": 1}, [new]) == [old, new]
    assert engine._merged(path, {"cores": 2}, [new]) == [new]


def test_a_size_that_failed_is_said_to_have_failed(played):
    own = {"failed": "no answer to 'shares' from site-03", "peaks": {}}
    cell = engine._cell(
        *(3, D, 2, own, [played[str(D)]]),
        {"engine": engine._by_role({}), "pipes": played["idle"]},
        [1.0, 2.0],
    )
    machine = {"cores": 2, "processor": "p", "python": "3", "nvflare": "2.9.0"}
    text = engine.report({"machine": machine, "cells": [cell]})
    assert "came to no end here: no answer to 'shares' from site-03." in text
    assert engine.summary([cell]) == {
        f"3_sites_{D}_seconds": None,
        f"3_sites_{D}_ratio": None,
    }


def test_the_engines_report_is_that_of_its_figures():
    result = json.loads((RESULTS / "engine.json").read_text("utf-8"))
    assert engine.report(result) == (RESULTS / "engine.md").read_text("utf-8")


def a_round(offset=0.0):
    """A round of 11 s in which every way takes 0.1 s, and sites take a second."""
    events = [("server", "round", offset, offset + 11.0)]
    at = offset
    for phase in PHASES:
        work = 4.0 if phase == "shares" else 1.0
        events.append(("server", f"Meter.{phase}", at, at + work + 0.2))
        for site in ("a", "b"):
            events.append((site, f"Site.{phase}", at + 0.1, at + 0.1 + work))
        if phase == "shares":
            events += [(s, "contribute", at + 0.2, at + 4.0) for s in ("a", "b")]
        at += work + 0.2
    return events


def test_the_parts_of_a_round_are_taken_apart():
    parts = engine_timeline.parts_of(a_round())
    assert parts["round"] == 11
    assert parts["r0 to r2"] == pytest.approx(2.5)
    assert parts["after the adapter"] == pytest.approx(2.4)
    assert parts["early, on the way"] == pytest.approx(0.5)
    assert parts["engine"] == pytest.approx(1.2)
    assert parts["longest site"] == pytest.approx(3.8)
    assert parts["vectors back"] == pytest.approx(0.1)


def test_rounds_are_told_apart_and_each_begins_at_zero():
    rounds = engine_timeline.rounds_of([*a_round(20.0), *a_round(5.0)])
    assert [len(own) for own in rounds] == [len(a_round())] * 2
    assert min(begun for own in rounds for _, _, begun, _ in own) == 0
    assert engine_timeline.parts_of(rounds[0]) == pytest.approx(
        engine_timeline.parts_of(a_round())
    )


def test_the_timeline_is_what_was_noted():
    result = json.loads((RESULTS / "engine-timeline.json").read_text("utf-8"))
    rounds = [[tuple(event) for event in own] for own in result["events"]]
    parts = engine_timeline.summed(rounds)
    assert {k: round(v, 4) for k, v in parts.items()} == result["parts"]
    text = (RESULTS / "engine-timeline.md").read_text("utf-8")
    assert engine_timeline.report(result) == text
    drawn = (RESULTS / "engine-timeline.svg").read_text("utf-8")
    assert drawn == engine_timeline.draw(engine_timeline.middle(rounds))
