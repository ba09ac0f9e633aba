"""Results of audits in a folder: read in their own forms, believed in no other."""

import json
from pathlib import Path

import pytest

import audits
from fgrpo_secure.cli import main
from fgrpo_secure.report import write_report
from fgrpo_secure.report.audited import read_audits
from tests.report.pages import rows

RELEASED = Path(audits.__file__).parent / "results"
CANARIES = {
    "epsilon_claimed": 8.0,
    "epsilon_lower_bound": 7.4,
    "delta": 1e-5,
    "scores": 10000,
    "confidence": 0.95,
    "weak": False,
    "weak_below": 5.6,
    "refuted": False,
}
ATTACK = {"trust": "distributed", "attacks": {"what is released": CANARIES}}
PLANTED = {
    "refuted": False,
    "rows": [
        {
            "switch": "x",
            "bug": "clip twice",
            "check": "canaries",
            "read": "17.9",
            "caught": True,
        }
    ],
}


def put(folder, name, said):
    (folder / "audits").mkdir(exist_ok=True)
    (folder / f"audits/{name}.json").write_text(json.dumps(said))


def test_the_audits_that_come_with_the_program_are_in_a_form_that_is_known():
    found = read_audits([("release", RELEASED)])
    assert {audit.name for audit in found} >= {"noise fit", "transcript"}
    for audit in found:
        assert audit.findings
        assert not audit.refuted
        assert audit.held == len(audit.findings)


def test_results_of_every_kind_stand_in_the_page_and_in_the_claim(folder):
    put(folder, "canaries", ATTACK | CANARIES)
    put(folder, "planted", PLANTED)
    write_report(folder, RELEASED, unfinished=False)
    table = rows(folder, "Results")
    said = " ".join(" ".join(row) for row in table)
    assert "at least 7.400 lost, of 8 claimed" in said
    assert "bound on epsilon from below at delta 1e-05, confidence 95%" in said
    assert "planted bugs" in said
    claim = json.loads((folder / "claim.json").read_bytes())["claim"]
    sources = {audit["source"] for audit in claim["audits"]}
    assert {"audits/canaries.json", "audits/planted.json"} <= sources
    assert "release/noise_fit.json" in sources


def test_a_bound_above_the_claim_refutes_it_whatever_the_file_says(folder):
    above = CANARIES | {"epsilon_lower_bound": 8.1}
    put(folder, "canaries", ATTACK | {"attacks": {"it": above}} | {"refuted": False})
    (found,) = read_audits([("audits", folder / "audits")])
    assert found.refuted


@pytest.mark.parametrize(
    "said",
    [
        [],
        {},
        {"refuted": "no"},
        {"refuted": False},
        {"refuted": False, "attacks": {}},
        {"refuted": False, "attacks": {"it": CANARIES | {"delta": None}}},
        {"refuted": False, "rows": {}},
        {"refuted": False, "rows": [{"bug": 1}]},
        {"refuted": False, "findings": [1], "subject": {}, "false_alarm": 0.1},
        ATTACK | CANARIES | {"attacks": {"it": CANARIES | {"scores": True}}},
        {"refuted": False, "attacks": {"it": CANARIES | {"delta": 10**400}}},
    ],
)
def test_a_file_in_no_known_form_is_named_and_counts_for_nothing(folder, said):
    put(folder, "strange", said)
    (found,) = read_audits([("audits", folder / "audits")])
    assert not found.findings
    assert not found.refuted
    write_report(folder, None, unfinished=False)
    ((name, result, about),) = rows(folder, "Results")
    assert "audits/strange.json" in name
    assert result == "not read"
    assert "not counted" in about


def test_a_files_name_cannot_speak_to_the_terminal(folder, capsys):
    above = CANARIES | {"epsilon_lower_bound": 8.1}
    put(folder, "x\x1b[2J", ATTACK | {"attacks": {"it": above}, "refuted": True})
    assert main(["report", str(folder)]) == 1
    assert "\x1b" not in capsys.readouterr().out


def test_without_audits_the_page_says_so(made):
    from tests.report.pages import words

    assert "No result of an audit is in this folder." in words(made("private"))
