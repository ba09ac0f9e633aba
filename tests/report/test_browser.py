"""The page in a real browser: nothing to complain of, readable at every size."""

import pytest

from tests.report.browser import Browser, found
from tests.report.conftest import KINDS

pytestmark = pytest.mark.skipif(
    found() is None, reason="there is no Chromium on this machine"
)

SIZES = {
    "desk": {},
    "dark": {"scheme": "dark"},
    "phone": {"width": 360, "height": 740, "phone": True},
}
# The text of a drawing is as large as the drawing is scaled, whichever way it runs.
SMALLEST = """
(() => {
  const size = e => parseFloat(getComputedStyle(e).fontSize);
  const scale = e => Math.hypot(e.getScreenCTM().a, e.getScreenCTM().b);
  const texts = [...document.querySelectorAll("p, li, td, th, dd, figcaption, text")];
  const shown = e => (e.tagName === "text" ? scale(e) : 1) * size(e);
  return Math.min(...texts.map(shown));
})()
"""
# Luminance by WCAG 2.1; the page's colours are all opaque.
CONTRAST = """
(() => {
  const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = colour => {
    const [r, g, b] = colour.match(/[0-9.]+/g).map(v => linear(Number(v) / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const ratio = ink => (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05);
  const texts = [...document.querySelectorAll("p, li, td, th, dt, dd, h2, span, text")];
  return Math.min(...texts.map(e => {
    const style = getComputedStyle(e);
    return ratio(light(e.tagName === "text" ? style.fill : style.color));
  }));
})()
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    one = Browser(tmp_path_factory.mktemp("browser"))
    yield one
    one.close()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_page_is_quiet_and_fits(browser, made, kind, size):
    page = made(kind) / "report.html"
    browser.show(page, **SIZES[size])
    assert browser.complaints() == []
    assert browser.requested() == [page.resolve().as_uri()]
    # No scrolling from side to side: what is too wide scrolls in a box of its own.
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.evaluate(wide) == 0
    outside = """[...document.querySelectorAll("main *, p, h1, h2, figure, svg, dl")]
      .filter(e => e.getBoundingClientRect().right > innerWidth + 1).length"""
    assert browser.evaluate(outside) == 0
    assert browser.evaluate(SMALLEST) >= 10
    assert browser.evaluate(CONTRAST) >= 4.5


def test_the_colours_follow_the_reader(browser, made):
    page = made("private") / "report.html"
    seen = {}
    for scheme in ("light", "dark"):
        browser.show(page, scheme=scheme)
        paper = "getComputedStyle(document.body).backgroundColor"
        text = 'getComputedStyle(document.querySelector("svg text")).fill'
        seen[scheme] = (browser.evaluate(paper), browser.evaluate(text))
    assert seen["light"][0] != seen["dark"][0]
    assert seen["light"][1] != seen["dark"][1]


def test_a_wide_table_scrolls_in_its_own_box_on_a_phone(browser, made):
    browser.show(made("private") / "report.html", **SIZES["phone"])
    boxes = """[...document.querySelectorAll(".scroll")]
      .filter(e => e.scrollWidth > e.clientWidth + 1)
      .map(e => getComputedStyle(e).overflowX)"""
    found = browser.evaluate(boxes)
    assert found
    assert set(found) == {"auto"}


def test_the_page_prints(browser, made):
    browser.show(made("private") / "report.html")
    paper = browser.print()
    assert paper.startswith(b"%PDF")
    assert len(paper) > 20_000


def test_no_script_runs_in_the_page_even_if_one_were_there(browser, made, tmp_path):
    text = (made("private") / "report.html").read_text("utf-8")
    spoilt = tmp_path / "report.html"
    evil = "<script>window.ran = 1</script><img src=x onerror='window.ran = 1'>"
    spoilt.write_text(text.replace("<header>", f"{evil}<header>"))
    browser.show(spoilt)
    assert browser.evaluate("window.ran === undefined")
    assert browser.complaints()
