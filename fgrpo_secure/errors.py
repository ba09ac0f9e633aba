"""What a user can get wrong, said in two lines: what happened, and what to do.

No text in this family may hold prompt text, a key or any other private value: an error
is printed, logged and sometimes shown to people who must not see the data.
"""


class FgrpoError(Exception):
    """An error that a user can act upon.

    Attributes:
        what: One line that says what happened.
        fix: One line that says what to do about it.
        exit_code: The status with which the command line ends.
    """

    exit_code = 1

    def __init__(self, what: str, fix: str) -> None:
        """Keep both lines.

        Args:
            what: One line that says what happened.
            fix: One line that says what to do about it.
        """
        super().__init__(what, fix)
        self.what = what
        self.fix = fix

    def __str__(self) -> str:
        """Both lines, ready to print."""
        return f"{self.what}\n{self.fix}"


def said_by_kernel(error: Exception, otherwise: str) -> tuple[str, str]:
    """What happened and what to do, of an error of the privacy kernel.

    The kernel says both in one text, what to do after the last semicolon.

    Args:
        error: what it raised.
        otherwise: what to do where its text does not say.
    """
    what, _, fix = str(error).rpartition("; ")
    if not what:
        what, fix = fix, otherwise
    # What happened often begins with a key, whose letters stay as they are.
    fix = f"{fix[:1].upper()}{fix[1:]}"
    return f"{what.removesuffix('.')}.", f"{fix.removesuffix('.')}."


def said_by_system(error: OSError) -> tuple[str, str]:
    """What happened and what to do, where the system refused a file.

    No path is named: whoever opened the file may have made its name from data.

    Args:
        error: what the system raised.
    """
    reason = error.strerror or type(error).__name__
    return (
        f"The system refused a file: {reason}.",
        "See that the folder is there, may be written to and has room.",
    )


class ConfigurationError(FgrpoError):
    """The configuration says something that cannot be done or must not be done."""

    exit_code = 2


class DataError(FgrpoError):
    """A data set cannot be read, or it lacks what training needs."""

    exit_code = 3


class RewardError(FgrpoError):
    """A reward function cannot be loaded, or it breaks its contract at start-up."""

    exit_code = 3


class ModelError(FgrpoError):
    """A model or an adapter cannot be used."""

    exit_code = 4


class StateError(FgrpoError):
    """A run's folder is not in a state from which it can go on."""

    exit_code = 5
