"""Whatever a plan may call its unit, the page stays whole."""

import json

import pytest

from fgrpo_secure.report import write_report
from tests.report import runs
from tests.report.pages import parsed

# What ends an attribute, a comment or a section, what looks like an id, a colour or a
# formula of a plot, and what turns the direction of writing.
UNITS = [
    '"><svg onload=alert(1)>',
    "a`b`c",
    "--> <!-- ]]>",
    "&lt;script&gt;",
    'url(#x) id="1" #010101',
    "$x^2$",
    "\u202egnp.exe",
    "\u200fa\u061c",
    "x" * 300,
]


@pytest.mark.parametrize("unit", UNITS)
def test_no_unit_breaks_the_page_or_is_taken_for_markup(tmp_path, unit):
    folder = runs.finished(tmp_path / "run", unit=unit, max_prompts_per_unit=2)
    write_report(folder, None, unfinished=False)
    page = parsed(folder)
    tags = {one.tag for one in page.iter()}
    assert not tags & {"script", "a", "img"}
    assert not [n for one in page.iter() for n in one.attrib if n.startswith("on")]
    claim = json.loads((folder / "claim.json").read_bytes())["claim"]
    assert claim["privacy_unit"]["unit"] == unit
    text = (folder / "report.html").read_text("utf-8")
    assert not set(text) & set("\u202e\u200f\u061c")
