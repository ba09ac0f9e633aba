"""Write the made-up data of four hospitals: who each row belongs to, and its answer.

Nothing here is private and nothing is left to chance: a hash decides how many rows a
patient has and which, so that every machine writes the same files. The prompts are in
the language of the tiny base model, which knows sums, counts and orders of letters and
nothing of medicine. Your own export takes the place of this script.
"""

import csv
import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path

from fgrpo_secure.assets.tasks import FAMILIES, Family, split

PATIENTS = 1000
MOST_ROWS = 6

# What each hospital asks its model, and what that is to the tiny model.
HOSPITALS = {
    "north": "sums",  # "add 47+38=": a patient's two doses of a day, in all
    "east": "count",  # "#a bacaba=": how many of six diary days were marked a
    "south": "count",  # the same diary, other patients
    "west": "sort",  # "sort dbc=": three wards, in the order of the round
}


def number(*parts: object, below: int) -> int:
    """A number from 0 to `below` - 1 that the parts decide, and nothing else."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") % below


def rows_of(hospital: str, family: Family) -> Iterable[tuple[str, str, str]]:
    """Every patient's rows: one to six, so that some patients say more than others."""
    _, prompts, _ = split(family)
    for index in range(PATIENTS):
        patient = f"{hospital[0].upper()}{index:04d}"
        for row in range(1 + number(patient, "rows", below=MOST_ROWS)):
            prompt = prompts[number(patient, row, below=len(prompts))]
            yield patient, prompt, family.answer(prompt)


def held_out(family: Family) -> Iterable[tuple[str, str, str]]:
    """Prompts that no patient has and that the base model has never read."""
    for prompt in split(family)[0]:
        yield "nobody", prompt, family.answer(prompt)


def write(path: Path, rows: Iterable[tuple[str, str, str]]) -> None:
    """Write rows as CSV under their three column names."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("patient_id", "prompt", "answer"))
        table.writerows(rows)


def main() -> None:
    """Write `HOSPITAL.csv` and `HOSPITAL-heldout.csv` for each hospital."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "data")
    folder.mkdir(parents=True, exist_ok=True)
    families = {family.name: family for family in FAMILIES}
    for hospital, task in HOSPITALS.items():
        write(folder / f"{hospital}.csv", rows_of(hospital, families[task]))
        write(folder / f"{hospital}-heldout.csv", held_out(families[task]))
        print(f"{folder}/{hospital}.csv: {PATIENTS} patients")


if __name__ == "__main__":
    main()
