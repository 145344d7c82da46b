"""Whether prompts leave room for an answer in the model's positions: known before the model is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from llmft_cli.evaluation.prompts import Prompt, refuse
from llmft_cli.models.limits import Limits
from llmft_cli.serving.room import longest_conversation, new_tokens_for
from llmft_cli.settings.config import Config


def check_prompt_lengths(prompts: Sequence[Prompt], ids: Sequence[Sequence[int]], limits: Limits, config: Config) -> None:
    """Check that every prompt leaves room for an answer.

    Args:
        ids: the token ids of each prompt.

    Raises:
        DataError: some do not.
    """
    longest = longest_conversation(limits, config)
    refuse(
        [
            f"{prompt.where}: {len(tokens)} tokens of the {longest} that {limits.model} can have leave no room for an answer"
            for prompt, tokens in zip(prompts, ids, strict=True)
            if not new_tokens_for(len(tokens), longest, config.max_new_tokens)
        ]
    )
