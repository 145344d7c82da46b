"""Tries settings on sampled rows: how many become usable, and whether what is learned makes sense."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from llmft_cli.data.cures.candidates import Candidate
from llmft_cli.data.cures.keys import look_like_ids
from llmft_cli.data.encoding.encoder import ConversationEncoder
from llmft_cli.data.encoding.overlength import OverlengthLosses, apply_policy
from llmft_cli.data.encoding.template_files import read_template
from llmft_cli.data.forms.formats import Conversation, Document, Example, RowError, Tokenised, parse_columns
from llmft_cli.data.inputs import ParsedRow, parse_row
from llmft_cli.data.reading.rows import Row
from llmft_cli.data.words import count_words
from llmft_cli.settings.config import Config

OF_ENCODER = ("chat_template", "train_on", "rows_per_answer", "on_unrendered")
TOO_LONG = "too long"
FEW = 4
SHORTEST_DOCUMENT = 20


@dataclass(frozen=True)
class Trial:
    """What became of rows with some settings.

    Attributes:
        examples: of the usable rows.
        reasons: of the others.
        longest: tokens of the longest row.
    """

    examples: list[Example]
    reasons: list[str]
    longest: int

    @property
    def usable(self) -> float:
        """The share of usable rows; 1 if there are none at all."""
        rows = len(self.examples) + len(self.reasons)
        return len(self.examples) / rows if rows else 1.0

    def share_of(self, pattern: re.Pattern[str]) -> float:
        """The share of the reasons that match a pattern."""
        return sum(pattern.search(reason) is not None for reason in self.reasons) / max(len(self.reasons), 1)

    @property
    def progress(self) -> int:
        """The number of rows that are usable or only too long."""
        return len(self.examples) + self.reasons.count(TOO_LONG)


def attempt(rows: Sequence[Row], encoder: ConversationEncoder, config: Config) -> Trial:
    """Parse, render, tokenise and mask rows as prepare does."""
    columns = parse_columns(config.columns) if config.columns else None
    parsed = [parse_row(0, row, encoder, config, columns) for row in rows]
    tokens = iter(encoder.tokenise([part for row in parsed if row.rendered for part in row.rendered.rows]))
    trial = Trial([], [], 0)
    for row in parsed:
        own = list(islice(tokens, len(row.rendered.rows))) if row.rendered else []
        try:
            length, fits = fit(row, own, encoder, config)
        except RowError as error:
            trial.reasons.append(str(error))
            continue
        trial = replace(trial, longest=max(trial.longest, length))
        if fits and row.example is not None:
            trial.examples.append(row.example)
        else:
            trial.reasons.append(TOO_LONG)
    return trial


def fit(row: ParsedRow, tokens: Sequence[Any], encoder: ConversationEncoder, config: Config) -> tuple[int, bool]:
    """The length of a row in tokens, and whether it or a part of it is used.

    Raises:
        RowError: the row cannot be used.
    """
    if row.error:
        raise RowError(row.error)
    if isinstance(row.example, Document):
        return 0, True
    rendered = row.rendered.rows if row.rendered else []
    if isinstance(row.example, Tokenised):
        encoded = [encoder.from_token_ids(row.example)]
    else:
        encoded = [encoder.mask(*pair) for pair in zip(rendered, tokens, strict=True)]
    policy = "drop" if config.on_overlength == "error" else config.on_overlength
    capacity = config.max_seq_length
    fitting = [
        one for one in encoded if len(one.input_ids) <= capacity or apply_policy(one, capacity, policy, OverlengthLosses())
    ]
    return max(len(one.input_ids) for one in encoded), bool(fitting)


def encoder_for(encoder: ConversationEncoder, config: Config, changed: Config) -> ConversationEncoder:
    """The encoder for changed settings: another one if the template or its use has changed."""
    if all(getattr(config, name) == getattr(changed, name) for name in OF_ENCODER):
        return encoder
    tokenizer = copy.copy(encoder.tokenizer)
    if changed.chat_template:
        tokenizer.chat_template = read_template(changed.chat_template)
    return ConversationEncoder(
        tokenizer, changed.train_on, rows_per_answer=changed.rows_per_answer, on_unrendered=changed.on_unrendered
    )


def makes_sense(examples: Sequence[Example], candidate: Candidate) -> bool:
    """Whether what is learned is likely to be meant: no ids, no documents of a word, and what `Candidate` demands."""
    talks = [example.messages for example in examples if isinstance(example, Conversation)]
    documents = [example.text for example in examples if isinstance(example, Document)]
    if 2 * len(documents) > len(examples):
        return sorted(map(len, documents))[len(documents) // 2] >= SHORTEST_DOCUMENT and not look_like_ids(documents)
    if not talks:
        return True
    answers = [messages[-1]["content"] for messages in talks]
    questions = [next((message["content"] for message in messages if message["role"] == "user"), "") for messages in talks]
    if candidate.sentences and not (have_words(answers) and have_words(questions)):
        return False
    if candidate.certain:
        return True
    all_the_same = len(answers) >= FEW and len(set(answers)) == 1
    return not (all_the_same or look_like_ids(answers) or look_like_ids(questions))


def have_words(texts: Sequence[str]) -> bool:
    return 2 * sum(count_words(text) > 1 for text in texts) > len(texts)
