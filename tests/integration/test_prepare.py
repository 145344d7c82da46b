"""`llmft prepare` as users type it: pipes, compressed files, several sources, --max-rejected, and --preview."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import SAMPLE_DATA, Run, files_in

FLAGS = ("--model", "tiny", "--max-seq-length", 64)


def rows(count: int) -> str:
    lines = [json.dumps({"prompt": f"{number} and {number}?", "completion": f"{2 * number}"}) for number in range(1, count + 1)]
    return "\n".join(lines) + "\n"


@pytest.fixture
def folder(tmp_path: Path, tiny_model_dir: Path) -> Path:
    shutil.copytree(tiny_model_dir, tmp_path / "tiny")
    (tmp_path / "rows.jsonl").write_text(rows(8))
    return tmp_path


@pytest.fixture
def prepare(run: Run, folder: Path) -> Callable[..., Any]:
    def do(*arguments: object, **options: Any) -> Any:
        return run("prepare", *FLAGS, *arguments, folder=folder, **options)

    return do


def data_of(run: Path) -> dict[str, str]:
    """Content hashes of everything prepare wrote, except the report, which names the sources."""
    files = {file.name: file for file in (run / "data").iterdir() if not file.name.startswith(("report", "samples"))}
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}


def test_standard_input_and_compressed_files_give_what_the_plain_file_gives(prepare: Any, folder: Path) -> None:
    (folder / "packed.jsonl.gz").write_bytes(gzip.compress(rows(8).encode()))
    assert prepare("rows.jsonl", "--run", "plain").returncode == 0
    assert prepare("packed.jsonl.gz", "--run", "packed").returncode == 0
    assert prepare("-", "--run", "piped", stdin=rows(8)).returncode == 0
    assert data_of(folder / "plain") == data_of(folder / "packed") == data_of(folder / "piped")
    ledger = json.loads((folder / "piped/run.json").read_text())["stages"]["prepare"]
    assert ledger["sources"] == ["-"]
    assert list(ledger["inputs"]) == ["stdin"]


def test_the_result_does_not_depend_on_the_number_of_cores(llmft: Run, folder: Path) -> None:
    (folder / "rows.jsonl").write_text(rows(3000))
    for run, threads in (("one", "1"), ("two", "2"), ("many", "7")):
        flags = (*FLAGS, "--run", run, "--val-size", 0.1)
        done = llmft("prepare", "rows.jsonl", *flags, folder=folder, RAYON_NUM_THREADS=threads)
        assert done.returncode == 0, done.stderr
    reports = [(folder / run / "data/report.html").read_bytes() for run in ("one", "two", "many")]
    assert reports[0] == reports[1] == reports[2]
    assert data_of(folder / "one") == data_of(folder / "two") == data_of(folder / "many")


def test_a_preview_shows_the_loss_mask(prepare: Any, folder: Path) -> None:
    done = prepare("rows.jsonl", "--run", "run", "--preview", 1)
    header, text = done.stdout.split("\n", 1)
    assert header.startswith("=== rows.jsonl:")
    assert "<|im_start|>assistant\n⟦" in text
    assert "<|im_end|>⟧" in text
    assert "supervised text is between ⟦ and ⟧" in done.stderr
    again = prepare("rows.jsonl", "--run", "run", "--preview", 2, "--json")
    samples = json.loads(again.stdout)["preview"]
    assert len(samples) == 2
    assert {segment["text"] for segment in samples[0]["segments"] if segment["special"]} == {"<|im_start|>", "<|im_end|>"}


def test_data_that_has_not_changed_is_not_prepared_again(prepare: Any, folder: Path) -> None:
    first = prepare("rows.jsonl", "--run", "run")
    written = (folder / "run/run.json").stat().st_mtime_ns
    again = prepare("rows.jsonl", "--run", "run")
    assert (again.returncode, again.stdout) == (0, first.stdout)
    assert again.stderr == "run is already prepared from the same data and settings: nothing to do\n"
    assert (folder / "run/run.json").stat().st_mtime_ns == written
    (folder / "rows.jsonl").write_text(rows(9))
    refused = prepare("rows.jsonl", "--run", "run")
    lines = ["error: run is already prepared from other data or settings", "hint: to redo it, add --overwrite"]
    assert (refused.returncode, refused.stderr.splitlines()) == (2, lines)
    assert prepare("rows.jsonl", "--run", "run", "--overwrite").returncode == 0


def test_the_gate(prepare: Any, folder: Path) -> None:
    (folder / "rows.jsonl").write_text(rows(99) + '{"prompt": "a"}\n')
    before = files_in(folder)
    refused = prepare("rows.jsonl", "--run", "run", "--max-rejected", "0.5%", "--json")
    error = json.loads(refused.stdout)["error"]
    assert (refused.returncode, error["kind"]) == (4, "data")
    assert error["message"].startswith("1 of 100 rows are bad, more than --max-rejected 0.005; first: rows.jsonl line 100: ")
    strict = prepare("rows.jsonl", "--run", "run", "--strict")
    lines = [
        "error: the checks found problems, and --strict is set: rejected 1",
        "hint: prepare without --strict and see data/report.html",
    ]
    assert (strict.returncode, strict.stderr.splitlines()) == (4, lines)
    assert files_in(folder) - before <= {"home"}
    kept = prepare("rows.jsonl", "--run", "run", "--max-rejected", "1%", "--json")
    assert json.loads(kept.stdout)["rows"]["kept"] == 99


def test_columns_under_other_names(prepare: Any, folder: Path) -> None:
    (folder / "table.tsv").write_text("frage\tantwort\nwarum?\tdarum\nwo?\tdort\n", encoding="utf-8")
    done = prepare("table.tsv", "--columns", "prompt=frage,completion=antwort", "--run", "run", "--json", "--val-size", 0)
    assert json.loads(done.stdout)["forms"] == {"prompt-completion": 2}
    refused = prepare("table.tsv", "--columns", "promt=frage", "--run", "other")
    assert refused.returncode == 2
    assert "prompt" in refused.stderr


def test_the_sample_documents_and_table_in_one_run(prepare: Any, folder: Path) -> None:
    flags = ("--weights", "1,2", "--run", "run", "--json", "--max-seq-length", 512)
    done = prepare(SAMPLE_DATA / "documents", SAMPLE_DATA / "alpaca.json", *flags)
    result = json.loads(done.stdout)
    assert [(source["kept"] > 0, source["weight"]) for source in result["sources"]] == [(True, 1.0), (True, 2.0)]
    assert set(result["forms"]) == {"text", "alpaca"}
