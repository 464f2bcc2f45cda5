"""The number of examples that Hypothesis tries."""

import os

from hypothesis import settings

# Sets the number of examples per property, as in the study of reliability.
VARIABLE = "HYPOTHESIS_MAX_EXAMPLES"


def examples(count: int = 100) -> settings:
    """Try ``count`` examples without deadline, unless ``VARIABLE`` sets the number."""
    return settings(
        deadline=None, max_examples=int(os.environ.get(VARIABLE, str(count)))
    )
