"""What the hospitals' completions earn.

A reward looks at one row and one completion and at nothing else. It keeps nothing from
one call to the next: what it remembered of one patient could reach the gradient of
another, and no clipping bounds that.
"""


def exact(prompts, completions, *, answer, **columns):
    """Give 1 for the right answer, spaces around it aside, and 0 for any other.

    The signature is TRL's. `answer` is the column of that name, once for each
    completion; `columns` holds all others, `patient_id` among them.
    """
    return [
        1.0 if completion.strip() == wanted else 0.0
        for completion, wanted in zip(completions, answer, strict=True)
    ]
