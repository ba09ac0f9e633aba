"""`fgrpo report`: what a run promised and did, for a person who trusts nobody.

Path of the data: `facts` verifies the folder and gathers, `words` and `plots` say it,
`page` and `claim` are the two files.
"""

from fgrpo_secure.report.facts import Refuted
from fgrpo_secure.report.write import write_report

__all__ = ["Refuted", "write_report"]
