"""Both verifiers on one folder, and folders with something altered at random."""

import importlib.util
import random
import shutil
import sys
from pathlib import Path

from privacy.ledger import (
    cohort_folders,
    split_views,
    verify_federation,
    verify_run,
)
from tests.vectors.ledger_cohort_lies import Stories
from tests.vectors.ledger_story import Story, Told

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "audits/verify_ledger.py"
VECTORS = ROOT / "tests/vectors/ledgers"


def load():
    """The second verifier as a module, from its file alone."""
    spec = importlib.util.spec_from_file_location("second_verifier", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


second = load()


def read(name):
    """The files of a folder among the vectors."""
    folder = VECTORS / name
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def write(files, folder):
    """Lay files out in a folder that has nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def verdicts(folder, *, unfinished=False, tolerance=0.0):
    """What the first and the second verifier find, as texts."""
    if cohort_folders(folder):
        return _verdicts_of_cohorts(folder, unfinished, tolerance)
    first = verify_run(folder, unfinished=unfinished)
    again = second.Folder(folder, unfinished=unfinished, tolerance=tolerance)
    again.check()
    second.find_split_views([again])
    assert second.words(second.report(again))
    problems = [str(problem) for problem in first.problems]
    return problems + split_views(first.roots), again.findings


def _verdicts_of_cohorts(folder, unfinished, tolerance):
    reports, between = verify_federation(folder, unfinished=unfinished)
    again = second.Federation(folder, unfinished=unfinished, tolerance=tolerance)
    again.check()
    parts = list(again.cohorts.values())
    second.find_split_views(parts)
    assert second.words(second.report_all(again))
    problems = [str(problem) for one in reports.values() for problem in one.problems]
    problems += [str(problem) for problem in between]
    problems += split_views([root for one in reports.values() for root in one.roots])
    return problems, again.findings + [f for part in parts for f in part.findings]


def altered_bytes(files, seed):
    """One file with bytes changed, cut, repeated or moved; or gone, or another."""
    rng = random.Random(seed)  # noqa: S311
    name, twin = rng.sample(sorted(files), 2)
    if rng.random() < 0.1:
        return files | {name: files[twin]}
    if rng.random() < 0.1:
        return {other: data for other, data in files.items() if other != name}
    data = bytearray(files[name])
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.choice([0, 1, 1, 1, 2, 30, 2000]))
        kind = rng.randrange(5)
        if kind == 0 and start < len(data):
            data[start] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[start:end]
        elif kind == 2:
            data[start:start] = rng.choice(
                [b"\n", b" ", b"0", b"\0", b'"', b"}", b"\r"]
            )
        elif kind == 3:
            data[start:start] = data[start:end]
        else:
            other = files[rng.choice(sorted(files))]
            place = rng.randrange(len(other) + 1)
            data[start:end] = other[place : place + end - start]
    return files | {name: bytes(data)}


def places(value, path=()):
    """Where every value inside a record stands; a head that was told is one value."""
    if path:
        yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from places(item, (*path, index))


def other_value(value, rng):  # noqa: PLR0911
    """Something near a value, or something of another kind."""
    if rng.random() < 0.1:
        strange = [None, True, 0, -1, "", "0", [], {}, "infinity", 2**53 - 1, "server"]
        return rng.choice([*strange, "0" * 64, "1/1", "5", ["alpha"], "alpha"])
    if isinstance(value, bool) or value is None:
        return rng.choice([True, False, None, 1, "0" * 64, "deadline"])
    if isinstance(value, int):
        return value + rng.choice([-2, -1, 1, 2, 1000])
    if isinstance(value, str) and value:
        place = rng.randrange(len(value))
        letters = rng.choice(["0123456789", "abcdef0123456789", "./ _-Z", [""]])
        texts = ["pld", "rdp", "published", "missed", "aborted", "joined", "deadline"]
        spelled = value[:place] + rng.choice(letters) + value[place + 1 :]
        return rng.choice([spelled, spelled, spelled, rng.choice(texts)])
    if isinstance(value, list):
        copy = list(value)
        if rng.random() < 0.5 or not copy:
            copy.append(rng.choice(["alpha", "beta", "delta", "gamma", "server", 1]))
            copy = sorted(copy, key=str) if rng.random() < 0.8 else copy
        else:
            del copy[rng.randrange(len(copy))]
        return copy
    if isinstance(value, dict):
        copy = dict(value)
        if copy and rng.random() < 0.7:
            del copy[rng.choice(sorted(copy))]
        else:
            copy["delta"] = rng.choice([1, "0" * 64, {}])
        return copy
    return rng.choice(["0" * 64, None, "x"])


def alter_value(story, rng):
    """One value of one record is another."""
    record = rng.choice(story.records[rng.choice(story.parties)])
    *path, last = rng.choice(list(places(record)))
    owner = record
    for key in path:
        owner = owner[key]
    owner[last] = other_value(owner[last], rng)


def alter_order(story, rng):
    """A record is left out, repeated, moved, or another party's."""
    records = story.records[rng.choice(story.parties)]
    place = rng.randrange(len(records))
    kind = rng.randrange(4)
    if kind == 0 and len(records) > 1:
        del records[place]
    elif kind == 1:
        records.insert(rng.randrange(len(records) + 1), dict(records[place]))
    elif kind == 2:
        records.insert(rng.randrange(len(records)), records.pop(place))
    else:
        other = rng.choice(story.records[rng.choice(story.parties)])
        own = {name: records[place][name] for name in ("party", "role", "run")}
        records.insert(place, dict(other) | own)


def alter_story(story, rng):
    """A party leaves out what it can leave out, and makes its totals fit."""
    party = rng.choice(story.parties)
    kinds = sorted({r["kind"] for r in story.records[party]} - {"opened", "closed"})
    if kinds and story.records[party][-1]["kind"] == "closed":
        chosen = rng.sample(kinds, rng.randint(1, len(kinds)))
        if "intent" not in chosen:
            story.leave_out(party, *chosen)


def alter_heads(story, rng):
    """A head that was told is that of another line."""
    told = [r for r in story.records[rng.choice(story.clients)] if r.get("server_head")]
    if told:
        other = rng.choice(story.records["server"])
        rng.choice(told)["server_head"] = Told(other, "0" * 64)


def alter_notes(story, rng):
    """Somebody's signature is on a note or not, or there is a note more or less."""
    kind = rng.randrange(3)
    if kind == 0:
        story.notes.setdefault(rng.randint(1, 9), ["server"])
    elif kind == 1 and story.notes:
        del story.notes[rng.choice(sorted(story.notes))]
    elif story.notes:
        signers = story.notes[rng.choice(sorted(story.notes))]
        name = rng.choice(story.parties)
        if name in signers and len(signers) > 1:
            signers.remove(name)
        elif name not in signers:
            signers.append(name)


ALTERATIONS = (
    *(alter_value,) * 6,
    *(alter_order, alter_order, alter_notes, alter_story, alter_heads),
)


def altered_records(files, seed):
    """Records altered, and every ledger signed again by its owner."""
    rng = random.Random(seed)  # noqa: S311
    if "plan.json" not in files:
        return altered_cohorts(files, rng)
    return altered_story(Story(files), rng)


def altered_cohorts(files, rng):
    """Records of one cohort altered; at times an adapter that the others tell of."""
    told = Stories(files)
    chosen = rng.choice(sorted(told.cohorts))
    story = told.cohorts[chosen]
    if rng.random() < 0.5:
        return _with_altered_steps(told, story, rng)
    part = altered_story(story, rng)
    return part and files | {f"{chosen}/{name}": data for name, data in part.items()}


def _with_altered_steps(told, story, rng):
    """Adapters of one cohort's rounds are others, in all that its parties write."""
    known = sorted(
        {r[key] for r in story.every("moved") for key in r if key.startswith("adapter")}
    ) or ["0" * 64]
    old, new = rng.choice(known), rng.choice([*known, "7" * 64])
    for records in story.records.values():
        for record in records:
            for key in ("adapter_digest", "adapter_before", "adapter_after"):
                if record.get(key) == old and rng.random() < 0.9:
                    record[key] = new
    return told.written()


def altered_story(story, rng):
    """The files of one run, of which some records are altered."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        rng.choice(ALTERATIONS)(story, rng)
    first = story.clients[0]
    # A plan that all agree on, and that its digest fits, gets past the first checks.
    if rng.random() < 0.15 and story.records[first][0]["kind"] == "opened":
        term = rng.choice(sorted(story.of(first, "opened")["plan"]))
        value = other_value(story.of(first, "opened")["plan"][term], rng)
        story.change_plan(**{term: value})
    try:
        return story.written()
    except (ValueError, TypeError, KeyError, RecursionError, AttributeError):
        # What no party could sign: no JSON, or two records that each come first.
        return None
