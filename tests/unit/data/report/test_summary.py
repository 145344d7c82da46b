from __future__ import annotations

from pathlib import Path

from llmft_cli.data.ingested import Rejections
from llmft_cli.data.reading.rows import BadRow
from llmft_cli.data.report.summary import length_figures, packing_figures, reasons


def test_length_figures() -> None:
    figures = length_figures([1, 2, 3, 4, 32])
    histogram = figures.pop("histogram")
    assert figures == {"min": 1, "median": 3, "mean": 8.4, "p95": 32, "max": 32}
    assert len(histogram) == 16
    assert histogram[:3] == [{"up_to": 2, "rows": 2}, {"up_to": 4, "rows": 2}, {"up_to": 6, "rows": 0}]
    assert histogram[-1] == {"up_to": 32, "rows": 1}


def test_packing_figures() -> None:
    assert packing_figures([6, 3, 1], 10) == {"rows": 1, "length": 10, "efficiency": 1.0}
    assert packing_figures([6, 5, 4], 10) == {"rows": 2, "length": 10, "efficiency": 0.75}
    assert packing_figures([6, 6], 10) == {"rows": 2, "length": 10, "efficiency": 0.6}


def test_reasons_come_commonest_first_with_three_places(tmp_path: Path) -> None:
    with Rejections(tmp_path) as rejections:
        rejections.add(BadRow("c", 9, "too long"), bad=False)
        rejections.add(BadRow("a", 1, "rare"), bad=True)
        for line in range(1, 6):
            rejections.add(BadRow("b", line, "common"), bad=True)
    assert reasons(rejections) == [
        {"reason": "common", "count": 5, "first": ["b:1", "b:2", "b:3"]},
        {"reason": "rare", "count": 1, "first": ["a:1"]},
    ]
    assert rejections.first == BadRow("a", 1, "rare")
    assert len((tmp_path / "rejected.jsonl").read_text().splitlines()) == 7


def test_reasons_beyond_a_thousand_are_counted_together(tmp_path: Path) -> None:
    with Rejections(tmp_path) as rejections:
        for line in range(1, 1004):
            rejections.add(BadRow("a", line, f"reason {line}"), bad=True)
    assert reasons(rejections)[0] == {"reason": "other reasons", "count": 3, "first": ["a:1001", "a:1002", "a:1003"]}
