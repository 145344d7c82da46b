"""An answer that stops at the limit of new tokens says so: its text is only the beginning of an answer."""

from __future__ import annotations

from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import pytest

if not find_spec("torch"):
    pytest.skip("needs torch", allow_module_level=True)

import torch

from llmft_cli.serving.generation import TUNED, Answer, TunedModel, answer_all, stream_answer, tokens_of_answer
from llmft_cli.settings.config import Config

END, END_OF_TEXT = 9, 8
LIMIT = 4
# What the model says after a prompt that begins with this id.
SAID = {1: [5, 6, END], 2: [5, 6, 7, 5], 3: [5, 6, 7, END], 4: [END_OF_TEXT]}


class Speaker:
    """Says `SAID`, padded with the first stop id as `generate` pads."""

    device = torch.device("cpu")
    generation_config = None

    def get_base_model(self) -> Speaker:
        return self

    @contextmanager
    def disable_adapter(self) -> Any:
        yield

    def generate(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **options: Any) -> torch.Tensor:
        prompts = [row[mask.bool()] for row, mask in zip(input_ids, attention_mask, strict=True)]
        said = [SAID[int(prompt[0])] for prompt in prompts]
        longest = max(map(len, said))
        new = [[*ids, *[END] * (longest - len(ids))] for ids in said]
        return torch.cat([input_ids, torch.tensor(new)], dim=1)


class Letters:
    def decode(self, ids: Any, skip_special_tokens: bool) -> str:
        return "".join("?????abc"[int(token)] for token in ids if token not in (END, END_OF_TEXT))


@pytest.fixture
def tuned() -> TunedModel:
    parts: list[Any] = [Speaker(), "fp32", Letters(), None, [END, END_OF_TEXT]]
    return TunedModel(*parts)


def test_answers_in_batches_say_whether_the_limit_ended_them(tuned: TunedModel) -> None:
    prompts = [[1], [2, 2, 2], [3], [4, 4], [2]]
    expected = [
        Answer("ab", 3, cut=False),
        Answer("abca", LIMIT, cut=True),
        Answer("abc", LIMIT, cut=False),  # it ended with the last token that it was allowed
        Answer("", 1, cut=False),
        Answer("abca", LIMIT, cut=True),
    ]
    for batch_size in (1, 2, 5):
        assert answer_all(tuned, prompts, TUNED, LIMIT, batch_size, lambda count: None) == expected


@pytest.mark.parametrize(("prompt", "cut"), [([1], False), ([2], True), ([3], False)])
def test_a_streamed_answer_says_it_too(tuned: TunedModel, prompt: list[int], cut: bool) -> None:
    reply = stream_answer(tuned, prompt, TUNED, Config(max_new_tokens=LIMIT), lambda text: None)
    assert reply.cut is cut


def test_the_tokens_of_an_answer_end_with_its_first_stop_token() -> None:
    assert tokens_of_answer([5, END, END, END], [END, END_OF_TEXT]) == 2
    assert tokens_of_answer([5, END_OF_TEXT, END], [END, END_OF_TEXT]) == 2
    assert tokens_of_answer([5, 6], [END]) is None
    assert tokens_of_answer([], [END]) is None
