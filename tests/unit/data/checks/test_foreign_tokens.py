"""Token ids of this tokenizer and of others, on prose, code and scripts that they have never seen."""

from __future__ import annotations

import heapq
import inspect
import json
import textwrap
from pathlib import Path
from typing import Any

import pytest

from llmft_cli.data.checks import CheckedRow, Checks, Finding

ROOT = Path(__file__).parents[4]
SPECIAL = ["<s>", "</s>", "<|end|>"]
RUSSIAN = [
    "Сегодня хорошая погода, мы пойдём на рынок за овощами.",
    "Искусственный интеллект меняет мир вокруг нас, говорят учёные.",
    "Эта книга рассказывает про человека, который искал своё место.",
]
CHINESE = ["今天天气很好。我们去市场买菜。", "人工智能正在改变世界。", "长城是中国古代的伟大建筑。"]


def paragraphs(text: str) -> list[str]:
    return [part for part in text.split("\n\n") if len(part) > 40]


def sample_answers() -> list[str]:
    rows = map(json.loads, (ROOT / "sample_data/chat.jsonl").read_text(encoding="utf-8").splitlines())
    return [row["messages"][-1]["content"] for row in rows]


DOCUMENTS = paragraphs((ROOT / "sample_data/documents.txt").read_text(encoding="utf-8"))
PROSE = [" ".join(sample_answers()[start : start + 3]) for start in range(0, 240, 3)]
CODE = paragraphs(inspect.getsource(textwrap) + inspect.getsource(heapq))
TEXTS = {"prose": PROSE, "code": CODE[:90], "russian": RUSSIAN, "chinese": CHINESE, "emoji": ["so 😀 good 🎉!"] * 20}


def trained(kind: str, size: int, texts: list[str]) -> Any:
    """A BPE tokenizer with bytes as GPT-2 has them (`bytes`), or as SentencePiece has them (`pieces`)."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if kind == "bytes":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        initial, special = pre_tokenizers.ByteLevel.alphabet(), SPECIAL
    else:
        backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        initial, special = ["▁"], ["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=initial, show_progress=False)
    backend.train_from_iterator([part for text in texts for part in text.splitlines()], trainer)
    if kind == "pieces":  # training makes special tokens of the bytes
        backend = without_special_bytes(backend)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def without_special_bytes(backend: Any) -> Any:
    import json

    from tokenizers import Tokenizer

    saved = json.loads(backend.to_str())
    saved["added_tokens"] = [token for token in saved["added_tokens"] if not token["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(saved))


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Any]:
    return {
        "bytes": trained("bytes", 900, DOCUMENTS),
        "other bytes": trained("bytes", 800, CODE),
        "pieces": trained("pieces", 1000, DOCUMENTS),
        "other pieces": trained("pieces", 900, CODE),
    }


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def row(ids: list[int], line: int, source: str = "ids.jsonl", edges: tuple[int, ...] | None = None) -> CheckedRow:
    return CheckedRow(source, line, [], [], ids, len(ids) - 1, (1, len(ids)) if edges is None else edges)


def foreign(rows: list[CheckedRow], tokenizer: Any, batch: int = 1000) -> Finding | None:
    checks = Checks(frozenset(), tokenizer)
    for start in range(0, len(rows), batch):
        checks.look_at(rows[start : start + batch])
    return next((finding for finding in checks.findings() if finding.check == "foreign_tokens"), None)


@pytest.mark.parametrize("name", ["bytes", "other bytes", "pieces", "other pieces"])
@pytest.mark.parametrize("kind", TEXTS)
def test_the_right_tokenizer(tokenizers: dict[str, Any], name: str, kind: str) -> None:
    tokenizer = tokenizers[name]
    whole = [ids_of(tokenizer, text) for text in TEXTS[kind]]
    bos, eos, end = tokenizer.convert_tokens_to_ids(SPECIAL)
    windows = [ids[5:45] for ids in whole if len(ids) > 45]
    chats = [[bos, *ids, end, *whole[0][:40], eos] for ids in whole]
    # Prompt and answer tokenised apart: marked by their labels, or not.
    words = [(" ".join(text.split()[:4]), " ".join(text.split()[4:])) for text in TEXTS[kind]]
    halves = [(ids_of(tokenizer, first), ids_of(tokenizer, second)) for first, second in words]
    for rows in (whole, windows, chats, [first + second for first, second in halves]):
        assert foreign([row(ids, line) for line, ids in enumerate(rows, 1) if len(ids) > 1], tokenizer) is None
    labelled = [row(a + b, line, edges=(len(a), len(a + b))) for line, (a, b) in enumerate(halves, 1) if a + b]
    assert foreign(labelled, tokenizer) is None


@pytest.mark.parametrize("name", ["bytes", "other bytes", "pieces", "other pieces"])
@pytest.mark.parametrize("writer", ["bytes", "other bytes", "pieces", "other pieces"])
@pytest.mark.parametrize("kind", ["prose", "code"])
def test_another_tokenizer(tokenizers: dict[str, Any], name: str, writer: str, kind: str) -> None:
    size = len(tokenizers[name])
    rows = [[min(number, size - 1) for number in ids_of(tokenizers[writer], text)] for text in TEXTS[kind]]
    finding = foreign([row(ids, line) for line, ids in enumerate(rows, 1)], tokenizers[name])
    if name == writer:
        assert finding is None
        return
    assert finding is not None
    assert (finding.level, finding.count) == ("warning", len(rows))
    assert "token ids look like those of another tokenizer" in finding.meaning
    assert [example["line"] for example in finding.examples] == [1, 2, 3]


def test_only_the_wrong_source_is_named(tokenizers: dict[str, Any]) -> None:
    right, wrong = tokenizers["bytes"], tokenizers["other bytes"]
    rows = [row(ids_of(right, text), line, "right.jsonl") for line, text in enumerate(PROSE, 1)]
    rows += [row(ids_of(wrong, text), line, "wrong.jsonl") for line, text in enumerate(PROSE, 1)]
    finding = foreign(rows, right)
    assert finding is not None
    assert {example["source"] for example in finding.examples} == {"wrong.jsonl"}
    assert "of 100 sampled rows" in finding.meaning
    assert foreign(rows, right, batch=7) == finding


def test_one_odd_row_is_not_enough(tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers["bytes"]
    rows = [row(ids_of(tokenizer, text), line) for line, text in enumerate(PROSE, 1)]
    assert foreign([*rows, row([300, 5, 301, 5, 302, 5, 303], 31)], tokenizer) is None
    assert foreign([row([300, 5, 301, 5], 1)], tokenizer) is None
    assert foreign([], tokenizer) is None


def test_a_tokenizer_that_loses_characters_is_not_asked(tokenizers: dict[str, Any]) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<unk>": 0, "It": 1, "is": 2, "now": 3}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    lossy = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    assert foreign([row([1, 2, 3, 1] * 10, 1)], lossy) is None


def test_conversations_are_not_looked_at(tokenizers: dict[str, Any]) -> None:
    ids = ids_of(tokenizers["other bytes"], PROSE[0])
    conversation = CheckedRow("rows.jsonl", 1, ["a", "b"], ["b"], ids, 4)
    assert foreign([conversation], tokenizers["bytes"]) is None
