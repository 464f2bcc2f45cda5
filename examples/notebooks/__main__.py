"""Executes the notebooks, and stores them with what they print and draw.

python -m examples.notebooks
python -m examples.notebooks digits
"""

import matplotlib as mpl
import tyro

from examples.notebooks import pairs


def main(names: tyro.conf.Positional[tuple[str, ...]] = pairs.NAMES) -> None:
    """Executes notebooks.

    Args:
      names: which; all by default.
    """
    mpl.use("agg")
    for name in names:
        pairs.store(name)
        print(f"{pairs.notebook(name)}: {pairs.notebook(name).stat().st_size:,} bytes")


if __name__ == "__main__":
    tyro.cli(main)
