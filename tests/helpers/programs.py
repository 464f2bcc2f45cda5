"""Run programs of the checkout, and read the files that they write."""

import json
import struct
import subprocess
import sys

from tensorboardX.proto import event_pb2

from tests.helpers.together import environment

# Files that a comparison of methods writes.
FILES = {"log.jsonl", "config.json", "results.json", "results.md", "figure.png"}


def command(module, *args):
    """Return the command that starts a module of the checkout."""
    return [sys.executable, "-W", "error", "-m", module, *args]


def help_of(module):
    """Return a program's help text."""
    return subprocess.run(
        command(module, "--help"),
        env=environment(1) | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def rows_of(path):
    """Return the rows of a file with one JSON object per line."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def log(output):
    """Return the rows of a comparison's log."""
    return rows_of(output / "log.jsonl")


def events(folder):
    """Return what TensorBoard shows: (step, tag, value) of every scalar."""
    found = []
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = event_pb2.Event.FromString(content[12 : 12 + length])
            if event.session_log.status == event_pb2.SessionLog.START:
                found = [point for point in found if point[0] < event.step]
            found += [
                (event.step, value.tag, value.simple_value)
                for value in event.summary.value
            ]
            content = content[16 + length :]
    return found
