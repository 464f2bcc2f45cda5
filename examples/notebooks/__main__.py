"""Execute the notebooks, and store them with their printed output and figures.

python -m examples.notebooks
python -m examples.notebooks digits
"""

import matplotlib as mpl
import tyro

from examples.notebooks import pairs


def main(names: tyro.conf.Positional[tuple[str, ...]] = pairs.NAMES) -> None:
    """Execute notebooks.

    Args:
      names: names of the notebooks; all by default.
    """
    mpl.use("agg")
    for name in names:
        pairs.store(name)
        print(f"{pairs.notebook(name)}: {pairs.notebook(name).stat().st_size:,} bytes")


if __name__ == "__main__":
    tyro.cli(main)
