"""What holds for the whole run."""

import gc


def pytest_collection_finish():
    # Tracing makes many small objects, and what has been imported stays: the collector
    # took a twentieth of the time to look through both again and again.
    gc.freeze()
    gc.set_threshold(20_000, *gc.get_threshold()[1:])
