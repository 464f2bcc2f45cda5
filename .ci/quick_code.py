"""Print the XLA flags with which the installed jax compiles fastest for CPUs.

    XLA_FLAGS="$(python .ci/quick_code.py)" python -m pytest

XLA aborts on unknown flags, so each is used only for the versions that know it.
"""

from importlib import metadata

FLAGS = [
    "--xla_backend_optimization_level=0",
    "--xla_cpu_parallel_codegen_split_count=1",
]
UNTIL_0_11 = ["--xla_cpu_use_fusion_emitters=false"]

major, minor = map(int, metadata.version("jaxlib").split(".")[:2])
print(*FLAGS, *(UNTIL_0_11 if (major, minor) < (0, 11) else []))
