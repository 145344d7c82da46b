"""Token ids that a tokenizer has and its model does not: tokens were added, and the embeddings were not resized."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from llmft_cli.base.errors import ModelError
from llmft_cli.data.forms.examples import RowError
from llmft_cli.models.limits import Limits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ModelIds:
    """Checks ids against the embeddings of a model, unless its limits are unknown or the tokenizer has no larger ids."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, limits: Limits | None) -> None:
        self._tokenizer = tokenizer
        self._limits = limits
        rows = limits.embedding_rows if limits else None
        self._rows = rows if rows is not None and max(tokenizer.get_vocab().values()) >= rows else None

    def check(self, ids: Sequence[int], of_every_row: Callable[[], Collection[int]], writer: str = "") -> None:
        """Check that the model has an embedding for every id.

        Args:
            of_every_row: the ids that every such row has.
            writer: what writes those ids, in words.

        Raises:
            ModelError: the model has no embedding for an id of every row.
            RowError: it has none for another id.
        """
        if self._rows is None or max(ids, default=0) < self._rows:
            return
        in_every_row = next((number for number in of_every_row() if number >= self._rows), None)
        assert self._limits is not None
        model = f"{self._limits.model} has embeddings for {self._rows} tokens only (vocab_size in its config.json)"
        if in_every_row is not None:
            raise ModelError(
                f"{writer} adds {self._named(in_every_row)}, but {model}",
                "resize the embeddings, or use a template without it: llmft prepare DATA --chat-template FILE.jinja",
            )
        unknown = next(number for number in ids if number >= self._rows)
        raise RowError(f"the row has {self._named(unknown)}, but {model}")

    def _named(self, number: int) -> str:
        return f"the token {self._tokenizer.convert_ids_to_tokens(number)!r} with id {number}"
