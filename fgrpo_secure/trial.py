"""What a data owner can find out about its own part before anything is drawn.

The counts are exact and of private data, so they are for the owner's own terminal and
only where the owner asks for them. A run shows none of them: what it prints may be seen
by others, and no guarantee covers a count.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from fgrpo_secure.config import PROMPT, ClientSection, PrivacySection, RunConfig
from fgrpo_secure.errors import DataError, RewardError
from fgrpo_secure.explanations import COLUMNS_LISTED
from fgrpo_secure.grpo.data import Example, column_names, load_examples
from fgrpo_secure.grpo.packing import Group
from fgrpo_secure.grpo.policy import Policy
from fgrpo_secure.grpo.rewards import Tally
from fgrpo_secure.grpo.rollout import generate
from fgrpo_secure.grpo.units import unit_id
from fgrpo_secure.task import Task, load_task, score
from privacy.sampling import uniforms

# Units that completions are generated for.
TRIED = 8

# What people write where they do not know whose a row is, in small letters.
_PLACEHOLDERS = frozenset(
    {
        *("unknown", "unk", "undefined", "missing", "anonymous", "n/a", "#n/a", "na"),
        *("none", "null", "nil", "nan", "-", "--", ".", "?", "0", "-1"),
    }
)
# Letters and symbols by their category, and yet blank.
_BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0")

_RELEASE = (
    "Choose it from what is known of the field, not from these data: a number that is "
    "read off them and written into the public configuration is itself a release."
)


@dataclass(frozen=True, slots=True)
class Trial:
    """What trying one client's part gave.

    Attributes:
        client: its name.
        rows: rows of its data set.
        units: units of its data set.
        prompts: prompts of all units that count.
        tried: prompts that completions were generated for.
        mean: mean reward of these, in the units of the public range; None where no
            reward gave a number.
        low: lower end of that range.
        high: upper end of it.
        teaching: prompts among the tried whose completions differ in reward.
        notices: what the owner should know, each with what to do.
    """

    client: str
    rows: int
    units: int
    prompts: int
    tried: int
    mean: float | None
    low: float
    high: float
    teaching: int
    notices: tuple[str, ...]

    def lines(self) -> list[str]:
        """For a terminal."""
        mean = "unknown" if self.mean is None else f"{self.mean:.3f}"
        return [
            f"{self.client}: {self.rows:,} rows, {self.units:,} units with "
            f"{self.prompts:,} prompts that count",
            f"  {self.tried} prompts tried: mean reward {mean} of "
            f"[{self.low:g}, {self.high:g}]; the completions of {self.teaching} differ "
            "in reward, and only such teach",
            *(f"  look: {notice}" for notice in self.notices),
        ]


def try_client(config: RunConfig, client: ClientSection, policy: Policy) -> Trial:
    """Load what a client learns from and score a few completions.

    Raises:
        FgrpoError: what would stop a run; it may list a data set's columns.
    """
    with _columns_listed(client.data):
        task = load_task(config, client, policy)
    rows = load_examples(client.data)
    held_out: list[Example] = []
    if client.eval_data is not None:
        with _columns_listed(client.eval_data):
            held_out = load_examples(client.eval_data)
            columns = {name: [value] for name, value in held_out[0].columns.items()}
            task.rewards.check([held_out[0].prompt], [""], columns)
    chosen = list(task.units)[:TRIED]
    examples = [task.units[unit].examples[0] for unit in chosen]
    groups = _generated(task, policy, [task.prompts[unit][0] for unit in chosen])
    scores = [
        score(task.rewards, example, group)
        for example, group in zip(examples, groups, strict=True)
    ]
    tallies: dict[str, list[Tally]] = {}
    for example, group in zip(examples, groups, strict=True):
        count = len(group.texts)
        columns = {name: [value] * count for name, value in example.columns.items()}
        for tally in task.rewards.tally(
            [example.prompt] * count, list(group.texts), columns
        ):
            tallies.setdefault(tally.target, []).append(tally)
    low, high = task.rewards.range
    known = np.concatenate(scores)
    known = known[~np.isnan(known)]
    prompts = sum(len(tokens) for tokens in task.prompts.values())
    notices = [
        *_reward_notices(tallies),
        *_length_notices(task, config.grpo.max_prompt_tokens),
        *_left_out_notices(len(rows) - prompts, config.privacy),
        *_subject_notices(rows, config.privacy),
        *_held_out_notices(
            rows, held_out, public=client.eval_public, unit=config.privacy.unit
        ),
    ]
    return Trial(
        client=client.name,
        rows=len(rows),
        units=len(task.units),
        prompts=prompts,
        tried=len(chosen),
        mean=float(known.mean()) if known.size else None,
        low=low,
        high=high,
        teaching=sum(
            np.unique(values[~np.isnan(values)]).size > 1 for values in scores
        ),
        notices=tuple(notices),
    )


@contextmanager
def _columns_listed(source: str) -> Iterator[None]:
    """Put a data set's columns where an error says that a check lists them."""
    try:
        yield
    except (DataError, RewardError) as error:
        if COLUMNS_LISTED not in error.fix:
            raise
        listed = f"Its columns are: {', '.join(column_names(source))}."
        fix = error.fix.replace(COLUMNS_LISTED, listed)
        raise type(error)(error.what, fix) from None


