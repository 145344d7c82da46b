"""The loss of chunks against torch's own over all logits at once."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llmft_cli.base.reporter import Silent
from llmft_cli.data.forms.examples import IGNORED
from llmft_cli.models import loading, model_source
from llmft_cli.models.adapters import add_adapter
from llmft_cli.settings.config import resolve
from llmft_cli.training.batches.collate import collate
from llmft_cli.training.step import loss

ROW = {"input_ids": [*range(11, 31)], "labels": [IGNORED] * 5 + [*range(16, 31)], "row_lengths": [20]}
SHORT = {"input_ids": [*range(41, 51)], "labels": [IGNORED] * 2 + [*range(43, 51)], "row_lengths": [10]}


def tiny(tiny_model_dir, **config):
    torch.manual_seed(0)
    model = loading.load_base(model_source.resolve(str(tiny_model_dir), Silent()), torch.device("cpu"), dtype=torch.float32)
    for name, value in config.items():
        setattr(model.config, name, value)
    return add_adapter(model, resolve({}), "tiny").train()


def reference(model, sequences, capped=None):
    total = 0
    for sequence in sequences:
        logits = model(input_ids=torch.tensor([sequence["input_ids"]])).logits[0, :-1]
        total = total + torch.nn.functional.cross_entropy(logits, torch.tensor(sequence["labels"][1:]), reduction="sum")
    return total


def gradients(model, value):
    model.zero_grad()
    value.backward()
    return torch.cat([weights.grad.flatten() for weights in model.parameters() if weights.requires_grad])


@pytest.mark.parametrize("rows", [1, 4, 1000])
def test_chunks_have_the_loss_and_gradient_of_the_whole(tiny_model_dir, monkeypatch, rows):
    model = tiny(tiny_model_dir)
    monkeypatch.setattr(loss, "LOGITS_PER_CHUNK", rows * model.config.vocab_size)
    expected = reference(model, [ROW, SHORT])
    found = loss.summed_loss(model, collate([ROW, SHORT]))
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    wanted = gradients(model, expected / 23)
    assert (gradients(model, found / 23) - wanted).norm() <= 1e-5 * wanted.norm()


@pytest.mark.parametrize("way", ["chunked", "output layer alone"])
def test_division_by_the_tokens_does_not_round_all_gradients_alike(way):
    """1/3 was once rounded to the hidden states' 16 bits, so all gradients of a step were 0.2% too long."""
    torch.manual_seed(0)
    weight = torch.randn(128, 64, dtype=torch.bfloat16)
    hidden = torch.randn(1000, 64, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.randint(128, (1000,))
    if way == "chunked":
        total = loss.ChunkedLoss.apply(hidden, targets, lambda rows: rows @ weight.t(), 128)
    else:
        total = loss.output_loss(hidden, torch.arange(1000), targets, weight)
    (total / 3).backward()
    exact = hidden.detach().double().requires_grad_(True)
    (torch.nn.functional.cross_entropy(exact @ weight.double().t(), targets, reduction="sum") / 3).backward()
    along = (hidden.grad.double() * exact.grad).sum() / exact.grad.square().sum()
    assert along.item() == pytest.approx(1, abs=5e-4)


@pytest.mark.parametrize("wanted", [True, False])
def test_an_evaluation_computes_no_gradient(wanted):
    """For held-out rows it was once computed and discarded: a second product with the output layer."""
    hidden, weight = torch.randn(40, 64, requires_grad=wanted), torch.randn(128, 64)
    with FlopCounterMode(display=False) as counted:
        loss.output_loss(hidden, torch.arange(30), torch.randint(128, (30,)), weight)
    assert counted.get_total_flops() == (1 + wanted) * 2 * 30 * 64 * 128


def test_through_the_models_own_forward_it_is_the_same(tiny_model_dir):
    """As in runs under autocast, and in runs that train the output layer."""
    model = tiny(tiny_model_dir)
    chunked = loss.summed_loss(model, collate([ROW]))
    assert loss.summed_loss(model, collate([ROW]), forward=model).item() == pytest.approx(chunked.item(), rel=1e-6)
    model.get_output_embeddings().weight.requires_grad_(True)
    whole = loss.summed_loss(model, collate([ROW]))
    assert whole.item() == pytest.approx(chunked.item(), rel=1e-6)
    whole.backward()
    assert model.get_output_embeddings().weight.grad.norm() > 0


def test_no_more_logits_than_a_chunk_are_there_at_a_time(tiny_model_dir, monkeypatch):
    model = tiny(tiny_model_dir)
    monkeypatch.setattr(loss, "LOGITS_PER_CHUNK", 4 * model.config.vocab_size)
    seen = []
    model.get_output_embeddings().register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    loss.summed_loss(model, collate([ROW]))
    assert seen == [(1, 4, model.config.vocab_size)] * 3 + [(1, 3, model.config.vocab_size)]


def test_logits_keep_what_the_model_does_to_them(tmp_path):
    """Gemma 2 caps its logits after the output layer, which a loss from hidden states could miss."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, final_logit_softcapping=0.05, attn_implementation="eager",
    )  # fmt: skip
    model = Gemma2ForCausalLM(config).train()
    expected = reference(model, [ROW])
    model.get_output_embeddings().weight.requires_grad_(False)
    assert loss.summed_loss(model, collate([ROW])).item() == pytest.approx(expected.item(), rel=1e-5)
