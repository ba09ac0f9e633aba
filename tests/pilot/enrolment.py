"""A pilot of three sites, enrolled for tests."""

from pathlib import Path

PILOT = """\
[pilot]
name = "trial"

[server]
host = "localhost"
port = 8002
admin_port = 8003

[[site]]
name = "north"

[[site]]
name = "east"

[[site]]
name = "south-1"

[lead]
mail = "lead@example.org"
"""
SITES = ("east", "north", "south-1")


def write_pilot(folder: Path, text: str = PILOT) -> Path:
    path = folder / "PILOT.toml"
    path.write_text(text)
    return path