def _generated(
    task: Task, policy: Policy, prompts: Sequence[tuple[int, ...]]
) -> list[Group]:
    """One group for each prompt, from numbers that are nobody's secret."""
    settings = task.rollout
    shape = (len(prompts), settings.group_size, settings.max_tokens)
    key = hashlib.sha256(b"fgrpo-secure trial").digest()
    numbers = uniforms(key, int(np.prod(shape))).reshape(shape)
    return list(generate(policy, prompts, numbers, settings))


def _reward_notices(tallies: dict[str, list[Tally]]) -> list[str]:
    found = []
    for target, parts in tallies.items():
        values = sum(part.values for part in parts)
        missing = sum(part.missing for part in parts)
        outside = sum(part.outside for part in parts)
        if missing == values:
            found.append(
                f"{target} gave no number for any of {values} completions; nothing can "
                "be learnt from it. Return a number wherever one is known."
            )
        elif missing:
            found.append(
                f"{target} gave no number for {missing} of {values} completions; these "
                "teach nothing."
            )
        if outside:
            found.append(
                f"{target} gave {outside} of {values} values outside its reward_range; "
                "they are clipped. State the least and the greatest value that it "
                "can give."
            )
    return found


def _length_notices(task: Task, limit: int) -> list[str]:
    lengths = [len(row) for rows in task.prompts.values() for row in rows]
    longer = sum(length > limit for length in lengths)
    if not longer:
        return []
    return [
        f"{longer} of {len(lengths)} prompts are longer than max_prompt_tokens = "
        f"{limit} and lose their beginning. Raise it, or shorten them. {_RELEASE}"
    ]


def _left_out_notices(count: int, privacy: PrivacySection) -> list[str]:
    if not count:
        return []
    if privacy.unit == PROMPT:
        return [f"{count} rows repeat a prompt; the first of each counts."]
    return [
        f"{count} rows do not count: they repeat a prompt of their unit, or their unit "
        f"has more than {privacy.prompts_per_unit}. Raise max_prompts_per_unit where "
        f"that matters. {_RELEASE}"
    ]


def _subject_notices(rows: Sequence[Example], privacy: PrivacySection) -> list[str]:
    """Ids that may stand for many people, who would then be one unit."""
    if privacy.unit == PROMPT:
        return []
    ids = [example.columns[privacy.unit] for example in rows]
    found = []
    placeholders = [value for value in ids if _is_placeholder(str(value))]
    if placeholders:
        found.append(
            f"{len(placeholders)} rows have one of {len(set(placeholders))} values as "
            f"{privacy.unit} that usually say that nobody is known, such as unknown, "
            "none, 0 or -. All rows of one are one unit: leave them out where they are "
            "of several."
        )
    unseen = [value for value in ids if _is_unseen(str(value))]
    if unseen:
        found.append(
            f"{len(unseen)} rows have a {privacy.unit} of characters that cannot be "
            "seen. Say whose they are, or leave them out."
        )
    return found


def _is_placeholder(value: str) -> bool:
    return value.strip().strip("<>()[]").casefold() in _PLACEHOLDERS


def _is_unseen(value: str) -> bool:
    """Whether a value has separators, control characters and blanks only."""
    return all(
        letter in _BLANK or unicodedata.category(letter)[0] in "CZ" for letter in value
    )


def _held_out_notices(
    rows: Sequence[Example],
    held_out: Sequence[Example],
    *,
    public: bool,
    unit: str,
) -> list[str]:
    """What is held out and yet trained on: prompts, and people with other prompts."""
    shown = ", and a run shows them, since they are declared public" if public else ""
    found = []
    known = {unit_id(example.prompt) for example in rows}
    count = sum(unit_id(example.prompt) in known for example in held_out)
    if count:
        found.append(
            f"{count} of {len(held_out)} held-out prompts are in the data too{shown}. "
            "Take them out of one of the two."
        )
    if unit == PROMPT:
        return found
    # As text: of one owner's files one may be JSON and the other a table.
    people = {str(example.columns[unit]) for example in rows}
    count = sum(str(example.columns.get(unit)) in people for example in held_out)
    if count:
        found.append(
            f"{count} of {len(held_out)} held-out rows have a {unit} that rows of the "
            f"data have too{shown}. Hold whole units out: a score of these rows is "
            "about units that the guarantee is for."
        )
    return found
