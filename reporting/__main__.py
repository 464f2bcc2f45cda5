"""Write the tables and pictures of README and docs from the stored results.

    python -m reporting
    python -m reporting --run-tutorials

A test checks that the tables equal this program's output.
"""

import tyro

from reporting.pages import tutorials
from reporting.pictures import PICTURES
from reporting.stored import write_picture
from reporting.tables import PAGES, render


def main(*, run_tutorials: bool = False) -> None:
    """Write the tables and the pictures.

    Args:
      run_tutorials: Run the tutorials first, and store their output.
    """
    if run_tutorials:
        tutorials.run_all()
    for page in PAGES:
        page.write_text(render(page))
    for path, draw in PICTURES.items():
        write_picture(draw(), path)


if __name__ == "__main__":
    tyro.cli(main, prog="python -m reporting", description=__doc__)
