"""The notebooks: pairs agree, outputs are stored, code runs."""

import base64
import json
import re

import matplotlib as mpl
import pytest

from examples.notebooks import pairs
from examples.notebooks.pairs import NAMES, Cell

# Constants that shorten each notebook to seconds.
SHORTER = {
    "digits": {"EPOCHS": 1, "SPARSITIES": (0.9,)},
    "moving_topology": {"STEPS": 20, "EVERY": 10},
    "compact_transformer": {"STEPS": 6, "EVERY": 2, "LAYERS": 1, "LENGTH": 16},
    "weight_sparse_transformer": {"STEPS": 50, "BATCH": 16},
    "prune_trained": {"EPOCHS": 1, "FINE_TUNING": 1, "SPARSITIES": (0.5,)},
}


def cells(name):
    return pairs.parse(pairs.script(name).read_text(encoding="utf-8"))


def stored(name):
    return json.loads(pairs.notebook(name).read_text(encoding="utf-8"))


def outputs(name):
    """Return the stored outputs of each cell of a notebook."""
    return [cell.get("outputs", []) for cell in stored(name)["cells"]]


def test_every_script_is_listed():
    code = {"__init__", "__main__", "pairs"}
    scripts = {path.stem for path in pairs.FOLDER.glob("*.py")} - code
    assert set(NAMES) == set(SHORTER) == scripts
    assert {path.stem for path in pairs.FOLDER.glob("*.ipynb")} == scripts


@pytest.mark.parametrize("name", NAMES)
def test_a_pair_agrees(name):
    assert stored(name) == pairs.as_json(cells(name), outputs(name))


@pytest.mark.parametrize("name", NAMES)
def test_it_opens_with_its_result(name):
    title, result, image, *_ = cells(name)[0].source.split("\n\n")
    assert title.startswith("# ") and image.endswith(f"](images/{name}.png)")
    printed = "".join(
        "".join(output.get("text", ())) for shown in outputs(name) for output in shown
    )
    numbers = re.findall(r"\d[\d.,]*\d|\d", result)
    assert len(numbers) >= 2
    assert not [number for number in numbers if number not in printed]


@pytest.mark.parametrize("name", NAMES)
def test_its_picture_is_stored_and_small(name):
    (shown,) = (
        shown
        for cell, shown in zip(cells(name), outputs(name), strict=True)
        if cell.tag == "result"
    )
    (png,) = (output["data"]["image/png"] for output in shown if "data" in output)
    assert base64.b64decode(png) == pairs.picture(name).read_bytes()
    assert pairs.notebook(name).stat().st_size < 200_000


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_runs(name):
    mpl.use("agg")
    shown = pairs.execute(cells(name), SHORTER[name])
    kinds = [[output["output_type"] for output in cell] for cell in shown]
    assert kinds == [[x["output_type"] for x in cell] for cell in outputs(name)]


def test_cells_of_a_script():
    script = '# %% [markdown]\n# A *title*\n#\n# Text.\n\n# %% tags=["result"]\nx = 1\n'
    assert pairs.parse(script) == [
        Cell("A *title*\n\nText.", is_text=True),
        Cell("x = 1", tag="result"),
    ]
    with pytest.raises(ValueError, match="must begin with a cell"):
        pairs.parse("x = 1\n")


def test_a_cell_shows_what_it_prints_ends_with_and_draws():
    mpl.use("agg")
    made = [
        Cell("x, y = 1, 2", tag="parameters"),
        Cell("import matplotlib.pyplot as plt\nprint(x + y)\n_ = plt.subplots()"),
        Cell("from matplotlib.figure import Figure\nFigure()"),
        Cell("x"),
    ]
    nothing, drawn, ended, plain = pairs.execute(made, {"x": 5})
    assert nothing == plain == []
    assert drawn[0] == {"output_type": "stream", "name": "stdout", "text": ["7\n"]}
    assert "image/png" in drawn[1]["data"] and "image/png" in ended[0]["data"]
    with pytest.raises(ValueError, match=r"not parameters .*\['z'\]"):
        pairs.execute(made, {"z": 5})
