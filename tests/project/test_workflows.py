"""The commands of GitHub, pre-commit and the guide for contributors exist."""

import itertools
import re
import subprocess
import tomllib

import pytest
import yaml

from tests.helpers.pages import ROOT, read

MAKEFILE = read("Makefile")
WORKFLOWS = sorted(path.stem for path in ROOT.glob(".github/workflows/*.yml"))
# Where commands are, whatever the file is.
SOURCES = [
    *(f".github/workflows/{name}.yml" for name in WORKFLOWS),
    *(".ci/run", ".pre-commit-config.yaml"),
    *("CONTRIBUTING.md", "README.md", ".github/pull_request_template.md"),
]


def targets():
    (line,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    return set(line.split())


def recipe(target):
    """Return the lines of a target in the Makefile."""
    (lines,) = re.findall(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    return [line.strip() for line in lines.splitlines()]


def workflow(name):
    # YAML 1.1 takes the key `on` for a truth value.
    return {
        "on" if key is True else key: value
        for key, value in yaml.safe_load(read(f".github/workflows/{name}.yml")).items()
    }


def jobs():
    for name in WORKFLOWS:
        for title, job in workflow(name)["jobs"].items():
            yield f"{name}/{title}", job


def commands(job):
    """Return what a job runs: pairs of a Python and a command, for the whole matrix."""
    matrix = dict(job.get("strategy", {}).get("matrix", {}))
    included = matrix.pop("include", [])
    runs = [
        dict(zip(matrix, values, strict=True))
        for values in itertools.product(*matrix.values())
    ]
    for values in runs + included:
        python = None
        for step in job.get("steps", []):
            python = step.get("with", {}).get("python-version", python)
            if "run" in step:
                yield spelt_out(python, values), spelt_out(step["run"], values)


def spelt_out(text, values):
    for name, value in values.items():
        text = text and text.replace(f"${{{{ matrix.{name} }}}}", value)
    return text


def made(text):
    """Return the targets of the commands in a text: on their own line, or as code."""
    return set(re.findall(r"(?:^|`|run: )make ([a-z][\w-]*)", text, re.MULTILINE))


def test_a_matrix_is_spelt_out():
    job = {
        "strategy": {"matrix": {"a": ["x"], "b": ["y", "z"], "include": [{"a": "w"}]}},
        "steps": [{"run": "make ${{ matrix.a }}"}],
    }
    assert list(commands(job)) == [(None, f"make {name}") for name in "xxw"]


def test_every_target_has_a_rule_and_a_line_of_help():
    for target in targets():
        assert recipe(target), target
    listed = re.findall(r"^make ([\w-]+)  ", "\n".join(help_lines()), re.MULTILINE)
    assert sorted(listed) == sorted(targets() - {"help"})


def help_lines():
    return [re.sub(r"^@echo '(.*)'$", r"\1", line) for line in recipe("help")]


@pytest.mark.parametrize("source", SOURCES)
def test_what_is_made_is_a_target(source):
    assert made(read(source)) <= targets()


def test_github_makes_what_ci_makes():
    in_ci = made(read(".ci/run"))
    assert in_ci >= {"lint", "docs", "wheel", "test", "test-slow", "test-lowest"}
    on_github = {
        command
        for _, job in jobs()
        for _, run in commands(job)
        for command in made(run)
    }
    assert in_ci == on_github


def test_github_takes_the_oldest_python_and_the_newest():
    oldest = tomllib.loads(read("pyproject.toml"))["project"]["requires-python"]
    (looked_for,) = re.findall(r"for minor in (.*);", read(".ci/newer_python.sh"))
    runs = list(commands(workflow("tests")["jobs"]["make"]))
    for target in ("test", "test-slow"):
        first, second = (python for python, run in runs if run == f"make {target}")
        assert f">={first}" == oldest
        assert second in looked_for.split()
    pythons = {python for _, job in jobs() for python, _ in commands(job)}
    assert pythons == {first, second}
    assert (first, "make test-lowest") in runs


def test_actions_have_a_version():
    used = [
        step["uses"]
        for _, job in jobs()
        for step in job.get("steps", ())
        if "uses" in step
    ]
    assert used
    for action in used:
        assert re.search(r"@(v\d+|release/v\d+)$", action), action


def test_jobs_may_write_only_what_they_publish():
    may_write = {}
    for name in WORKFLOWS:
        assert workflow(name)["permissions"] == {"contents": "read"}
    for title, job in jobs():
        if "permissions" in job:
            may_write[title] = job["permissions"]
    assert may_write == {
        "docs/deploy": {"pages": "write", "id-token": "write"},
        "release/publish": {"id-token": "write"},
    }


def test_a_release_is_tested_built_and_published_without_a_token():
    release = workflow("release")
    assert release["on"] == {"release": {"types": ["published"]}}
    tests, build, publish = (release["jobs"][x] for x in ("tests", "build", "publish"))
    assert tests["uses"] == "./.github/workflows/tests.yml"
    assert "workflow_call" in workflow("tests")["on"]
    assert set(publish["needs"]) == {"tests", "build"}
    assert publish["environment"]["name"] == "pypi"
    assert publish["steps"][-1] == {"uses": "pypa/gh-action-pypi-publish@release/v1"}
    assert "secrets." not in read(".github/workflows/release.yml")
    # What is published is what was built and tested.
    given, taken = build["steps"][-1]["with"], publish["steps"][0]["with"]
    assert (given["name"], given["path"]) == (taken["name"], taken["path"])
    assert "make wheel" in [run for _, run in commands(build)]


def test_the_tag_of_a_release_is_compared_with_its_version(tmp_path):
    (check,) = (
        run
        for _, run in commands(workflow("release")["jobs"]["build"])
        if "GITHUB_REF_NAME" in run
    )
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "sparseopt_jax-1.2.3.tar.gz").touch()
    for tag, code in (("v1.2.3", 0), ("v1.2.4", 1), ("1.2", 1)):
        done = subprocess.run(
            ["bash", "-c", check],
            cwd=tmp_path,
            env={"GITHUB_REF_NAME": tag},
            check=False,
        )
        assert done.returncode == code, tag


def test_commits_are_checked_by_the_commands_of_make_lint():
    (repository,) = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    hooks = repository["hooks"]

    def tool(command):
        """Return the program and its subcommand: options differ."""
        return re.search(r"bin\)?/([\w-]+(?: (?:format|check))?)", command.lower())[1]

    assert [tool(hook["entry"]) for hook in hooks] == [tool(x) for x in recipe("lint")]
    assert [hook["name"] for hook in hooks] == [tool(hook["entry"]) for hook in hooks]
    assert re.search(r"^VENV \?= \.venv$", MAKEFILE, re.MULTILINE)
    for hook in hooks:
        assert hook["language"] == "system" and hook["entry"].startswith(".venv/bin/")


@pytest.mark.parametrize("name", ["bug_report", "method_request"])
def test_issue_forms_are_whole(name):
    form = yaml.safe_load(read(f".github/ISSUE_TEMPLATE/{name}.yml"))
    assert form["name"] and form["description"]
    for field in form["body"]:
        assert field["type"] in ("textarea", "input")
        assert field["attributes"]["label"]
    fields = [field["id"] for field in form["body"]]
    assert len(set(fields)) == len(fields)


CONTRIBUTING = read("CONTRIBUTING.md")


def test_contributors_are_told_of_the_rooms_there_are():
    (house,) = re.findall(r"```text\n(.*?)```", CONTRIBUTING, re.DOTALL)
    listed = re.findall(r"(?<= )(\w+)/", re.sub(r"; .*", "", house))
    package = ROOT / "sparseopt_jax"
    rooms = {path.parent.name for path in package.glob("*/__init__.py")}
    assert sorted(listed) == sorted(rooms)
    # In the order in which they may import each other.
    contract = read(".importlinter").split("layers =\n")[1].split("exhaustive")[0]
    order = {
        room: place
        for place, line in enumerate(contract.splitlines())
        for room in line.replace("|", " ").split()
    }
    places = [order[room] for room in listed]
    assert places == sorted(places)


def test_contributors_are_sent_to_files_that_exist():
    named = re.findall(r"`([\w.]+/[\w./]*)`", CONTRIBUTING)
    named += re.findall(r"\]\(([^:#)]+)(?:#[\w-]+)?\)", CONTRIBUTING)
    assert len(named) > 10
    rooms = [ROOT, ROOT / "sparseopt_jax"]
    missing = {
        path for path in named if not any((room / path).exists() for room in rooms)
    }
    # Created by `make docs` and `make test`.
    assert missing <= {"site/", ".compiled/"}
