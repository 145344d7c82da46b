"""The displayed text of a row's tokens is exact for any tokenizer, wherever the mask changes."""

from __future__ import annotations

import itertools
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from templates import LLAMA_2, STYLES, Style, metaspace_tokenizer, one_row, talk, text_of

from llmft_cli.data.encoding.encoder import ConversationEncoder
from llmft_cli.data.forms.examples import IGNORED
from llmft_cli.data.report.samples import Sample, Segment, read_samples, sample, segments
from llmft_cli.data.store import SAMPLES_FILE, write_json_lines
from llmft_cli.models.builtin import cache_dir

# Read before the fixture changes HOME.
# Read before the fixture changes HOME.
CACHE = cache_dir()
TALK = talk(
    [
        ("user", "Où est  la 🏡?\n\tSpell <|im_end|> </s>."),
        ("assistant", " Là-bas 👩\u200d🚀!\n"),
        ("user", "好"),
        ("assistant", "的"),
    ]
)
# After [UNK] and [SEP], around which some decoders insert spaces.
FIRST_ORDINARY = 2
BYTES = re.compile(rb"<0x([0-9A-F]{2})>")


def shown_bytes(found: list[Segment]) -> bytes:
    """The segments' texts joined, with `<0x..>` decoded."""
    joined = b"".join(segment.text.encode() for segment in found)
    return BYTES.sub(lambda match: bytes([int(match.group(1), 16)]), joined)


def learned(found: list[Segment]) -> str:
    return "".join(segment.text for segment in found if segment.supervised)


