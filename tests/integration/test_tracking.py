"""train --report-to wandb: never a prompt, offline where the server cannot be had, and no secret in a file."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from .conftest import TRAIN_FLAGS, Run

KEY = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_ThisIsNoRealTokenButLooksLikeOne"
OFFLINE = "W&B is not logged in or not reachable; the run was saved offline. To sync: wandb sync "
NOWHERE = "http://127.0.0.1:9"
NARRATION = ("loading ", "fused layers ", "training ", "step ", "warning: W&B ")


class Refusing(BaseHTTPRequestHandler):
    """A W&B server that is there and takes no key."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(401)
        self.end_headers()

    def log_message(self, *arguments: object) -> None: ...


@pytest.fixture
def refusing_server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def train(run: Run, place: Path, *more: object, **environment: str):
    started = time.monotonic()
    variables = {"HF_TOKEN": TOKEN, "NO_PROXY": "127.0.0.1"} | environment
    done = run("train", "run", *TRAIN_FLAGS, "--report-to", "wandb", *more, folder=place.parent, **variables)
    assert done.returncode == 0, done.stderr
    return done, time.monotonic() - started


def tracked_folder(stderr: str, place: Path) -> Path:
    """The folder that the only unusual line on stderr says to sync."""
    told = [line for line in stderr.splitlines() if not line.startswith(NARRATION)]
    assert [line[: len(OFFLINE)] for line in told] == [OFFLINE]
    folder = place.parent / told[0].removeprefix(OFFLINE)
    assert folder.is_dir()
    assert folder.parent == place / "wandb"
    return folder


def content(folder: Path) -> bytes:
    (file,) = folder.glob("run-*.wandb")
    return file.read_bytes()


def check_no_secret(place: Path, *secrets: str) -> None:
    for file in place.parent.rglob("*"):
        if file.is_file():
            found = file.read_bytes()
            assert not [secret for secret in secrets if secret.encode() in found], file


def test_without_login(prepared_copy: Path, run: Run) -> None:
    done, _ = train(run, prepared_copy)
    assert done.stdout.splitlines()[0] == "Trained run"
    logged = content(tracked_folder(done.stderr, prepared_copy))
    assert b"llm-fine-tuning" in logged
    rows = [json.loads(line) for line in (prepared_copy / "metrics.jsonl").read_text().splitlines()]
    assert b"train/loss" in logged
    for name in ("loss", "eval_loss"):
        for value in (row[name] for row in rows if name in row):
            assert json.dumps(value).encode() in logged, (name, value)
    check_no_secret(prepared_copy, TOKEN)


def test_a_key_and_no_network(prepared_copy: Path, run: Run) -> None:
    flags = ("--wandb-project", "other-project", "--json")
    done, seconds = train(run, prepared_copy, *flags, WANDB_API_KEY=KEY, WANDB_BASE_URL=NOWHERE)
    assert seconds < 80  # W&B by itself tries for 90
    assert json.loads(done.stdout)["ok"] is True
    assert done.stderr == ""
    (folder,) = (prepared_copy / "wandb").glob("offline-run-*")
    assert b"other-project" in content(folder)
    assert b"llm-fine-tuning" not in content(folder)
    check_no_secret(prepared_copy, KEY, TOKEN)


@pytest.mark.parametrize(("key", "reason"), [(KEY, "CommError"), ("too-short", "AuthenticationError: WANDB_API_KEY invalid")])
def test_a_key_that_is_refused(key: str, reason: str, refusing_server: str, prepared_copy: Path, run: Run) -> None:
    """Even where HF_HUB_OFFLINE forbids the Hub: W&B is another matter."""
    done, _ = train(run, prepared_copy, WANDB_API_KEY=key, WANDB_BASE_URL=refusing_server)
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"warning: W&B could not start the run online ({reason}")
    tracked_folder(done.stderr, prepared_copy)
    assert key not in done.stdout + done.stderr
    check_no_secret(prepared_copy, key, TOKEN)
