"""HTML that cannot be broken out of: text is escaped unless it was made here.

Names, paths and texts of a run's folder are written by others. A `str` is always text;
only an `Html` is markup, and nothing makes one of a `str` but `trusted`.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

# Where a cell has nothing to say.
NOTHING = "\N{EN DASH}"

_VOID = frozenset({"br", "col", "hr", "meta"})


@dataclass(frozen=True, slots=True)
class Html:
    """Markup, well-formed as XML and as HTML."""

    text: str


Content: TypeAlias = "Html | str"


def trusted(text: str) -> Html:
    """Markup of this package's own making: a style sheet, a plot."""
    return Html(text)


def element(name: str, /, *children: Content, **attributes: str | None) -> Html:
    """One element.

    Args:
        name: of the tag.
        *children: text, which is escaped, and markup.
        **attributes: values are escaped; `class_` stands for class, an underscore for a
            hyphen, and None leaves the attribute out.

    Guarantee:
        No text and no value ends the element or opens another.
    """
    stated = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escaped(value).text}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Html(f"<{name}{stated} />")
    inner = "".join(escaped(child).text for child in children)
    return Html(f"<{name}{stated}>{inner}</{name}>")


def escaped(content: Content) -> Html:
    """Text as markup; markup as it is."""
    if isinstance(content, Html):
        return content
    # A page has no room for control characters, and XML has none at all.
    shown = "".join(c if _is_shown(c) else "\N{REPLACEMENT CHARACTER}" for c in content)
    return Html(html.escape(shown, quote=True))


def joined(parts: Iterable[Content]) -> Html:
    """Several pieces, one after the other."""
    return Html("".join(escaped(part).text for part in parts))


def paragraphs(texts: Iterable[str]) -> Html:
    """One `p` each; what stands in backticks is set as code."""
    return joined(element("p", with_code(text)) for text in texts)


def with_code(text: str) -> Html:
    """A text in which code stands in backticks."""
    parts = text.split("`")
    return joined(
        element("code", part) if place % 2 else part for place, part in enumerate(parts)
    )


def table(
    caption: str,
    heads: Sequence[Content],
    rows: Iterable[Sequence[Content]],
    *,
    numbers: Iterable[int] = (),
) -> Html:
    """A table in a box of its own, which scrolls where the page is too narrow.

    Args:
        caption: what it shows.
        heads: of the columns.
        rows: their cells; the first of each is the row's name.
        numbers: columns of figures, from 0.
    """
    right = frozenset(numbers)

    def cell(tag: str, column: int, content: Content, scope: str | None) -> Html:
        kind = "number" if column in right else None
        return element(tag, content, class_=kind, scope=scope)

    head = [cell("th", place, text, "col") for place, text in enumerate(heads)]
    body = [
        element(
            "tr",
            *(
                cell("th" if place == 0 else "td", place, text, _scope(place))
                for place, text in enumerate(row)
            ),
        )
        for row in rows
    ]
    return element(
        "div",
        element(
            "table",
            element("caption", caption),
            element("thead", element("tr", *head)),
            element("tbody", *body),
        ),
        class_="scroll",
        role="region",
        aria_label=caption,
        tabindex="0",
    )


def section(title: str, *content: Content) -> Html:
    """A part of the page, under its title."""
    return element("section", element("h2", title), *content)


def terms(rows: Iterable[tuple[str, Content]]) -> Html:
    """Names and what they stand for."""
    return element(
        "dl",
        *(
            element("div", element("dt", name), element("dd", value))
            for name, value in rows
        ),
    )


def _scope(place: int) -> str | None:
    return "row" if place == 0 else None


def _is_shown(character: str) -> bool:
    code = ord(character)
    surrogate = 0xD800 <= code <= 0xDFFF
    # Marks that turn the direction of writing could make a name read as another.
    turning = 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069
    turning = turning or code in {0x061C, 0x200E, 0x200F}
    control = (code < 0x20 and character not in "\n\t") or 0x7F <= code <= 0x9F
    return not (surrogate or turning or control or code in {0xFFFE, 0xFFFF})