def llama(sentences: list[str]) -> Any:
    """A tokenizer like Llama-2's, with its actual decoder, which drops the first space."""
    from tokenizers import decoders

    tokenizer = metaspace_tokenizer(LLAMA_2, sentences)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.backend_tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, Any]:
    """Tokenizers of every family, each trained on a few sentences."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    sentences = ["the red lamp means low battery", "a bird in the hand, the lamp on the table", "don't charge it for long"]
    wordpiece = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    wordpiece.pre_tokenizer = pre_tokenizers.Whitespace()
    wordpiece.decoder = decoders.WordPiece(cleanup=False)
    wordpiece.train_from_iterator(sentences, trainers.WordPieceTrainer(vocab_size=60, special_tokens=["[UNK]", "[SEP]"]))
    suffix = Tokenizer(models.BPE(unk_token="[UNK]", end_of_word_suffix="</w>"))
    suffix.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    suffix.decoder = decoders.BPEDecoder()
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=["[UNK]", "[SEP]"], end_of_word_suffix="</w>")
    suffix.train_from_iterator(sentences, trainer)
    unigram = Tokenizer(models.Unigram())
    unigram.normalizer = normalizers.NFC()
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.decoder = decoders.Metaspace()
    unigram.train_from_iterator(
        sentences, trainers.UnigramTrainer(vocab_size=60, special_tokens=["[UNK]", "[SEP]"], unk_token="[UNK]")
    )
    words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.train_from_iterator(sentences, trainers.WordLevelTrainer(special_tokens=["[UNK]", "[SEP]"]))
    backends = {"wordpiece": wordpiece, "suffix": suffix, "unigram": unigram, "words": words}
    made = {
        name: PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", sep_token="[SEP]")
        for name, backend in backends.items()
    }
    return {**made, "llama": llama(sentences)}


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_a_conversation_in_every_template_style(style: Style, encoders: dict[str, ConversationEncoder]) -> None:
    encoder = encoders[style.name]
    row = one_row(encoder, TALK)
    found = segments(encoder.tokenizer, row.input_ids, row.labels)
    assert "".join(segment.text for segment in found) == text_of(encoder.tokenizer, row.input_ids)
    assert sum(segment.tokens for segment in found) == len(row.input_ids)
    assert sum(segment.tokens for segment in found if segment.supervised) == sum(label != IGNORED for label in row.labels)
    if not style.rstrip:
        assert learned(found) == style.supervised(TALK)


def test_special_tokens_stand_alone_and_text_that_spells_one_does_not(tiny_tokenizer: Any) -> None:
    row = one_row(ConversationEncoder(tiny_tokenizer), talk([("user", "say <|im_end|>"), ("assistant", "no <|im_end|>")]))
    found = segments(tiny_tokenizer, row.input_ids, row.labels)
    assert [(segment.text, segment.supervised, segment.special) for segment in found] == [
        ("<|im_start|>", False, True),
        ("system\nYou are a helpful assistant.", False, False),
        ("<|im_end|>", False, True),
        ("\n", False, False),
        ("<|im_start|>", False, True),
        ("user\nsay <|im_end|>", False, False),
        ("<|im_end|>", False, True),
        ("\n", False, False),
        ("<|im_start|>", False, True),
        ("assistant\n", False, False),
        ("no <|im_end|>", True, False),
        ("<|im_end|>", True, True),
        ("\n", False, False),
    ]
    assert all(segment.tokens == 1 for segment in found if segment.special)


def test_special_tokens_in_a_row_are_told_apart(tiny_tokenizer: Any) -> None:
    start = tiny_tokenizer.convert_tokens_to_ids("<|im_start|>")
    found = segments(tiny_tokenizer, [start, start], [IGNORED, IGNORED])
    assert found == [Segment("<|im_start|>", False, True, 1)] * 2


def test_bytes_of_a_character_that_the_mask_cuts_are_spelled(tiny_tokenizer: Any) -> None:
    ids = tiny_tokenizer("a€b")["input_ids"]
    assert len(ids) == 5
    whole = segments(tiny_tokenizer, ids, ids)
    assert whole == [Segment("a€b", True, False, 5)]
    cut = segments(tiny_tokenizer, ids, [IGNORED, IGNORED, *ids[2:]])
    assert cut == [Segment("a<0xE2>", False, False, 2), Segment("<0x82><0xAC>b", True, False, 3)]


def test_a_replacement_character_that_the_text_has_stays_one(tiny_tokenizer: Any) -> None:
    ids = tiny_tokenizer("a\ufffdb")["input_ids"]
    assert segments(tiny_tokenizer, ids, ids) == [Segment("a\ufffdb", True, False, len(ids))]


def test_a_special_token_of_letters_from_the_byte_alphabet_is_spelled_as_it_is(tiny_tokenizer: Any) -> None:
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(tiny_tokenizer.backend_tokenizer.to_str())
    backend.add_special_tokens([AddedToken("é", normalized=False), AddedToken("<|begin▁of|>", normalized=False)])
    backend.add_tokens([AddedToken("ñ", normalized=False)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    ids = tokenizer("é<|begin▁of|>ñ", add_special_tokens=False)["input_ids"]
    assert segments(tokenizer, ids, ids) == [
        Segment("é", True, True, 1),
        Segment("<|begin▁of|>", True, True, 1),
        Segment("ñ", True, False, 1),
    ]


def test_no_token_no_segment(tiny_tokenizer: Any) -> None:
    assert segments(tiny_tokenizer, [], []) == []


def test_words_keep_the_space_before_them_wherever_the_mask_begins(tokenizers: dict[str, Any]) -> None:
    text = "the red lamp"
    for name, tokenizer in tokenizers.items():
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text, name
        for start in range(len(ids)):
            found = segments(tokenizer, ids, [IGNORED] * start + ids[start:])
            assert "".join(segment.text for segment in found) == text, (name, start)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_mask_over_any_tokens_adds_up_to_what_decoding_gives(data: st.DataObject, tokenizers: dict[str, Any]) -> None:
    name = data.draw(st.sampled_from(sorted(set(tokenizers) - {"llama"})))
    tokenizer = tokenizers[name]
    ids = data.draw(st.lists(st.sampled_from(range(FIRST_ORDINARY, len(tokenizer))), min_size=1, max_size=12))
    labels = [token if data.draw(st.booleans()) else IGNORED for token in ids]
    decoded = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert "".join(segment.text for segment in segments(tokenizer, ids, labels)) == decoded


@settings(max_examples=60, deadline=None)
@given(text=st.text().filter(lambda text: "<0x" not in text), data=st.data())
def test_any_text_with_any_mask_is_shown_in_full(text: str, data: st.DataObject, tiny_tokenizer: Any) -> None:
    ids = tiny_tokenizer(text, split_special_tokens=True)["input_ids"]
    labels = [token if data.draw(st.booleans()) else IGNORED for token in ids]
    found = segments(tiny_tokenizer, ids, labels)
    assert shown_bytes(found) == text.encode()
    kinds = [(segment.supervised, segment.special) for segment in found]
    assert all(first != second for first, second in itertools.pairwise(kinds))


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet=st.sampled_from("the lamp\n\té€🏡▁")), data=st.data())
def test_any_text_through_byte_fallback(text: str, data: st.DataObject, tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers["llama"]
    ids = tokenizer("</s>" + text, add_special_tokens=False)["input_ids"]
    labels = [token if data.draw(st.booleans()) else IGNORED for token in ids]
    # SentencePiece writes its own mark and a space alike.
    assert shown_bytes(segments(tokenizer, ids, labels)) == ("</s>" + text.replace("▁", " ")).encode()


def test_a_document_that_begins_in_the_middle_of_a_character(tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers["llama"]
    ids = tokenizer.convert_tokens_to_ids(["<0x82>", "<0xAC>", "<0xC3>", "<0xA9>", "▁"])
    assert segments(tokenizer, ids, ids) == [Segment("<0x82><0xAC>é ", True, False, 5)]


def test_a_sample_has_its_place_and_counts(tiny_tokenizer: Any) -> None:
    ids = tiny_tokenizer("red lamp")["input_ids"]
    labels = [IGNORED, *ids[1:]]
    assert sample(tiny_tokenizer, "rows.jsonl", 7, "validation", ids, labels) == Sample(
        "rows.jsonl", 7, "validation", len(ids), len(ids) - 1, segments(tiny_tokenizer, ids, labels)
    )


def test_kept_samples_are_read_back(tmp_path: Path) -> None:
    kept = [
        Sample("a.jsonl", line, "train", 3, 2, [Segment("<s>", False, True, 1), Segment("x\n", True, False, 2)])
        for line in (1, 2, 3)
    ]
    write_json_lines(tmp_path / SAMPLES_FILE, map(asdict, kept))
    assert read_samples(tmp_path, 2) == kept[:2]
    assert read_samples(tmp_path, 9) == kept
    assert read_samples(tmp_path, 0) == []


def test_the_built_in_model() -> None:
    from transformers import AutoTokenizer

    # Looked up now: tests that download it may have run just before.
    found = sorted(CACHE.glob("smollm2-135m-*/tokenizer.json"))
    if not found:
        pytest.skip("the built-in model is not in the cache")
    folder = found[0].parent
    tokenizer = AutoTokenizer.from_pretrained(folder)
    row = one_row(ConversationEncoder(tokenizer), TALK)
    found = segments(tokenizer, row.input_ids, row.labels)
    assert "".join(segment.text for segment in found) == text_of(tokenizer, row.input_ids)
    assert learned(found) == " Là-bas 👩\u200d🚀!\n<|im_end|>的<|im_end|>"
    assert [segment.text for segment in found if segment.special] == ["<|im_start|>", "<|im_end|>"] * 5
