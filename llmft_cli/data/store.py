"""The prepared data on disk: Arrow splits of sequences, and the held-out rows as prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmft_cli.data.formats import Example
from llmft_cli.data.rendering import IGNORED, Encoded

if TYPE_CHECKING:
    import datasets

TRAIN, VALIDATION = "train", "validation"
HELD_OUT_FILE = "held_out.jsonl"
REJECTED_FILE = "rejected.jsonl"
REPORT_FILE = "report.json"


@dataclass(frozen=True)
class PreparedRow:
    """One row ready for training, and where it came from."""

    source: str
    line: int
    example: Example
    encoded: Encoded

    @property
    def length(self) -> int:
        return len(self.encoded.input_ids)


def write_split(folder: Path, rows: Sequence[PreparedRow], sequences: Sequence[Sequence[int]]) -> None:
    """Write sequences of rows as an Arrow dataset with input_ids, labels and the lengths of the rows in each."""
    import datasets

    def joined(kind: str) -> list[list[int]]:
        return [[token for row in sequence for token in getattr(rows[row].encoded, kind)] for sequence in sequences]

    lengths = [[rows[row].length for row in sequence] for sequence in sequences]
    columns = {"input_ids": joined("input_ids"), "labels": joined("labels"), "row_lengths": lengths}
    features = datasets.Features({name: datasets.List(datasets.Value("int32")) for name in columns})
    dataset = datasets.Dataset.from_dict(columns, features=features)
    dataset.save_to_disk(folder)


def load_split(data: Path, split: str) -> datasets.Dataset | None:
    """A split of a run's data, or None where it has no rows."""
    import datasets

    folder = data / split
    return datasets.load_from_disk(str(folder)) if folder.exists() else None


def write_json_lines(path: Path, values: Sequence[Any]) -> None:
    # A file name that is not UTF-8 holds lone surrogates, which backslashes turn into JSON's own spelling of them.
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for value in values:
            file.write(json.dumps(value, ensure_ascii=False) + "\n")


def supervised_count(encoded: Encoded) -> int:
    return sum(label != IGNORED for label in encoded.labels)
