"""Prompt files: what ends a line, which rows are refused in one error, and what is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmft_cli.base.errors import DataError
from llmft_cli.base.reporter import Silent
from llmft_cli.data.encoding.encoder import ConversationEncoder
from llmft_cli.data.output import held_out_prompt
from llmft_cli.data.store import HELD_OUT_FILE, write_json_lines
from llmft_cli.evaluation.prompts import encode_prompts, held_out_prompts, read_prompts
from llmft_cli.run_dir.run import RunDir

# Everything that `str.splitlines` takes for the end of a line, besides line feed and carriage return.
SEPARATORS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def file_of(folder: Path, *rows: Any, name: str = "p.jsonl") -> Path:
    path = folder / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows))
    return path


def refusal(path: Path) -> tuple[str, str]:
    with pytest.raises(DataError) as caught:
        read_prompts(path, Silent())
    return caught.value.message.replace(f"{path.parent}/", ""), caught.value.hint


@pytest.mark.parametrize("separator", "\u2028\u2029\x85")
def test_line_separators_of_unicode_end_no_row(separator: str, tmp_path: Path) -> None:
    """They stand in JSON as they are: a row with one ended in "malformed JSON"."""
    text = f"first{separator}second"
    (prompt,) = read_prompts(file_of(tmp_path, {"messages": [{"role": "user", "content": text}], "expected": text}), Silent())
    assert (prompt.messages[0]["content"], prompt.expected) == (text, [text])


def test_the_runs_own_held_out_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    """`eval` refused what `prepare` had held out."""
    said = [f"Say {separator} twice" for separator in SEPARATORS]
    rows = [[{"role": "user", "content": text}, {"role": "assistant", "content": f"{text}{text}"}] for text in said]
    run = RunDir(tmp_path)
    run.data.mkdir()
    write_json_lines(run.data / HELD_OUT_FILE, map(held_out_prompt, rows))
    prompts = held_out_prompts(run, Silent())
    assert [prompt.messages for prompt in prompts] == [row[:1] for row in rows]
    assert [prompt.expected for prompt in prompts] == [[text * 2] for text in said]
    assert prompts[1].where == f"{run.data / HELD_OUT_FILE} line 2"


def test_a_text_file_of_three_lines_is_three_prompts(tmp_path: Path) -> None:
    """It became one prompt for each separator, too."""
    texts = [f"one{SEPARATORS}one", "two", "three\u2028three"]
    path = tmp_path / "p.txt"
    for ending in ("\n", "\r\n", "\r"):
        path.write_bytes(b"\xef\xbb\xbf" + ending.join([*texts, "", " "]).encode())
        prompts = read_prompts(path, Silent())
        assert [prompt.messages for prompt in prompts] == [[{"role": "user", "content": text}] for text in texts]
        assert [prompt.where for prompt in prompts] == [f"{path} line {number}" for number in (1, 2, 3)]
        assert [prompt.expected for prompt in prompts] == [None] * 3


def test_json_files_and_compressed_files_are_read_as_by_prepare(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "expected": 1}, {"prompt": "b", "expected": [True, "x"]}]
    for name in ("p.json", "p.jsonl"):
        path = file_of(tmp_path, json.dumps(rows, indent=1), name=name)
        assert [prompt.expected for prompt in read_prompts(path, Silent())] == [["1"], ["true", "x"]]


def test_all_rows_that_are_no_prompts_are_one_error_with_the_first(tmp_path: Path) -> None:
    good = {"prompt": "a"}
    hint = "correct or remove them, or give other prompts: llmft eval --prompts FILE"
    assert refusal(file_of(tmp_path, good, "", {"ask": "b"}, good, '{"prompt":', "[" * 100_000)) == (
        "p.jsonl line 3: there is no prompt among the keys 'ask' (and 2 more)",
        hint,
    )
    assert refusal(file_of(tmp_path, good, '{"prompt": "a", "prompt": "b"}')) == (
        "p.jsonl line 2: duplicate key 'prompt' in an object",
        hint,
    )
    (tmp_path / "q.txt").write_bytes(b"fine\ncaf\xe9\n")
    assert refusal(tmp_path / "q.txt") == ("q.txt line 2: not UTF-8 (byte 0xe9 in column 4)", "save it as UTF-8")


def test_files_that_hold_no_prompts(tmp_path: Path) -> None:
    for name, content, message in [
        ("p.jsonl", b"", "p.jsonl is empty"),
        ("p.txt", b" \n\n", "p.txt is empty"),
        ("p.jsonl", "{}".encode("utf-16"), "p.jsonl is UTF-16, not UTF-8"),
        ("p.csv", b"prompt\na\n", "p.csv is not a prompt file"),
    ]:
        (tmp_path / name).write_bytes(content)
        assert refusal(tmp_path / name)[0] == message
    assert refusal(tmp_path / "missing.jsonl")[0] == "missing.jsonl cannot be read: No such file or directory"
    (tmp_path / "folder.jsonl").mkdir()
    assert refusal(tmp_path / "folder.jsonl")[0] == "folder.jsonl cannot be read: Is a directory"


def test_choices_and_missing_answers_are_told_once(tmp_path: Path) -> None:
    both = {"prompt": "a", "expected": "x", "answer": "y"}
    reporter = Notes()
    path = file_of(tmp_path, both, both, {"prompt": "a", "gold": "x"}, {"prompt": "b"})
    read_prompts(path, reporter)
    assert reporter.notes == [
        f"{path}: expected is used as the answer, and not answer (rows: 2)",
        "2 of 4 prompts have no expected answer; name the right answer `expected` to score it: "
        f"{path} line 3 has the keys 'prompt', 'gold'",
    ]
    reporter = Notes()
    read_prompts(file_of(tmp_path, {"question": "a", "label": "x"}), reporter)
    assert reporter.notes == []


STRICT = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no system messages') }}{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_prompts_that_the_template_refuses_are_one_error_with_line(tmp_path: Path, tiny_tokenizer: Any) -> None:
    tiny_tokenizer = type(tiny_tokenizer)(
        tokenizer_object=tiny_tokenizer.backend_tokenizer, eos_token="<|im_end|>", chat_template=STRICT
    )
    encoder = ConversationEncoder(tiny_tokenizer)
    system = {"prompt": "a", "system": "be brief"}
    path = file_of(tmp_path, {"prompt": "a"}, system, system, {"prompt": "b"})
    prompts = read_prompts(path, Silent())
    with pytest.raises(DataError) as caught:
        encode_prompts(encoder, prompts)
    message = f"{path} line 2 cannot be rendered: the chat template rejects this conversation: no system messages (and 1 more)"
    assert caught.value.message == message
    assert len(encode_prompts(encoder, [prompts[0], prompts[3]])) == 2


def test_turns_of_a_prompt_are_merged_where_those_of_the_run_are(tmp_path: Path) -> None:
    turn = {"role": "user", "content": "q"}
    path = file_of(tmp_path, {"messages": [turn, turn], "expected": "a"})
    (apart,), (merged,) = read_prompts(path, Silent()), read_prompts(path, Silent(), merge_turns=True)
    assert (apart.messages, merged.messages) == ([turn, turn], [{**turn, "content": "q\n\nq"}])
