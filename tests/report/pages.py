"""Reading a report as a strict parser and as a person do."""

import re
from xml.etree import ElementTree as ET


def parsed(folder):
    """The page's tree; it must be well-formed to have one."""
    text = (folder / "report.html").read_text("utf-8")
    doctype, _, page = text.partition("\n")
    assert doctype == "<!DOCTYPE html>"
    return ET.fromstring(page)  # noqa: S314


def words(folder):
    """What a person reads."""
    body = parsed(folder).find("body")
    return re.sub(r"\s+", " ", " ".join(body.itertext()))


def rows(folder, caption):
    """The cells of a table, by its caption."""
    for table in parsed(folder).iter("table"):
        if "".join(table.find("caption").itertext()) == caption:
            return [
                ["".join(cell.itertext()) for cell in row]
                for row in table.find("tbody").iter("tr")
            ]
    return None
