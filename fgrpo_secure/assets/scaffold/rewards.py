"""Rewards with TRL's signature: one number for each completion.

Two things are asked beyond what TRL asks. A reward looks at its own row and completion
and at nothing else: it keeps nothing from call to call, takes no shared random numbers,
and asks no service that remembers, or one row could reach the gradients of others. And
what it returns lies in the `reward_range` of run.toml; what is outside is clipped.
"""


def exact(prompts, completions, answer, **columns):
    """Give 1 where the completion is the answer, spaces around it aside, else 0.

    Args:
        prompts: the prompts, one for each completion: all the same, one group.
        completions: what the model wrote. With conversations as prompts each is a
            list of one message, and its text is `completion[0]["content"]`.
        answer: the column `answer` of the data, one for each completion. Any column
            can be named so, and what is not named arrives in `columns`.

    Returns:
        A number for each completion; None where a row cannot be scored.
    """
    return [
        1.0 if completion.strip() == right else 0.0
        for completion, right in zip(completions, answer, strict=True)
    ]
