"""Two thousand damaged rows through the whole of prepare; tests/fuzz/fuzz_prepare.py tries as many as one likes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]
sys.path.insert(0, str(TESTS / "fuzz"))
from fuzz_prepare import fuzz  # noqa: E402


@pytest.mark.slow
def test_damaged_rows_are_rejected_or_kept_as_they_should_be(
    tokenizer_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["llmft"])
    tally = fuzz(TESTS.parent / "sample_data", str(tokenizer_dir), lines=2000, seed=1, failures=tmp_path)
    assert tally.failures == {}
    assert min(tally.counts["kept"], tally.counts["rejected"]) > 200
    assert len(tally.reasons) > 20
