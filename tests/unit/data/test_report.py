from __future__ import annotations

from llmft_cli.data.report import length_figures, packing_figures, reasons
from llmft_cli.data.rows import BadRow


def test_length_figures() -> None:
    figures = length_figures([1, 2, 3, 4, 32])
    histogram = figures.pop("histogram")
    assert figures == {"min": 1, "median": 3, "mean": 8.4, "p95": 32, "max": 32}
    assert len(histogram) == 16
    assert histogram[:3] == [{"up_to": 2, "rows": 2}, {"up_to": 4, "rows": 2}, {"up_to": 6, "rows": 0}]
    assert histogram[-1] == {"up_to": 32, "rows": 1}


def test_packing_figures() -> None:
    assert packing_figures([6, 3, 1], [[0, 1], [2]], 10) == {"rows": 2, "efficiency": 0.5}
    assert packing_figures([6, 3], [[0], [1]], 10) == {"rows": 2, "efficiency": 1.0}


def test_reasons_come_commonest_first_with_three_places() -> None:
    rejected = [BadRow("a", 1, "rare"), *(BadRow("b", line, "common") for line in range(1, 6))]
    assert reasons(rejected) == [
        {"reason": "common", "count": 5, "first": ["b:1", "b:2", "b:3"]},
        {"reason": "rare", "count": 1, "first": ["a:1"]},
    ]
