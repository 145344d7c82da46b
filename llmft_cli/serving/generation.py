"""Answers from a run's tuned model, or from its base with the adapter disabled."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmft_cli.base.cpu_threads import use_free_cores
from llmft_cli.base.libraries import import_transformers
from llmft_cli.base.reporter import Reporter
from llmft_cli.data.encoding.encoder import ConversationEncoder
from llmft_cli.models import loading, model_source
from llmft_cli.models.adapters import load_adapter
from llmft_cli.models.limits import limits_of
from llmft_cli.run_dir.run import RunDir
from llmft_cli.serving.room import longest_conversation, new_tokens_for, prompt_batches
from llmft_cli.settings import compute_types
from llmft_cli.settings.config import Config

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

BASE, TUNED = "base", "tuned"


@dataclass(frozen=True)
class TunedModel:
    """A base model with the run's adapter, the run's tokenizer, the ids that end an answer, and its longest conversation."""

    model: PeftModel
    compute_dtype: str
    tokenizer: PreTrainedTokenizerBase
    encoder: ConversationEncoder
    stop_ids: list[int]
    longest_conversation: int | None = None

    @property
    def device(self) -> torch.device:
        return self.model.device

    @contextmanager
    def arm(self, name: str) -> Iterator[PeftModel]:
        """The model as `base` (adapter disabled) or `tuned`."""
        if name == BASE:
            with self.model.disable_adapter():
                yield self.model
        else:
            yield self.model


@dataclass(frozen=True)
class Reply:
    """An answer, with the number of generated tokens."""

    text: str
    tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


def load_tuned(run: RunDir, config: Config, reporter: Reporter, allow_stale: bool = False) -> TunedModel:
    """The tuned model of a run, on the same quantised base.

    Raises:
        StageError: the run is not trained, or is stale.
        ModelError: the base cannot be loaded, or is not the one used in training.
    """
    trained = run.require("train", allow_stale)
    device = loading.pick_device(config.device)
    compute_dtype = compute_types.settled(config, device, reporter).compute_dtype
    use_free_cores(device, reporter)
    source = model_source.resolve_recorded(trained["model"], reporter)
    reporter.note(f"loading {source.name} ({config.quantization}) and {run.adapter} on {device}")
    tokenizer = loading.load_tokenizer(run.tokenizer)
    base = loading.load_base(source, device, compute_types.torch_type(compute_dtype), config.quantization)
    model = load_adapter(base, run.adapter)
    if device.type == "cpu" and compute_dtype == compute_types.FP32:
        hold_dense_weights(model, reporter)
    limits = limits_of(base.config, source.name)
    encoder = ConversationEncoder(tokenizer, limits=limits)
    stop_ids = loading.end_of_answer_ids(tokenizer, model, encoder.end_of_turn())
    return TunedModel(model, compute_dtype, tokenizer, encoder, stop_ids, longest_conversation(limits, config))


def hold_dense_weights(model: PeftModel, reporter: Reporter) -> None:
    from llmft_cli.serving.dense_weights import use_dense_weights

    if not use_dense_weights(model):
        reporter.warn("not enough free RAM for 16-bit weights: dequantising all of them for each token, which is slow")


def generation_config(tuned: TunedModel, max_new_tokens: int, temperature: float = 0.0, top_p: float = 1.0) -> Any:
    """Greedy decoding, or sampling if `temperature` is set; ignores the model's own generation settings."""
    sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p} if temperature else {"do_sample": False}
    return import_transformers().GenerationConfig(
        max_new_tokens=max_new_tokens, eos_token_id=tuned.stop_ids, pad_token_id=tuned.stop_ids[0], **sampling
    )


def answer_all(
    tuned: TunedModel,
    prompts: Sequence[Sequence[int]],
    arm: str,
    max_new_tokens: int,
    batch_size: int,
    advance: Callable[[int], None],
) -> list[str]:
    """Greedy answers to prompts given as token ids, in the same order.

    Args:
        batch_size: prompts per batch; prompts of similar length share a batch.
        advance: called with the number of prompts in each finished batch.
    """
    import torch

    answers = [""] * len(prompts)
    with tuned.arm(arm) as model, torch.inference_mode():
        lengths = list(map(len, prompts))
        for batch, new_tokens in prompt_batches(lengths, batch_size, tuned.longest_conversation, max_new_tokens):
            config = generation_config(tuned, new_tokens)
            longest = max(len(prompts[index]) for index in batch)
            ids = [[tuned.stop_ids[0]] * (longest - len(prompts[index])) + list(prompts[index]) for index in batch]
            mask = [[0] * (longest - len(prompts[index])) + [1] * len(prompts[index]) for index in batch]
            tensors = {
                "input_ids": torch.tensor(ids, device=tuned.device),
                "attention_mask": torch.tensor(mask, device=tuned.device),
            }
            generated = model.generate(**tensors, generation_config=config)
            for index, row in zip(batch, generated[:, longest:], strict=True):
                answers[index] = tuned.tokenizer.decode(row, skip_special_tokens=True).strip()
            advance(len(batch))
    return answers


def stream_answer(tuned: TunedModel, prompt: Sequence[int], arm: str, config: Config, on_text: Callable[[str], None]) -> Reply:
    """Generate one answer, streaming its text to `on_text`."""
    import torch

    streamer = callback_streamer(tuned.tokenizer, on_text)
    new_tokens = new_tokens_for(len(prompt), tuned.longest_conversation, config.max_new_tokens)
    settings = generation_config(tuned, new_tokens, config.temperature, config.top_p)
    ids = torch.tensor([list(prompt)], device=tuned.device)
    start = time.perf_counter()
    with tuned.arm(arm) as model, torch.inference_mode():
        generated = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings, streamer=streamer
        )[0, len(prompt) :]
    seconds = time.perf_counter() - start
    return Reply(tuned.tokenizer.decode(generated, skip_special_tokens=True).strip(), len(generated), seconds)


def callback_streamer(tokenizer: PreTrainedTokenizerBase, on_text: Callable[[str], None]) -> Any:
    """A streamer that passes whole words to `on_text`, without the prompt and special tokens."""

    class Streamer(import_transformers().TextStreamer):  # type: ignore[misc]
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            on_text(text)

    return Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
