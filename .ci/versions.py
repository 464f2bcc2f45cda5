"""Print the interpreter and the libraries that are tested.

python .ci/versions.py
"""

import platform
import sys
from importlib import metadata

LIBRARIES = ["jax", "jaxlib", "optax", "flax", "orbax-checkpoint", "numpy"]

found = [f"{name} {metadata.version(name)}" for name in LIBRARIES]
print(f"Python {platform.python_version()} ({sys.executable}):", ", ".join(found))
