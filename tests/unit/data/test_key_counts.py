from __future__ import annotations

import pytest

from llmft_cli.data import key_counts
from llmft_cli.data.key_counts import KeyCounts, is_harmless


def test_keys_are_counted_and_harmless_ones_come_last() -> None:
    counts = KeyCounts()
    for _ in range(3):
        counts.add(("id", "score"))
    counts.add(("title", "messages[].name"))
    counts.add(("title",))
    assert counts.figures() == [
        {"key": "score", "rows": 3, "harmless": False},
        {"key": "title", "rows": 2, "harmless": False},
        {"key": "id", "rows": 3, "harmless": True},
        {"key": "messages[].name", "rows": 1, "harmless": True},
    ]


def test_the_number_of_keys_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_counts, "MOST_KEYS", 2)
    counts = KeyCounts()
    counts.add(("a",))
    counts.add(("a", "b", "c", "d"))
    counts.add(("b", "c"))
    assert [(item["key"], item["rows"]) for item in counts.figures()] == [("a", 2), ("b", 2), ("other keys", 2)]


@pytest.mark.parametrize(
    ("key", "harmless"),
    [("id", True), ("Source", True), ("prompt_id", True), ("messages[].model", True), ("image_id", False), ("score", False)],
)
def test_harmless_keys(key: str, harmless: bool) -> None:
    assert is_harmless(key) is harmless
