"""Gradients in fp32, as a CPU without bf16 instructions computes them, against PEFT's own layers row by row."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from llmft_cli.base.reporter import Silent
from llmft_cli.models import loading, model_source
from llmft_cli.models.adapters import add_adapter
from llmft_cli.settings.config import Config, resolve
from llmft_cli.training.batches.collate import collate
from llmft_cli.training.fast.architectures import blocks_of, keep_dequantized
from llmft_cli.training.step.loss import loss_and_gradients
from llmft_cli.training.step.tuned_model import make_trainable

RELATIVE_ERROR = 1e-5
CPU = torch.device("cpu")


def packed_rows() -> list[dict[str, Any]]:
    """Three sequences of two rows each; a row's first token has no predictor."""
    generator = torch.Generator().manual_seed(7)
    sequences = []
    for lengths in ((9, 14), (21, 5), (12, 12)):
        rows = [torch.randint(3, 380, (length,), generator=generator).tolist() for length in lengths]
        labels = [[-100] * 4 + row[4:] for row in rows]
        joined = {"input_ids": list(chain(*rows)), "labels": list(chain(*labels))}
        sequences.append(joined | {"row_lengths": list(lengths)})
    return sequences


def base_of(model_dir: Path) -> Any:
    return loading.load_base(model_source.resolve(str(model_dir), Silent()), CPU, torch.float32, "nf4")


def with_updates(model: Any) -> Any:
    """Adapters as after some steps; at the start B is zero and A has no gradient."""
    generator = torch.Generator().manual_seed(5)
    for name, weights in model.named_parameters():
        if ".lora_" in name:
            weights.data = 0.05 * torch.randn(weights.shape, generator=generator)
    return model.train()


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: weights.grad for name, weights in model.named_parameters() if weights.grad is not None}


def of_peft(model_dir: Path, config: Config, sequences: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    model = with_updates(add_adapter(base_of(model_dir), config, "tiny"))
    supervised = sum(label != -100 for sequence in sequences for label in sequence["labels"])
    for sequence in sequences:
        start = 0
        for length in sequence["row_lengths"]:
            ids, labels = (torch.tensor([sequence[name][start : start + length]]) for name in ("input_ids", "labels"))
            logits = model(input_ids=ids).logits
            (cross_entropy(logits[0, :-1], labels[0, 1:], reduction="sum") / supervised).backward()
            start += length
    return gradients(model)


@pytest.mark.parametrize("fast", [True, False])
def test_every_lora_matrix_has_the_gradient_of_pefts_layers(tiny_model_dir: Path, fast: bool) -> None:
    config, sequences = resolve({"lora_r": 4, "fast": fast}), packed_rows()
    expected = of_peft(tiny_model_dir, config, sequences)
    model = with_updates(make_trainable(base_of(tiny_model_dir), config, "tiny"))
    if fast:
        keep_dequantized(model, True)
    assert bool(blocks_of(model)) is fast
    batch = collate(sequences)
    loss_and_gradients(model, batch, torch.tensor(float(len(batch["predicting"]))))
    found = gradients(model)
    assert len(found) == len(expected) == 2 * 7 * 2
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= RELATIVE_ERROR * gradient.norm(), name
