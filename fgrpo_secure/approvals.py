"""A site's policy and its operator's approvals as files that only they may write.

An approval is a file whose name is the digest of what was approved, and whose content
says what that is. Another plan, base model, reward file, cap, or another run of the
same, has another digest and finds no file.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from fgrpo_secure.errors import ConfigurationError
from fgrpo_secure.secrets import write_atomically
from fgrpo_secure.site_policy import RewardFile, SitePolicy, parse_policy
from privacy.ledger import decimal_text
from privacy.wire import Json, canonical_json

APPROVAL_FORMAT = "fgrpo-secure/approval/1"

# How much of the plan's digest an operator types: enough that nobody types it unread.
TYPED = 8

_MOST_BYTES = 2**20
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True)
class Proposal:
    """All that an operator's approval is of.

    Attributes:
        client: whose data.
        data_set: which of them.
        data: hex handle of the data set's ledger; empty before its first run.
        store: where that ledger lies. The first run of a ledger in another store, which
            has no handle yet either, is another.
        run_number: which run of that ledger it would be, from 1.
        cap_epsilon: most that the ledger may hold with this run in it.
        cap_delta: at which.
        plan: hex digest of the plan.
        base_model: hex digest of the base model's files.
        rewards: the reward functions, by name and file.
    """

    client: str
    data_set: str
    data: str
    store: str
    run_number: int
    cap_epsilon: Decimal
    cap_delta: Decimal
    plan: str
    base_model: str
    rewards: tuple[RewardFile, ...]

    def to_bytes(self) -> bytes:
        """The one text of it."""
        rewards: list[Json] = [[reward.name, reward.sha256] for reward in self.rewards]
        return canonical_json(
            {
                "format": APPROVAL_FORMAT,
                "client": self.client,
                "data_set": self.data_set,
                "data": self.data,
                "store": self.store,
                "run_number": self.run_number,
                "cap_epsilon": decimal_text(self.cap_epsilon),
                "cap_delta": decimal_text(self.cap_delta),
                "plan": self.plan,
                "base_model": self.base_model,
                "rewards": rewards,
            }
        )

    def is_named_by(self, typed: str) -> bool:
        """Whether these are the first characters of the plan's digest, and enough."""
        own = "".join(typed.split()).lower()
        return len(own) >= TYPED and self.plan.startswith(own)

    def words(self) -> list[str]:
        """What the plan in words does not say, for a terminal."""
        return [
            f"client      {self.client}",
            f"data set    {self.data_set}, run {self.run_number} of its ledger",
            f"store       {self.store}",
            f"cap         epsilon {decimal_text(self.cap_epsilon)} at delta "
            f"{decimal_text(self.cap_delta)}, over all runs",
            f"base model  {self.base_model}",
            *(f"reward      {r.name}\n            {r.sha256}" for r in self.rewards),
            f"plan        {self.plan}",
        ]


def load_policy(path: Path) -> SitePolicy:
    """Read a site's policy.

    Raises:
        ConfigurationError: it is not there, says something that it cannot, or somebody
            else may write it.
    """
    try:
        text = read_own(path).decode("utf-8")
    except FileNotFoundError:
        raise ConfigurationError(
            f"There is no policy {path}.",
            "Give the path of a policy; `fgrpo policy init` writes one to start from.",
        ) from None
    except UnicodeDecodeError:
        raise ConfigurationError(
            f"{path} is not UTF-8 text.", "Save it as UTF-8, as TOML asks."
        ) from None
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error.strerror or type(error).__name__}.",
            "See that it is a file, and that this account may read it.",
        ) from None
    return parse_policy(text, str(path))


def approve(policy: Path, proposal: Proposal) -> Path:
    """Write an operator's approval beside the policy; returns where.

    Raises:
        OSError: it cannot be written.
    """
    path = _approval(policy, proposal)
    # Nothing in it is secret, and the account that runs need not be the operator's.
    path.parent.mkdir(mode=0o755, exist_ok=True)
    write_atomically(path, proposal.to_bytes())
    return path


def is_approved(policy: Path, proposal: Proposal) -> bool:
    """Whether an operator has approved exactly this.

    Raises:
        ConfigurationError: somebody else may write the approval.
    """
    try:
        return read_own(_approval(policy, proposal)) == proposal.to_bytes()
    except OSError:
        return False


def read_own(path: Path) -> bytes:
    """The bytes of a file that nobody but its reader, or the system, may write.

    Whoever may write a policy decides what it allows, and so does whoever may put
    another file in its place.

    Every folder is opened from the one above it and looked at as it is open, so that
    nobody puts another in its place between the look and the reading. A link, also in
    the place of a folder, is not followed: it could lead from a folder that others may
    write to an older policy in one that they may not.

    Args:
        path: as `Path.resolve` gives it.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ConfigurationError: somebody else may write it, or it is no policy at all.
    """
    # A pipe that nobody writes would otherwise be waited for.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    folder = _open_folder(path.absolute().parent)
    try:
        descriptor = os.open(path.name, flags, dir_fd=folder)
    finally:
        os.close(folder)
    with os.fdopen(descriptor, "rb") as handle:
        found = os.fstat(handle.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_size > _MOST_BYTES:
            raise ConfigurationError(
                f"{path} is no file, or one of more than a megabyte.",
                "Give the path of a policy.",
            )
        _check_owner(path, found, shared=False)
        return handle.read(_MOST_BYTES + 1)


def _open_folder(path: Path) -> int:
    """Open a folder by way of all above it; returns its descriptor.

    Raises:
        OSError: one is not there, or is a link.
        ConfigurationError: somebody else may put another in the place of one.
    """
    # To pass through a folder takes no right to list it.
    flags = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    flags |= getattr(os, "O_PATH", os.O_RDONLY)
    walked = Path(path.anchor)
    descriptor = os.open(walked, flags)
    try:
        _check_owner(walked, os.fstat(descriptor), shared=True)
        for name in path.relative_to(walked).parts:
            walked /= name
            following = os.open(name, flags, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = following
            _check_owner(walked, os.fstat(descriptor), shared=True)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_owner(path: Path, found: os.stat_result, *, shared: bool) -> None:
    """Refuse what another account may write.

    Args:
        path: for the error.
        found: its owner and mode.
        shared: whether a folder in which each may only touch what is theirs passes.
    """
    sticky = shared and bool(found.st_mode & stat.S_ISVTX)
    if found.st_uid not in {0, os.geteuid()} and not sticky:
        raise ConfigurationError(
            f"{path} belongs to another account, which could change the policy.",
            "Keep the policy where only this account or root may write.",
        )
    if found.st_mode & _OTHERS_WRITE and not sticky:
        raise ConfigurationError(
            f"{path} may be written by others, who could change the policy.",
            f"Run `chmod go-w {path}`, or keep the policy elsewhere.",
        )


def _approval(policy: Path, proposal: Proposal) -> Path:
    digest = hashlib.sha256(proposal.to_bytes()).hexdigest()
    return policy.with_suffix(".approvals") / f"{digest}.json"
