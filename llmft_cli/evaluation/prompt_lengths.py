"""Whether prompts leave room for an answer in the model's positions: known before the model is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmft_cli.base.errors import DataError
from llmft_cli.base.reporter import Reporter
from llmft_cli.data.encoding.encoder import ConversationEncoder
from llmft_cli.data.forms.formats import RowError
from llmft_cli.evaluation.prompts import Prompt
from llmft_cli.models.limits import limits_of_recorded
from llmft_cli.models.loading import load_tokenizer
from llmft_cli.run_dir.run import RunDir
from llmft_cli.serving.room import longest_conversation, new_tokens_for
from llmft_cli.settings.config import Config


def check_prompt_lengths(
    run: RunDir, prompts: Sequence[Prompt], base: Mapping[str, Any], config: Config, reporter: Reporter
) -> None:
    """Check that the model can take every prompt and has room for an answer.

    Args:
        base: what the ledger recorded of the base model.

    Raises:
        DataError: it cannot, or the template rejects a prompt.
    """
    limits = limits_of_recorded(base, reporter)
    longest = longest_conversation(limits, config)
    encoder = ConversationEncoder(load_tokenizer(run.tokenizer), limits=limits)
    for prompt in prompts:
        try:
            tokens = len(encoder.prompt(prompt.messages))
        except RowError as error:
            raise DataError(f"{prompt.where} cannot be rendered: {error}") from error
        if not new_tokens_for(tokens, longest, config.max_new_tokens):
            raise DataError(
                f"{prompt.where}: {tokens} tokens of the {longest} that {limits.model} can have leave no room for an answer",
                "shorten or remove this prompt",
            )
