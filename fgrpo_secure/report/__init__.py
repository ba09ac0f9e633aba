"""`fgrpo report`: what a run promised and did, for a person who trusts nobody.

Path of the data: `gather` verifies the folder and makes `facts` of it, the last of them
with what is `unsigned`; `words`, `figures` and `reasons` say them, `plots` and
`noted_plots` draw them. `page` is the one file, of the parts in `results`, `course` and
`sections`; `claim` is the other.
"""

from fgrpo_secure.report.facts import Refuted
from fgrpo_secure.report.write import write_report

__all__ = ["Refuted", "write_report"]
