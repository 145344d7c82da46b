"""The loss mask on real rows, checked token by token against a slow reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from templates import STYLES, Style, one_row

from llmft_cli.data.forms.examples import Conversation
from llmft_cli.data.forms.formats import parse

from .test_encoder import brute_force_labels

# LLaMA-Factory's demonstration rows (Apache-2.0), if there is a copy next to the checkout.
ROWS = Path(__file__).parents[5] / "shared" / "data" / "alpaca_en_demo.json"


@pytest.mark.skipif(not ROWS.exists(), reason=f"{ROWS.name} is not beside the checkout")
@pytest.mark.parametrize("style", [style for style in STYLES if not style.rstrip], ids=lambda style: style.name)
def test_every_token_of_real_rows(style: Style, encoders: Any) -> None:
    """All rows once, distributed over the styles."""
    plain = [style for style in STYLES if not style.rstrip]
    encoder = encoders[style.name]
    rows = json.loads(ROWS.read_text(encoding="utf-8"))[plain.index(style) :: len(plain)]
    assert len(rows) > 100
    for row in rows:
        _, example = parse(row)
        assert isinstance(example, Conversation)
        encoded = one_row(encoder, example.messages)
        assert encoded.labels == brute_force_labels(encoder, example.messages, style, encoded.input_ids)
