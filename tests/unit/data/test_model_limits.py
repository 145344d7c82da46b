"""prepare knows from the model's config what the model cannot take."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmft_cli.base.errors import ConfigError, DataError, ModelError
from llmft_cli.base.reporter import Silent
from llmft_cli.data.prepare import prepare
from llmft_cli.data.report.summary import PrepareResult
from llmft_cli.run_dir.run import RunDir
from llmft_cli.settings import config

Prepare = Callable[..., PrepareResult]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run")


@pytest.fixture
def model(tmp_path: Path, tiny_tokenizer: Any) -> Callable[..., Path]:
    """Makes a model directory without weights, with this config and added tokens."""

    def make(*added: str, special: bool = True, template: str | None = None, **values: Any) -> Path:
        from transformers import PreTrainedTokenizerFast

        folder = tmp_path / "model"
        tiny_tokenizer.save_pretrained(folder)
        if added or template:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
            tokenizer.add_tokens(list(added), special_tokens=special)
            tokenizer.chat_template = template or tokenizer.chat_template
            tokenizer.save_pretrained(folder)
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", **values}))
        return folder

    return make


@pytest.fixture
def do_prepare(run: RunDir, tmp_path: Path) -> Prepare:
    def do(rows: list[dict[str, Any]], model: Path, length_given: bool = False, **flags: Any) -> PrepareResult:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = config.resolve({"model": str(model), "val_size": 0, **flags})
        return prepare(run, [str(file)], settings, Silent(), length_given=length_given)

    return do


def chat(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "Yes."}]}


GPT2 = {"model_type": "gpt2", "n_positions": 64}


def test_without_a_length_rows_are_as_long_as_the_model_takes(run: RunDir, model: Any, do_prepare: Prepare) -> None:
    """The default of 2,048 tokens made `train` fail inside a model with fewer positions."""
    result = do_prepare([chat("short"), chat("long " * 60)], model(**GPT2))
    assert (result.rows["kept"], result.rows["overlength"]) == (1, 1)
    assert run.saved_settings("prepare")["max_seq_length"] == 64
    assert result.lengths["max"] <= 64
    assert "more than --max-seq-length 64" in (run.data / "rejected.jsonl").read_text()


def test_packed_sequences_are_no_longer_either(run: RunDir, model: Any, do_prepare: Prepare) -> None:
    result = do_prepare([chat(f"number {number}") for number in range(20)], model(**GPT2))
    assert result.packing["length"] == 64


@pytest.mark.parametrize(("length", "given"), [(65, False), (2048, True)])
def test_asked_for_more_than_the_model_takes(length: int, given: bool, run: RunDir, model: Any, do_prepare: Prepare) -> None:
    with pytest.raises(ConfigError, match=f"^--max-seq-length {length} is more than the 64 positions of"):
        do_prepare([chat("short")], model(**GPT2), max_seq_length=length, length_given=given)
    assert not run.path.exists()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model_type": "t5"}, "is not a causal language model"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"already quantised \(gptq\)"),
        ({"model_type": "no-such-type"}, "the config of .* cannot be read"),
    ],
)
def test_a_model_that_cannot_be_trained_is_refused_at_once(
    values: dict[str, Any], said: str, run: RunDir, model: Any, do_prepare: Prepare
) -> None:
    with pytest.raises(ModelError, match=said):
        do_prepare([chat("short")], model(**values))
    assert not run.path.exists()


def test_a_template_token_without_an_embedding(run: RunDir, model: Any, do_prepare: Prepare) -> None:
    """Tokens were added for a template, and the model was not resized: training failed with an index out of range."""
    template = "{% for message in messages %}<|turn|>{{ message['content'] }}<|im_end|>{% endfor %}"
    folder = model("<|turn|>", template=template, vocab_size=400)
    with pytest.raises(ModelError) as raised:
        do_prepare([chat("short")], folder)
    assert raised.value.message == (
        f"the chat template adds the token '<|turn|>' with id 400, but {folder} has embeddings for 400 tokens only "
        "(vocab_size in its config.json)"
    )
    assert "--chat-template FILE.jinja" in raised.value.hint
    assert not run.path.exists()


def test_other_rows_than_conversations_do_not_need_the_template(model: Any, do_prepare: Prepare) -> None:
    template = "{% for message in messages %}<|turn|>{{ message['content'] }}<|im_end|>{% endfor %}"
    folder = model("<|turn|>", template=template, vocab_size=400)
    assert do_prepare([{"text": "The sky is blue."}], folder).rows["kept"] == 1


def test_a_documents_last_token_without_an_embedding(model: Any, do_prepare: Prepare, tiny_tokenizer: Any) -> None:
    rows = tiny_tokenizer.eos_token_id
    with pytest.raises(ModelError, match=rf"^the tokenizer adds the token '<\|im_end\|>' with id {rows}, but"):
        do_prepare([{"text": "a b"}], model(vocab_size=rows))


def test_a_text_with_a_token_without_an_embedding_is_a_bad_row(run: RunDir, model: Any, do_prepare: Prepare) -> None:
    folder = model("zebra", special=False, vocab_size=400)
    result = do_prepare([*(chat(f"horse {number}") for number in range(5)), chat("a zebra")], folder, max_rejected=0.5)
    assert (result.rows["kept"], result.rows["rejected"]) == (5, 1)
    (rejected,) = map(json.loads, (run.data / "rejected.jsonl").read_text().splitlines())
    assert rejected["line"] == 6
    assert rejected["reason"] == (
        f"the row has the token 'zebra' with id 400, but {folder} has embeddings for 400 tokens only "
        "(vocab_size in its config.json)"
    )


def test_a_row_of_token_ids_without_embeddings(model: Any, do_prepare: Prepare) -> None:
    with pytest.raises(DataError) as raised:
        do_prepare([{"input_ids": [5, 399, 7]}], model(vocab_size=320))
    assert raised.value.message.startswith("no usable rows (1 read, 1 rejected, 0 too long); first: ")
    assert "with id 399, but" in raised.value.message
    assert raised.value.message.endswith("has embeddings for 320 tokens only (vocab_size in its config.json)")


def test_ids_that_no_row_uses_do_no_harm(model: Any, do_prepare: Prepare) -> None:
    """Many models have a padding token beyond their embeddings."""
    assert do_prepare([chat("short")], model("<pad>", vocab_size=400)).rows["kept"] == 1


def test_two_rows_held_out_of_two(run: RunDir, model: Any, do_prepare: Prepare) -> None:
    with pytest.raises(DataError, match=r"^--val-size 2 leaves no row to train on: there are only 2 usable rows$"):
        do_prepare([chat("one"), chat("two")], model(), val_size=2)
    assert not run.path.exists()
