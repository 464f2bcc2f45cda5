"""Settings for the whole run."""

import gc


def pytest_collection_finish():
    # Tracing makes many small objects, and imported modules stay: scanning both again
    # and again took the collector a twentieth of the time.
    gc.freeze()
    gc.set_threshold(20_000, *gc.get_threshold()[1:])
