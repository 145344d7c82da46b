"""What prepare tells of the data: counts, lengths, what was left out and why."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llmft_cli.data.store import PreparedRow, supervised_count

HISTOGRAM_BINS = 16
EXAMPLES_PER_REASON = 3


@dataclass(frozen=True)
class PrepareResult:
    """What `prepare --json` prints and `report.json` holds.

    Attributes:
        rows: read, kept, rejected, duplicates, overlength.
        tokens: total and supervised, of the kept rows.
        splits: rows in train and validation.
        packing: sequences the training rows were packed into (`rows`), and the share of their room that is used (`efficiency`).
        lengths: tokens of the kept rows: min, median, mean, p95, max, and a histogram of (up to, rows).
        forms: rows by form.
        documents_split: raw texts that did not fit one sequence and became several rows.
        rejected_reasons: reason, count and the first places.
        sources: name, rows read, kept and rejected, and weight of each.
        overlength: the policy, and the rows, tokens and ends of turn lost to it.
        checks: check, level (error, warning, note), count, meaning and examples (source, line, excerpt).
        template: hash of the chat template, and its end of turn.
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
    checks: list[dict[str, Any]] = field(default_factory=list)
    template: dict[str, Any] = field(default_factory=dict)


def length_figures(lengths: Sequence[int]) -> dict[str, Any]:
    """Quantiles of row lengths in tokens, and a histogram of equal bins from 0 to the longest."""
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


def token_figures(rows: Sequence[PreparedRow]) -> dict[str, int]:
    return {"total": sum(row.length for row in rows), "supervised": sum(supervised_count(row.encoded) for row in rows)}


def packing_figures(lengths: Sequence[int], sequences: Sequence[Sequence[int]], capacity: int) -> dict[str, Any]:
    """Used share of the sequences' room; without packing a sequence is as long as its row, so nothing is wasted."""
    packed = any(len(sequence) > 1 for sequence in sequences)
    room = capacity * len(sequences) if packed else sum(lengths)
    return {"rows": len(sequences), "efficiency": round(sum(lengths) / room, 4)}


def reasons(rejected: Sequence[Any]) -> list[dict[str, Any]]:
    """Rejected rows by reason, the commonest first."""
    groups: dict[str, list[str]] = {}
    for row in rejected:
        groups.setdefault(row.reason, []).append(f"{row.source}:{row.line}")
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    return [{"reason": reason, "count": len(places), "first": places[:EXAMPLES_PER_REASON]} for reason, places in ordered]
