"""`python -m audits.planted --write audits/README.md` makes the table again."""

from __future__ import annotations

import sys

from fgrpo_secure.cli import main

sys.exit(main(["audit", "planted", *sys.argv[1:]]))
