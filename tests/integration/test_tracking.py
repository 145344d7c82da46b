"""train --report-to: never a prompt, offline where the server cannot be had, no secret in a file, and no end of a training."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest

from .conftest import TRAIN_FLAGS, Run

KEY = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_ThisIsNoRealTokenButLooksLikeOne"
OFFLINE = "W&B is not logged in or not reachable; the run was saved offline. To sync: wandb sync "
NOWHERE = "http://127.0.0.1:9"
NARRATION = ("loading ", "recipe: ", "fused layers ", "before training: ", "training ", "step ", "warning: W&B ")


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


@pytest.mark.parametrize("variable", [{"WANDB_MODE": "disabled"}, {"WANDB_DISABLED": "true"}])
def test_what_is_turned_off_writes_nothing(variable: dict[str, str], prepared_copy: Path, run: Run) -> None:
    """It left an offline run."""
    done, _ = train(run, prepared_copy, **variable)
    assert not (prepared_copy / "wandb").exists()
    assert "trackers" not in json.loads((prepared_copy / "run.json").read_text())["stages"]["train"]
    assert "W&B is turned off by the environment" in done.stderr


def test_a_resumed_training_continues_its_run(prepared_copy: Path, start, run: Run) -> None:
    """It began a second run."""
    flags = (*TRAIN_FLAGS, "--report-to", "wandb")
    begun = start("train", "run", *flags, folder=prepared_copy.parent, halt_at="step 10: held-out loss")
    begun.wait_for_halt()
    begun.interrupt()
    assert begun.finish().returncode == 130
    done = run("train", "run", "--resume", folder=prepared_copy.parent)
    assert done.returncode == 0, done.stderr
    name = json.loads((prepared_copy / "run.json").read_text())["stages"]["train"]["trackers"]["wandb"]
    parts = sorted((prepared_copy / "wandb").glob("offline-run-*"))
    assert len(parts) == 2
    assert {part.name.rpartition("-")[2] for part in parts} == {name}
    assert done.stderr.splitlines()[-1] == f"{OFFLINE}{parts[0]} {parts[1]}"


def test_a_tracker_that_is_not_installed_is_told_before_the_model_is_loaded(prepared_copy: Path, run: Run) -> None:
    if find_spec("trackio"):
        pytest.skip("it is installed")
    done = run("train", "run", *TRAIN_FLAGS, "--report-to", "wandb,trackio", folder=prepared_copy.parent)
    assert done.returncode == 3
    assert done.stderr.splitlines() == [
        "error: --report-to trackio: trackio is not installed",
        "hint: pip install trackio, or omit it from --report-to",
    ]


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "trackio"])
def test_other_trackers_keep_their_files_in_the_run(name: str, prepared_copy: Path, run: Run) -> None:
    pytest.importorskip(name)
    done = run("train", "run", *TRAIN_FLAGS, "--report-to", name, "--json", folder=prepared_copy.parent)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ok"] is True
    assert done.stderr == ""
    assert list((prepared_copy / name).iterdir())
    assert {path.name for path in prepared_copy.parent.iterdir()} == {"run"}
