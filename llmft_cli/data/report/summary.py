"""The result of prepare: counts, lengths, and what was left out and why."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmft_cli.base.file_checks import read_json
from llmft_cli.data.packing import pack
from llmft_cli.run_dir.artifacts import reading
from llmft_cli.run_dir.run import RunDir

if TYPE_CHECKING:
    from llmft_cli.data.checks import Finding
    from llmft_cli.data.encoding.encoder import ConversationEncoder
    from llmft_cli.data.ingested import IngestedRows, Rejections
    from llmft_cli.data.splitting import Split
    from llmft_cli.settings.config import Config

HISTOGRAM_BINS = 16


@dataclass(frozen=True)
class PrepareResult:
    """What `prepare --json` prints and `report.json` holds.

    Attributes:
        rows: read, kept, rejected, duplicates, overlength, near_duplicates.
        tokens: total and supervised, of the kept rows.
        splits: rows in train and validation.
        packing: if the training rows are packed: the number of sequences (`rows`), the tokens that each has room for
            (`length`), and the used share of them (`efficiency`).
        lengths: tokens of the kept rows: min, median, mean, p95, max, and a histogram of (up to, rows).
        forms: rows by format.
        documents_split: documents too long for one sequence, which became several rows.
        answer_rows: the policy (`--rows-per-answer`), the conversations with several rows, and these rows.
        rejected_reasons: reason, count and the first places.
        sources: name, rows read, kept and rejected, and weight of each.
        overlength: the policy, the rows that it applied to and dropped, and the tokens and ends of turn lost.
        checks: check, level (error, warning, note), count, meaning and examples (source, line, excerpt).
        template: hash of the chat template, and its end of turn.
        ignored_keys: key that its format does not read, rows with a value for it, and whether it is harmless.
    """

    rows: dict[str, int]
    tokens: dict[str, int]
    splits: dict[str, int]
    packing: dict[str, Any]
    lengths: dict[str, Any]
    forms: dict[str, int]
    documents_split: int
    rejected_reasons: list[dict[str, Any]]
    sources: list[dict[str, Any]] = field(default_factory=list)
    overlength: dict[str, Any] = field(default_factory=dict)
    answer_rows: dict[str, Any] = field(default_factory=dict)
    checks: list[dict[str, Any]] = field(default_factory=list)
    template: dict[str, Any] = field(default_factory=dict)
    ignored_keys: list[dict[str, Any]] = field(default_factory=list)


def length_figures(lengths: Sequence[int]) -> dict[str, Any]:
    """Statistics of row lengths in tokens, and a histogram of equal bins from 0 to the longest."""
    ordered = sorted(lengths)
    width = -(-ordered[-1] // HISTOGRAM_BINS)
    bins = Counter((length - 1) // width for length in ordered)
    return {
        "min": ordered[0],
        "median": statistics.median(ordered),
        "mean": round(statistics.fmean(ordered), 1),
        "p95": ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))],
        "max": ordered[-1],
        "histogram": [{"up_to": (index + 1) * width, "rows": bins[index]} for index in range(HISTOGRAM_BINS)],
    }


def packing_figures(lengths: Sequence[int], capacity: int) -> dict[str, Any]:
    """How many sequences of `capacity` tokens rows of these lengths can be packed into, and the used share of them."""
    sequences = len(pack(lengths, capacity))
    return {"rows": sequences, "length": capacity, "efficiency": round(sum(lengths) / (capacity * sequences), 4)}


def reasons(rejections: Rejections) -> list[dict[str, Any]]:
    """Rejected rows by reason, most common first."""
    return [
        {"reason": reason, "count": count, "first": rejections.places[reason]}
        for reason, count in rejections.reasons.most_common()
    ]


def summarise(
    ingested: IngestedRows,
    encoder: ConversationEncoder,
    split: Split,
    train: Sequence[int],
    findings: Sequence[Finding],
    config: Config,
) -> PrepareResult:
    """The result of prepare.

    Args:
        train: the training rows, repeated by weight.
    """
    spool = ingested.spool
    near_duplicates = next((finding.count for finding in findings if finding.check == "near_duplicates"), 0)
    return PrepareResult(
        rows={
            "read": ingested.read,
            "kept": ingested.kept,
            "rejected": ingested.bad,
            "duplicates": ingested.duplicates,
            "overlength": ingested.losses.rows,
            "near_duplicates": near_duplicates,
        },
        tokens={"total": sum(spool.lengths), "supervised": sum(spool.supervised)},
        splits={"train": len(split.train), "validation": len(split.validation)},
        packing=packing_figures([spool.lengths[row] for row in train], config.max_seq_length),
        lengths=length_figures(spool.lengths),
        forms=dict(ingested.forms),
        documents_split=ingested.split_documents,
        answer_rows={"policy": config.rows_per_answer, **asdict(ingested.answer_rows)},
        rejected_reasons=reasons(ingested.rejections),
        sources=[
            {"name": item.name, "read": item.read, "kept": item.kept, "rejected": item.rejected, "weight": item.weight}
            for item in ingested.inputs
        ],
        overlength={"policy": config.on_overlength, **asdict(ingested.losses)},
        checks=[asdict(finding) for finding in findings],
        template=template_facts(encoder),
        ignored_keys=ingested.ignored_keys.figures(),
    )


def template_facts(encoder: ConversationEncoder) -> dict[str, Any]:
    """The chat template's hash, and the token that ends an answer; empty if the model has no template."""
    template = encoder.tokenizer.chat_template
    if not template:
        return {}
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    end = encoder.end_of_turn()
    return {
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "end_of_turn": None if end is None else encoder.tokenizer.convert_ids_to_tokens(end),
    }


def read_result(file: Path) -> PrepareResult:
    """The result written by an earlier prepare.

    Args:
        file: in the data of a run.

    Raises:
        StageError: it is missing or damaged.
    """
    with reading(RunDir(file.parent.parent), file):
        return PrepareResult(**read_json(file))
