"""Exact match of the answers to the held-out rows, given by the model that is being trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmft_cli.base.errors import StageError
from llmft_cli.base.reporter import Reporter
from llmft_cli.data.encoding.encoder import ConversationEncoder
from llmft_cli.evaluation.answers import arm_scores, prediction
from llmft_cli.evaluation.prompts import Prompt, encode_prompts, held_out_prompts
from llmft_cli.evaluation.thinking import begins_thinking
from llmft_cli.models.limits import limits_of_base
from llmft_cli.models.loading import load_run_tokenizer
from llmft_cli.models.model_source import ModelSource
from llmft_cli.run_dir.run import RunDir
from llmft_cli.serving.generation import TUNED, answer_all, with_tokenizer
from llmft_cli.settings.config import Config

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Questions:
    """The held-out rows as prompts, with the token ids of each."""

    prompts: Sequence[Prompt]
    ids: Sequence[Sequence[int]]
    tokenizer: PreTrainedTokenizerBase


def held_out_questions(run: RunDir, source: ModelSource, config: Config, reporter: Reporter) -> Questions:
    """The held-out rows that have an answer to compare with.

    Raises:
        StageError: there are none.
        DataError: some cannot be rendered.
    """
    prompts = [prompt for prompt in held_out_prompts(run, reporter) if prompt.expected is not None]
    if not prompts:
        raise StageError(
            f"{run.path} has no held-out answers to compare recipes by", "omit --search-metric: the held-out loss needs none"
        )
    tokenizer = load_run_tokenizer(run, source.trust_remote_code)
    limits = limits_of_base(config, source)
    return Questions(prompts, encode_prompts(ConversationEncoder(tokenizer, limits=limits), prompts), tokenizer)


def exact_match(
    model: PeftModel, own_attention: str | None, questions: Questions, base_name: str, config: Config, reporter: Reporter
) -> float:
    """The share of greedy answers that are right.

    Args:
        own_attention: the implementation that transformers chose for the model; that of training may know no cache.
    """
    tuned = with_tokenizer(model, questions.tokenizer, base_name, config)
    with answering(model, own_attention), reporter.track("answers", total=len(questions.prompts)) as advance:
        answers = answer_all(tuned, questions.ids, TUNED, config.max_new_tokens, config.eval_batch_size, advance)
    predictions = [
        prediction(prompt, {TUNED: answer}, begins_thinking(questions.tokenizer, ids))
        for prompt, ids, answer in zip(questions.prompts, questions.ids, answers, strict=True)
    ]
    score = arm_scores(TUNED, None, predictions).exact_match
    assert score is not None  # every prompt has an expected answer
    return score


@contextmanager
def answering(model: Any, own_attention: str | None) -> Iterator[None]:
    """The model in inference mode, with its own attention."""
    causal, was_training = model.get_base_model(), model.training
    attention = causal.config._attn_implementation
    model.eval()
    if attention != own_attention:
        causal.set_attn_implementation(own_attention)
    try:
        yield
    finally:
        if attention != own_attention:
            causal.set_attn_implementation(attention)
        model.train(was_training)
