"""Prepares files of damaged rows until enough of them were read, and says what became of them.

    python tests/fuzz/fuzz_prepare.py sample_data --lines 100000 --seed 0 --model smollm2-135m

Every file goes through the whole command, in this process. It must end with 0 or 4 and one JSON object; of what was
kept, ids, labels and special tokens are checked. A file that fails is written to --failures.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent))
from mutations import FORMS, SUFFIXES, compressed, content_of, damaged, mutated, pairs_of

from llmft_cli.cli import app
from llmft_cli.data import ingested, ingestion, store
from llmft_cli.data.encoding.encoder import ConversationEncoder
from llmft_cli.data.forms.examples import IGNORED, Conversation, Document
from llmft_cli.data.report.samples import decoder_steps

FORMATS = ["auto", "messages", "sharegpt", "alpaca", "prompt-completion", "question-answer", "text", "tokens"]
LINES = (".jsonl", ".ndjson", ".csv", ".tsv")
ROWS_IN_A_FILE = (1, 20, 50, 100)
VARIABLE = re.compile(r"'[^']*'|\"[^\"]*\"|\(\\u[0-9a-f]{4}\)|0x[0-9a-f]+|-?\d[\d.e+]*|\b(?:nan|inf)\b")


@dataclass
class Tally:
    """What became of the lines.

    Attributes:
        lines: in all files, those of files that are refused as a whole too.
        counts: what prepare counts: rows read, kept, rejected and so on.
        failures: what went wrong, by the name of the file.
    """

    files: int = 0
    lines: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    failures: dict[str, str] = field(default_factory=dict)


def fuzz(directory: Path, model: str, lines: int, seed: int, failures: Path) -> Tally:
    """Prepare files of damaged rows until so many rows were read.

    Args:
        directory: where the rows come from.
        failures: a folder for the files that fail.
    """
    tally = Tally()
    pairs = pairs_of(directory)
    with tempfile.TemporaryDirectory() as folder, watched() as watch:
        number = 0
        while tally.counts["read"] < lines:
            rng = random.Random(f"{seed}:{number}")
            file, rows = write_file(Path(folder), number, pairs, rng)
            arguments = arguments_of(file, Path(folder) / "run", model, rng)
            watch.clear()
            problem = outcome(arguments, Path(folder) / "run", tally) or next(iter(watch), None)
            if problem:
                shutil.copy(file, failures)
                tally.failures[f"{file.name}: {' '.join(arguments[2:])}"] = problem
            tally.files += 1
            tally.lines += rows
            shutil.rmtree(Path(folder) / "run", ignore_errors=True)
            file.unlink()
            number += 1
    return tally


def write_file(folder: Path, number: int, pairs: Sequence[tuple[str, str]], rng: random.Random) -> tuple[Path, int]:
    """A file of damaged rows, and their number."""
    suffix = rng.choice(SUFFIXES)
    count = rng.choice(ROWS_IN_A_FILE)
    # In a table, each row has the columns of all.
    forms = rng.sample(FORMS, 1 if suffix in (".csv", ".tsv", ".parquet", ".arrow") else 4)
    rows = [mutated(rng.choice(forms)(*rng.choice(pairs)), rng) for _ in range(count)]
    content = content_of(suffix, rows, rng)
    # A damaged array or table is refused as a whole.
    if rng.random() < (0.4 if suffix in LINES else 0.1):
        content = damaged(content, rng)
    packing = rng.choice(["", "", "", ".gz", ".zst"])
    if packing:
        content = compressed(content, packing)
        if rng.random() < 0.1:
            content = damaged(content, rng)
    path = folder / f"rows-{number}{suffix}{packing}"
    path.write_bytes(content)
    return path, count


def arguments_of(file: Path, run: Path, model: str, rng: random.Random) -> list[str]:
    """A command line that keeps whatever it can."""
    form = rng.choice(FORMATS) if rng.random() < 0.2 else "auto"
    length, policy = rng.choice(["64", "512", "4096", "4096"]), rng.choice(["drop", "truncate", "split"])
    options = ["--train-on", rng.choice(["assistant", "assistant", "last", "all"]), "--on-overlength", policy]
    if rng.random() < 0.05:
        options += ["--columns", rng.choice(["completion=chosen", "text=value", "prompt=a.b", "messages=chosen"])]
    if rng.random() < 0.5:
        options.append("--no-near-duplicates")
    options += ["--max-seq-length", length, "--max-rejected", "1", "--json"]
    return ["prepare", str(file), "--run", str(run), "--model", model, "--format", form, *options]


def outcome(arguments: Sequence[str], run: Path, tally: Tally) -> str:
    """Run the command; returns what is wrong with how it ended, or nothing."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    sys.argv = ["llmft", *arguments]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            app.main()
        except SystemExit as ended:
            code = ended.code
    for stream in (out, err):
        stream.flush()
    said, told = (stream.buffer.getvalue().decode() for stream in (out, err))  # type: ignore[attr-defined]
    try:
        answer = json.loads(said)
    except ValueError:
        return f"exit {code}, not one JSON object: {said[:500]}{told[-2000:]}"
    if code not in (0, 4) or "Traceback" in told:
        return f"exit {code}: {answer.get('error')}\n{told[-3000:]}"
    if code == 4:
        if found := re.search(r"\((\d+) read, (\d+) rejected, (\d+) too long\)", answer["error"]["message"]):
            tally.counts.update(dict(zip(("read", "rejected", "overlength"), map(int, found.groups()), strict=True)))
        tally.refusals[VARIABLE.sub("_", answer["error"]["message"].rpartition("/")[2])[:90]] += 1
        return ""
    tally.counts.update(answer["rows"])
    for line in (run / "data" / "rejected.jsonl").read_text(encoding="utf-8").split("\n")[:-1]:
        tally.reasons[VARIABLE.sub("_", json.loads(line)["reason"])[:70]] += 1
    return split_problem(run)


