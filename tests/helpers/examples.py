"""How many examples Hypothesis tries."""

import os

from hypothesis import settings

# Asks for as many of every property, as the study of reliability does.
VARIABLE = "HYPOTHESIS_MAX_EXAMPLES"


def examples(count: int = 100) -> settings:
    """Tries so many, however long one takes, unless ``VARIABLE`` says how many."""
    return settings(
        deadline=None, max_examples=int(os.environ.get(VARIABLE, str(count)))
    )
