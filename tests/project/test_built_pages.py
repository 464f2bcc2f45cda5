"""The site in a browser: headless Chromium opens every page that is built."""

import contextlib
import functools
import http.server
import json
import os
import queue
import shutil
import subprocess
import threading

import pytest

from tests.helpers.pages import ROOT

pytestmark = pytest.mark.slow

WIDTHS = {"desktop": 1280, "phone": 360}
# Terms that readers search for, and that are not in the package's names, and the recipe
# that the search has to find first.
SOUGHT = {
    "ViT": "vision-transformer-vit",
    "Hugging Face": "hugging-face-weights",
    "Haiku": "haiku",
    "MaxText": "scanned-and-partitioned-models-as-in-maxtext",
    "wandb": "weights-biases-tensorboard-clu",
    "TensorBoard": "weights-biases-tensorboard-clu",
    "EMA": "ema-of-the-weights",
    "mixed precision": "mixed-precision",
    "LoRA": "lora-on-a-sparse-network",
    "2:4": "24-sparsity",
}

PAGE = '<!doctype html><meta charset="utf-8"><body><script>{}</script>'
MEASURE = (ROOT / "tests/project/measure_pages.js").read_text(encoding="utf-8")


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serve the site and the page that measures it, and receive its report."""

    plan: dict[str, object]
    results: queue.Queue[dict[str, object]]

    def do_GET(self):
        if self.path != "/measure":
            return super().do_GET()
        script = MEASURE.replace("PLAN;", f"{json.dumps(self.plan)};")
        page = PAGE.format(script).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(page)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()
        self.results.put(json.loads(body))

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def served(site, plan):
    """Yield the address of a server of the site, and the queue of measurements."""
    results = queue.Queue()
    members = {"plan": plan, "results": results}
    handler = functools.partial(type("Of", (Handler,), members), directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", results
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def chromium():
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("no Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def site(tmp_path_factory, chromium):
    """Return the pages, newly built."""
    place = ROOT / ".venv-docs" / "bin"
    mkdocs = shutil.which("mkdocs", path=f"{place}{os.pathsep}{os.environ['PATH']}")
    if mkdocs is None:
        pytest.skip("no MkDocs: make docs")
    built = tmp_path_factory.mktemp("site")
    path = os.path.dirname(mkdocs) + os.pathsep + os.environ["PATH"]
    done = subprocess.run(
        [mkdocs, "build", "--quiet", "--strict", "--site-dir", built],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return built


@pytest.fixture(scope="module")
def seen(site, chromium, tmp_path_factory):
    """Return what Chromium measures on all pages, and prints on its console."""
    pages = [f"/{page.relative_to(site)}" for page in sorted(site.rglob("*.html"))]
    pages = [page for page in pages if not page.startswith("/sources/")]
    pages += ["/sources/examples/quickstart/nnx.py/index.html"]
    plan = {"pages": pages, "widths": WIDTHS, "sought": list(SOUGHT)}
    log = tmp_path_factory.mktemp("chromium") / "log.txt"
    with served(site, plan) as (address, results), log.open("w") as stderr:
        browser = subprocess.Popen(
            [
                *(chromium, "--headless", "--no-sandbox", "--disable-gpu"),
                *("--no-first-run", "--disable-dev-shm-usage"),
                *("--disable-background-networking", "--disable-component-update"),
                *("--enable-logging=stderr", "--v=0"),
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                f"--user-data-dir={log.parent}/profile",
                "--window-size=1400,1000",
                "--remote-debugging-port=0",  # keeps it open
                f"{address}/measure",
            ],
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
        try:
            found = results.get(timeout=900)
        finally:
            browser.terminate()
            browser.wait(timeout=60)
    assert "error" not in found, found["error"]
    assert {page["page"] for page in found["pages"]} == set(pages) and len(pages) > 30
    console = [line for line in log.read_text().splitlines() if "CONSOLE" in line]
    return found | {"console": console}


def on(seen, name):
    """Return the pages on which something was found, by what it was."""
    return {
        f"{page['page']} on a {page['width']}": page[name]
        for page in seen["pages"]
        if page[name]
    }


def test_formulas_are_set(seen):
    assert not on(seen, "latex")
    formulas = {page["page"] for page in seen["pages"] if page["formulas"]}
    assert "/api/optimizers/index.html" in formulas


@pytest.mark.parametrize("what", ["overflow", "wide"])
def test_pages_fit_the_screen(seen, what):
    assert not on(seen, what)


def test_nothing_is_asked_of_other_hosts(seen):
    assert not on(seen, "outside")


def test_pictures_are_there(seen):
    assert not on(seen, "broken")


def test_the_console_stays_empty(seen):
    assert not seen["console"]


def test_search_finds_what_readers_look_for(seen):
    found = {entry["text"]: entry["found"].lower() for entry in seen["searches"]}
    assert not {text for text in SOUGHT if text.lower() not in found[text]}


def test_search_finds_the_recipe_first(site):
    node = shutil.which("node")
    if node is None:
        pytest.skip("no Node.js: apt-get install nodejs")
    script = ROOT / "tests/project/search_pages.js"
    done = subprocess.run(
        [node, script, site, json.dumps(list(SOUGHT))],
        capture_output=True,
        text=True,
        check=True,
    )
    first = {text: pages[0][0] for text, pages in json.loads(done.stdout).items()}
    assert first == {text: f"how_to/#{section}" for text, section in SOUGHT.items()}
