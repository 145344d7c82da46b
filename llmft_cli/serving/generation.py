"""Answers from a run's tuned model, or from its base with the adapter disabled."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llmft_cli.base.cpu_threads import use_free_cores
from llmft_cli.base.libraries import import_transformers
from llmft_cli.base.reporter import Reporter
from llmft_cli.data.encoding.encoder import ConversationEncoder
from llmft_cli.models import loading, model_source
from llmft_cli.models.adapters import load_adapter
from llmft_cli.models.limits import limits_of
from llmft_cli.run_dir.artifacts import reading
from llmft_cli.run_dir.run import RunDir
from llmft_cli.serving.room import longest_conversation, new_tokens_for, prompt_batches
from llmft_cli.settings import compute_types
from llmft_cli.settings.config import Config

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

BASE, TUNED = "base", "tuned"
PADDING = 0  # any id does: prompts are masked there, and answers end before


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
class Answer:
    """One of many answers.

    Args:
        tokens: generated tokens, with the one that ended the answer.
        cut: whether `max_new_tokens` ended it, and not the model.
    """

    text: str
    tokens: int
    cut: bool


@dataclass(frozen=True)
class Reply:
    """A streamed answer; fields as of `Answer`."""

    text: str
    tokens: int
    seconds: float
    cut: bool = False

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


def load_tuned(run: RunDir, config: Config, reporter: Reporter, allow_stale: bool = False) -> TunedModel:
    """The tuned model of a run, on the same quantised base.

    Raises:
        StageError: the run is not trained, is stale, or its adapter or tokenizer is damaged.
        ModelError: the base cannot be loaded, or is not the one used in training.
    """
    trained = run.require("train", allow_stale)
    device = loading.pick_device(config.device)
    compute_dtype = compute_types.settled(config, device, reporter).compute_dtype
    use_free_cores(device, reporter)
    source = model_source.resolve_recorded(trained["model"], reporter)
    reporter.note(f"loading {source.name} ({config.quantization}) and {run.adapter} on {device}")
    tokenizer = loading.load_run_tokenizer(run, source.trust_remote_code)
    base = loading.load_base(source, device, compute_types.torch_type(compute_dtype), config.quantization)
    with reading(run, run.adapter):
        model = load_adapter(base, run.adapter)
    if device.type == "cpu" and compute_dtype == compute_types.FP32:
        hold_dense_weights(model, reporter)
    return with_tokenizer(model, tokenizer, source.name, replace(config, compute_dtype=compute_dtype))


def with_tokenizer(model: PeftModel, tokenizer: PreTrainedTokenizerBase, base_name: str, config: Config) -> TunedModel:
    """A model with an adapter, and what it needs to answer; `config` has the type that it computes in."""
    limits = limits_of(model.get_base_model().config, base_name)
    encoder = ConversationEncoder(tokenizer, limits=limits)
    stop_ids = loading.end_of_answer_ids(tokenizer, model, encoder.end_of_turn())
    return TunedModel(model, config.compute_dtype, tokenizer, encoder, stop_ids, longest_conversation(limits, config))


def hold_dense_weights(model: PeftModel, reporter: Reporter) -> None:
    from llmft_cli.serving.dense_weights import use_dense_weights

    if not use_dense_weights(model):
        reporter.warn("not enough free RAM for 16-bit weights: dequantising all of them for each token, which is slow")


def generation_config(tuned: TunedModel, max_new_tokens: int, temperature: float = 0.0, top_p: float = 1.0) -> Any:
    """Greedy decoding, or sampling if `temperature` is set, from all tokens within `top_p`."""
    sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0} if temperature else {}
    return import_transformers().GenerationConfig(
        max_new_tokens=max_new_tokens, eos_token_id=tuned.stop_ids or None, pad_token_id=PADDING, **sampling
    )


@contextmanager
def without_own_settings(model: Any) -> Iterator[None]:
    """Without the model's own generation settings, such as a repetition penalty.

    `generate` takes from them whatever the settings that it is given leave open.
    """
    own = model.generation_config
    model.generation_config = import_transformers().GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def generate(model: PeftModel, ids: torch.Tensor, mask: torch.Tensor, settings: Any, streamer: Any = None) -> list[list[int]]:
    """The new tokens of each row, generated with these settings alone.

    Args:
        ids, mask: of shape (rows, tokens), padded on the left.
    """
    import torch

    with without_own_settings(model.get_base_model()), torch.inference_mode():
        generated = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings, streamer=streamer)
    new: list[list[int]] = generated[:, ids.shape[1] :].tolist()
    return new


def answer_all(
    tuned: TunedModel,
    prompts: Sequence[Sequence[int]],
    arm: str,
    max_new_tokens: int,
    batch_size: int,
    advance: Callable[[int], None],
) -> list[Answer]:
    """Greedy answers to prompts given as token ids, in the same order.

    Args:
        batch_size: prompts per batch; prompts of similar length share a batch.
        advance: called with the number of prompts in each finished batch.
    """
    import torch

    answers = [Answer("", 0, False)] * len(prompts)
    lengths = list(map(len, prompts))
    with tuned.arm(arm) as model:
        for batch, new_tokens in prompt_batches(lengths, batch_size, tuned.longest_conversation, max_new_tokens):
            config = generation_config(tuned, new_tokens)
            longest = max(len(prompts[index]) for index in batch)
            ids = [[PADDING] * (longest - len(prompts[index])) + list(prompts[index]) for index in batch]
            mask = [[0] * (longest - len(prompts[index])) + [1] * len(prompts[index]) for index in batch]
            id_tensor, mask_tensor = (torch.tensor(rows, device=tuned.device) for rows in (ids, mask))
            for index, new in zip(batch, generate(model, id_tensor, mask_tensor, config), strict=True):
                answers[index] = answer_of(tuned, new)
            advance(len(batch))
    return answers


def stream_answer(tuned: TunedModel, prompt: Sequence[int], arm: str, config: Config, on_text: Callable[[str], None]) -> Reply:
    """Generate one answer, streaming its text to `on_text`."""
    import torch

    streamer = callback_streamer(tuned, on_text)
    new_tokens = new_tokens_for(len(prompt), tuned.longest_conversation, config.max_new_tokens)
    settings = generation_config(tuned, new_tokens, config.temperature, config.top_p)
    ids = torch.tensor([list(prompt)], device=tuned.device)
    start = time.perf_counter()
    with tuned.arm(arm) as model:
        new = generate(model, ids, torch.ones_like(ids), settings, streamer)[0]
    answer = answer_of(tuned, new)
    return Reply(answer.text, answer.tokens, time.perf_counter() - start, answer.cut)


def answer_of(tuned: TunedModel, new: Sequence[int]) -> Answer:
    """The answer in new tokens, which go on with padding after its end.

    The token that ends it is left out: not every tokenizer marks it as special.
    """
    tokens = tokens_of_answer(new, tuned.stop_ids)
    said = new if tokens is None else new[: tokens - 1]
    text = tuned.tokenizer.decode(said, skip_special_tokens=True).strip()
    return Answer(text, tokens or len(new), cut=tokens is None)


def tokens_of_answer(ids: Sequence[int], stop_ids: Collection[int]) -> int | None:
    """The number of tokens up to and including the one that ended the answer; None if none did."""
    return next((place for place, token in enumerate(ids, 1) if token in stop_ids), None)


def callback_streamer(tuned: TunedModel, on_text: Callable[[str], None]) -> Any:
    """A streamer that passes whole words to `on_text`: in all, the text that `answer_of` has."""
    from llmft_cli.serving.streamed_text import Stripped

    stripped = Stripped(on_text)

    class Streamer(import_transformers().TextStreamer):  # type: ignore[misc]
        def put(self, value: torch.Tensor) -> None:
            if self.next_tokens_are_prompt or value.item() not in tuned.stop_ids:
                super().put(value)

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            stripped(text)

    return Streamer(tuned.tokenizer, skip_prompt=True, skip_special_tokens=True)
