"""The data report as an HTML page: row counts, check results, and sample rows with their loss mask."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmft_cli.base import html_pages
from llmft_cli.data.checks import LEVELS
from llmft_cli.data.report.samples import Sample
from llmft_cli.settings.quantities import format_count

MOST_TICKS = 5
MOST_KEYS = 50
# A limit further away would squeeze the bars into the left of the chart, so it is not drawn.
LIMIT_WITHIN = 1.5


@dataclass(frozen=True)
class Bar:
    """A bar of the histogram, in percent of the chart."""

    x: float
    width: float
    height: float
    label: str


@dataclass(frozen=True)
class Tick:
    """A value on an axis, and its position in percent of the chart."""

    place: float
    label: str


@dataclass(frozen=True)
class Chart:
    """The histogram of row lengths; `limit` is the position of the maximum length, if near enough to show."""

    bars: list[Bar]
    lengths: list[Tick]
    counts: list[Tick]
    limit: float | None


def write_report(path: Path, report: Mapping[str, Any], samples: Sequence[Sample], model: str) -> None:
    """Write the report as a self-contained page.

    Args:
        report: the content of report.json, with `seed` and, if known, `max_seq_length`.
    """
    functions: list[Callable[..., Any]] = [figure, percent, format_count, title_of, script_hash]
    template = html_pages.template("llmft_cli.data.report", "report.html.jinja", functions)
    page = template.render(
        report=report,
        samples=samples,
        model=model,
        verdict=verdict(report),
        groups=checks_by_level(report["checks"]),
        outcomes=outcomes(report),
        chart=chart(report["lengths"]["histogram"], report.get("max_seq_length")),
        most_keys=MOST_KEYS,
        weighted=any(source["weight"] != 1 for source in report["sources"]),
    )
    path.write_text(page, encoding="utf-8")


def checks_by_level(checks: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The checks that found something, by level (errors first), then by count."""
    found = sorted((check for check in checks if check["count"]), key=lambda check: -check["count"])
    groups = {level: [check for check in found if check["level"] == level] for level in LEVELS}
    return {level: group for level, group in groups.items() if group}


def verdict(report: Mapping[str, Any]) -> dict[str, str]:
    """The report in a word and a sentence, and its level: error, warning or ready."""
    groups = checks_by_level(report["checks"])
    findings = [format_count(len(groups[level]), level) for level in ("error", "warning") if level in groups]
    tokens = report["tokens"]
    rows = format_count(report["rows"]["kept"], "row")
    sentence = (
        f"{rows} with {format_count(tokens['total'], 'token')}, of which the model learns to write "
        f"{percent(tokens['supervised'], tokens['total'])}."
    )
    level = next((level for level in ("error", "warning") if level in groups), "ready")
    return {"level": level, "word": " and ".join(findings) if findings else "Ready to train", "sentence": sentence}


def outcomes(report: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Counts of rows by outcome, without zeros."""
    rows = report["rows"]
    policy = report["overlength"]["policy"]
    dropped = 0 if policy == "drop" else report["overlength"].get("dropped", 0)
    overlength = {
        "drop": "too long, dropped",
        "truncate": "too long, truncated",
        "split": "too long, split",
        "error": "too long",
    }[policy]
    all_outcomes = [
        ("read", rows["read"]),
        ("kept", rows["kept"]),
        ("rejected", rows["rejected"]),
        ("exact duplicates, dropped", rows["duplicates"]),
        ("near-duplicates, kept on the same side of the split", rows["near_duplicates"]),
        (overlength, rows["overlength"] - dropped),
        ("too long, dropped without an answer left", dropped),
        ("documents split into several rows", report["documents_split"]),
        ("conversations whose answers have rows of their own", report["answer_rows"].get("conversations", 0)),
    ]
    return [(outcome, count) for outcome, count in all_outcomes if count]


def chart(histogram: Sequence[Mapping[str, int]], limit: int | None) -> Chart:
    """The histogram in a chart of 100 by 100.

    Args:
        limit: the maximum row length.
    """
    longest = histogram[-1]["up_to"]
    shows_limit = limit is not None and limit <= LIMIT_WITHIN * longest
    width = max(longest, limit) if shows_limit and limit is not None else longest
    counts = ticks(max(item["rows"] for item in histogram))
    height = counts[-1]
    bars = []
    start = 0
    for item in histogram:
        label = f"{start + 1:,} to {item['up_to']:,} tokens: {format_count(item['rows'], 'row')}"
        place = Bar(100 * start / width, 100 * (item["up_to"] - start) / width, 100 * item["rows"] / height, label)
        bars.append(place)
        start = item["up_to"]
    return Chart(
        bars=bars,
        lengths=[Tick(100 * value / width, figure(value)) for value in ticks(width) if value <= width],
        counts=[Tick(100 - 100 * value / height, figure(value)) for value in counts],
        limit=100 * limit / width if shows_limit and limit is not None else None,
    )


def ticks(most: int) -> list[int]:
    """A few evenly spaced round numbers from 0 to at least `most`."""
    step = 1
    while -(-most // step) > MOST_TICKS:
        # 1, 2, 5, 10, 20, 50 and so on
        step = step * 5 // 2 if str(step)[0] == "2" else step * 2
    return list(range(0, most + step, step)) if most % step else list(range(0, most + 1, step))


def figure(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}".removesuffix(".0")


def percent(part: float, whole: float) -> str:
    return f"{part / whole:.1%}"


def title_of(check: str) -> str:
    """A check's name in words."""
    return check.replace("_", " ")


def script_hash(script: str) -> str:
    """The hash that allows a script in the content security policy."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"sha256-{digest}"
