"""Answers are those of a plain greedy loop: no setting of the model's own and no padding gets into them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if not find_spec("torch"):
    pytest.skip("needs torch", allow_module_level=True)

import torch

from llmft_cli.data.encoding.encoder import ConversationEncoder
from llmft_cli.serving.generation import BASE, TUNED, TunedModel, answer_all, generate, generation_config, stream_answer
from llmft_cli.serving.streamed_text import Stripped
from llmft_cli.settings.config import Config

LIMIT = 12
PROMPTS = ["How do I mount the weather station?", "Hi", "What does the red light mean? The battery is low."]
# What model repositories set, and what changes greedy answers, ends in an error, or returns something else.
OWN_SETTINGS: list[dict[str, Any]] = [
    {"repetition_penalty": 9.0},
    {"no_repeat_ngram_size": 1},
    {"encoder_repetition_penalty": 9.0},
    {"suppress_tokens": list(range(100, 350))},
    {"begin_suppress_tokens": list(range(100, 350))},
    {"bad_words_ids": [[token] for token in range(100, 350)]},
    {"sequence_bias": [[[token], -50.0] for token in range(100, 350)]},
    {"forced_bos_token_id": 7},
    {"forced_eos_token_id": 7},
    {"min_length": 100},
    {"min_new_tokens": 10},
    {"max_length": 3},
    {"max_time": 1e-9},
    {"stop_strings": ["a"]},
    {"exponential_decay_length_penalty": (0, 9.0)},
    {"num_beams": 3, "length_penalty": -5.0},
    {"do_sample": True, "temperature": 50.0, "top_k": 400, "top_p": 0.999},
    {"guidance_scale": 3.0},
    {"return_dict_in_generate": True, "output_scores": True},
    {"cache_implementation": "static"},
    {"use_cache": False},
    {"prompt_lookup_num_tokens": 3},
    {"eos_token_id": [5, 6], "pad_token_id": 9, "bos_token_id": 8},
]


@pytest.fixture(scope="module")
def tuned(tiny_model_dir: Path, tiny_tokenizer: Any) -> TunedModel:
    """The tiny model with an adapter that changes its answers."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32).eval()
    adapter = LoraConfig(r=8, lora_alpha=64, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(base, adapter).eval()
    return TunedModel(model, "fp32", tiny_tokenizer, ConversationEncoder(tiny_tokenizer), [tiny_tokenizer.eos_token_id])


@pytest.fixture
def own_settings(tuned: TunedModel) -> Iterator[Any]:
    """The model's own generation settings, to be changed."""
    from transformers import GenerationConfig

    model = tuned.model.get_base_model()
    before = model.generation_config
    model.generation_config = GenerationConfig()
    yield model.generation_config
    model.generation_config = before


def ids_of(tuned: TunedModel) -> list[list[int]]:
    return [tuned.encoder.prompt([{"role": "user", "content": prompt}]) for prompt in PROMPTS]


def greedy(tuned: TunedModel, prompt: Sequence[int], arm: str, stop_ids: Sequence[int]) -> list[int]:
    """The new tokens by hand: the most likely one each time, from the whole text so far."""
    new: list[int] = []
    with tuned.arm(arm) as model, torch.inference_mode():
        while len(new) < LIMIT and not (new and new[-1] in stop_ids):
            logits = model(input_ids=torch.tensor([[*prompt, *new]])).logits
            new.append(int(logits[0, -1].argmax()))
    return new


def text_of(tuned: TunedModel, new: Sequence[int], stop_ids: Sequence[int]) -> str:
    said = [token for token in new if token not in stop_ids]
    return str(tuned.tokenizer.decode(said, skip_special_tokens=True)).strip()


@pytest.mark.parametrize("own", OWN_SETTINGS, ids=lambda own: next(iter(own)))
def test_the_models_own_generation_settings_change_nothing(tuned: TunedModel, own_settings: Any, own: dict[str, Any]) -> None:
    for name, value in own.items():
        setattr(own_settings, name, value)
    before = own_settings.to_dict()
    prompts = ids_of(tuned)
    for arm in (BASE, TUNED):
        by_hand = [greedy(tuned, prompt, arm, tuned.stop_ids) for prompt in prompts]
        answers = answer_all(tuned, prompts, arm, LIMIT, 2, lambda count: None)
        assert [answer.text for answer in answers] == [text_of(tuned, new, tuned.stop_ids) for new in by_hand]
        assert [answer.tokens for answer in answers] == [len(new) for new in by_hand]
        reply = stream_answer(tuned, prompts[0], arm, Config(max_new_tokens=LIMIT), lambda text: None)
        assert (reply.text, reply.tokens) == (answers[0].text, len(by_hand[0]))
    assert tuned.model.get_base_model().generation_config is own_settings
    assert own_settings.to_dict() == before


def test_the_arms_answer_differently(tuned: TunedModel) -> None:
    """Otherwise the test above would compare less than it says."""
    arms = [answer_all(tuned, ids_of(tuned), arm, LIMIT, 3, lambda count: None) for arm in (BASE, TUNED)]
    assert all(one.text != other.text for one, other in zip(*arms, strict=True))


def test_sampling_takes_from_all_tokens_within_top_p(tuned: TunedModel) -> None:
    """transformers takes from the 50 most likely ones by default; at a high temperature all 400 are as likely."""
    torch.manual_seed(0)
    prompt = torch.tensor([ids_of(tuned)[1]] * 64)
    with tuned.arm(BASE) as model, torch.inference_mode():
        likely = set(model(input_ids=prompt[:1]).logits[0, -1].topk(50).indices.tolist())
        settings = generation_config(tuned, 1, temperature=1000.0)
        drawn = {row[0] for row in generate(model, prompt, torch.ones_like(prompt), settings)}
        nucleus = generation_config(tuned, 1, temperature=1000.0, top_p=0.01)
        first = {row[0] for row in generate(model, prompt, torch.ones_like(prompt), nucleus)}
    assert len(drawn - likely) > 32
    assert first <= likely


def test_an_end_of_turn_that_is_not_marked_special_is_no_part_of_an_answer(tuned: TunedModel) -> None:
    """It was in the text of an answer, and once more for every position that a longer answer in the batch had beyond it."""
    prompts = ids_of(tuned)
    free = [greedy(tuned, prompt, TUNED, []) for prompt in prompts]
    stop = free[1][2]  # an ordinary token, which ends the second answer early
    assert stop not in tuned.tokenizer.all_special_ids
    parts: list[Any] = [tuned.model, "fp32", tuned.tokenizer, tuned.encoder, [stop]]
    ending = TunedModel(*parts)
    by_hand = [greedy(ending, prompt, TUNED, [stop]) for prompt in prompts]
    assert len(by_hand[1]) < max(map(len, by_hand))
    expected = [text_of(ending, new, [stop]) for new in by_hand]

    for batch_size in (1, 2, 3):
        answers = answer_all(ending, prompts, TUNED, LIMIT, batch_size, lambda count: None)
        assert [answer.text for answer in answers] == expected
    for prompt, text in zip(prompts, expected, strict=True):
        pieces: list[str] = []
        reply = stream_answer(ending, prompt, TUNED, Config(max_new_tokens=LIMIT), pieces.append)
        assert (reply.text, "".join(pieces)) == (text, text)


def test_a_model_that_knows_no_end_answers_to_the_limit(tuned: TunedModel) -> None:
    parts: list[Any] = [tuned.model, "fp32", tuned.tokenizer, tuned.encoder, []]
    answers = answer_all(TunedModel(*parts), ids_of(tuned), TUNED, LIMIT, 3, lambda count: None)
    assert [(answer.tokens, answer.cut) for answer in answers] == [(LIMIT, True)] * len(PROMPTS)


@pytest.mark.parametrize(
    "pieces", [[" \n", " a ", "b\n", "\n", " c", " \n "], ["a"], [" ", "\n"], [], ["a \n b", "", "  ", "c "], [" a", " "]]
)
def test_pieces_of_text_make_up_the_stripped_text(pieces: list[str]) -> None:
    shown: list[str] = []
    stripped = Stripped(shown.append)
    for piece in pieces:
        stripped(piece)
    assert "".join(shown) == "".join(pieces).strip()
    assert "" not in shown