def split_problem(run: Path) -> str:
    """What is wrong with the rows on disk, or nothing."""
    for name in (store.TRAIN, store.VALIDATION):
        for row in store.load_split(run / "data", name) or ():
            ids, labels = row["input_ids"], row["labels"]
            if len(ids) != len(labels):
                return f"lengths differ: {row}"
            if labels[0] != IGNORED or set(labels) == {IGNORED}:
                return f"the first token is supervised, or none: {row}"
            if any(label not in (IGNORED, token) for label, token in zip(labels, ids, strict=True)):
                return f"a label is neither the id nor ignored: {row}"
    return ""


@contextlib.contextmanager
def watched() -> Iterator[list[str]]:
    """Look at every row that is kept; problems are added to the list."""
    problems: list[str] = []
    keep, ingest = ingested.IngestedRows.keep, ingestion.ingest_rows
    encoders: list[ConversationEncoder] = []

    def watching_ingest(ingested: Any, encoder: ConversationEncoder, *others: Any) -> None:
        encoders[:] = [encoder]
        ingest(ingested, encoder, *others)

    def watching_keep(self: Any, row: Any, part: Any) -> bool:
        if problem := row_problem(encoders[0], row, part):
            problems.append(f"{row.source}:{row.line}: {problem}")
        return keep(self, row, part)

    with (
        mock.patch.object(ingested.IngestedRows, "keep", watching_keep),
        mock.patch("llmft_cli.data.prepare.ingest_rows", watching_ingest),
    ):
        yield problems


def row_problem(encoder: ConversationEncoder, row: Any, part: Any) -> str:
    """What is wrong with a kept row, or nothing."""
    ids, tokenizer = part.encoded.input_ids, encoder.tokenizer
    if not ids or min(ids) < 0 or max(ids) >= len(tokenizer):
        return f"ids outside the vocabulary: {ids}"
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    found = [token for token in ids if token in special]
    if isinstance(row.example, Document):
        allowed = [token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None]
        return "" if str(found)[1:-1] in str(allowed) and len(found) <= 2 else f"special tokens in a text: {found}"
    if part.has_example and row.rendered and decoder_steps(tokenizer) == ["ByteLevel"]:
        text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        if not any(text.strip("\ufffd") in rendered.text for rendered in row.rendered.rows) and isinstance(
            row.example, Conversation
        ):
            return f"the ids are of another text: {text}"
    if isinstance(row.example, Conversation) and not row.example.tools:
        messages = [{"role": message["role"], "content": "x"} for message in row.example.messages]
        clean = encoder.tokenise([encoder.rows(Conversation(messages, trained=row.example.trained)).rows[-1]])[0].ids
        allowed = [token for token in clean if token in special]
        return "" if str(found)[1:-1] in str(allowed)[1:-1] else f"special tokens {found}, expected {allowed}"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", type=Path, default=Path(__file__).parents[2] / "sample_data")
    parser.add_argument("--model", default="smollm2-135m", help="whose tokenizer is used")
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--failures", type=Path, default=Path("fuzz-failures"))
    given = parser.parse_args()
    given.failures.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    tally = fuzz(given.directory, given.model, given.lines, given.seed, given.failures)
    counts = ", ".join(f"{name} {count}" for name, count in tally.counts.items())
    print(f"{tally.lines} lines in {tally.files} files, {time.monotonic() - start:.0f} s: {counts}")
    for title, counts in (("rejected rows", tally.reasons), ("refused files", tally.refusals)):
        print(f"\n{title}: {counts.total()}")
        for reason, count in counts.most_common():
            print(f"{count:8} {reason}")
    print(f"\nfailures: {len(tally.failures)}")
    for name, problem in tally.failures.items():
        print(f"- {name}\n{problem}")
    sys.exit(bool(tally.failures))


if __name__ == "__main__":
    main()
