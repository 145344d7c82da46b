"""The chat templates under test; makes the helper modules in this folder importable."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from llmft_cli.data.encoding.encoder import ConversationEncoder

sys.path.insert(0, str(Path(__file__).parent))
from templates import STYLES, tokenizer_for


@pytest.fixture(scope="session")
def encoders(tiny_tokenizer: Any) -> dict[str, ConversationEncoder]:
    return {style.name: ConversationEncoder(tokenizer_for(style, tiny_tokenizer), rows_per_answer="off") for style in STYLES}


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A model directory without weights: prepare needs none."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


@pytest.fixture(scope="session")
def tokenizers(tiny_tokenizer: Any) -> dict[str, Any]:
    """By name, the tiny tokenizer with each public template and its tokens; needs trl."""
    from public_templates import TEMPLATES, tokenizer_with

    return {template.name: tokenizer_with(template, tiny_tokenizer) for template in TEMPLATES}
