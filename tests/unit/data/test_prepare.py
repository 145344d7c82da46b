from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmft_cli.base.errors import ConfigError, DataError, ModelError, StageError
from llmft_cli.base.files import hash_file
from llmft_cli.base.reporter import Silent
from llmft_cli.data import store
from llmft_cli.data.encoding.encoder import ConversationEncoder
from llmft_cli.data.forms.examples import IGNORED
from llmft_cli.data.prepare import prepare
from llmft_cli.data.report.summary import PrepareResult
from llmft_cli.run_dir.run import RunDir
from llmft_cli.settings import config

Prepare = Callable[..., PrepareResult]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run")


@pytest.fixture
def do_prepare(run: RunDir, tokenizer_dir: Path) -> Prepare:
    def do(*sources: Path, overwrite: bool = False, into: RunDir = run, **flags: Any) -> PrepareResult:
        settings = config.resolve({"model": str(tokenizer_dir), **flags})
        return prepare(into, [str(source) for source in sources], settings, Silent(), overwrite)

    return do


def chat(number: int) -> dict[str, Any]:
    question, answer = f"Question {number}?", f"Answer {number}."
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write_lines(rows: list[Any], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
        return path

    return write_lines


def lines_of(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_everything_that_prepare_leaves(run: RunDir, write: Any, do_prepare: Prepare, tokenizer_dir: Path) -> None:
    data = write([chat(number) for number in range(20)])
    result = do_prepare(data, val_size=0.2, seed=7)
    assert result.rows == {"read": 20, "kept": 20, "rejected": 0, "duplicates": 0, "overlength": 0, "near_duplicates": 0}
    assert result.splits == {"train": 16, "validation": 4}
    assert result.forms == {"messages": 20}
    train, validation = store.load_split(run.data, "train"), store.load_split(run.data, "validation")
    assert train is not None
    assert validation is not None
    assert train.column_names == ["input_ids", "labels"]
    assert len(train) == 16 > result.packing["rows"]
    assert len(validation) == 4
    assert result.tokens["total"] == sum(map(len, [*train["input_ids"], *validation["input_ids"]]))
    held_out = lines_of(run.data / "held_out.jsonl")
    assert len(held_out) == 4
    for row in held_out:
        number = int(row["expected"].split()[1].rstrip("."))
        assert row == {"messages": chat(number)["messages"][:1], "expected": f"Answer {number}."}
    assert lines_of(run.data / "rejected.jsonl") == []
    assert json.loads((run.data / "report.json").read_text()) == vars(result)
    assert (run.tokenizer / "tokenizer.json").read_bytes() == (tokenizer_dir / "tokenizer.json").read_bytes()


def test_the_ledger_entry(run: RunDir, write: Any, do_prepare: Prepare, tokenizer_dir: Path) -> None:
    data = write([chat(number) for number in range(4)])
    result = do_prepare(data, seed=7)
    entry = run.require("prepare")
    assert entry["status"] == "done"
    assert entry["config"]["model"] == str(tokenizer_dir)
    assert entry["config"]["seed"] == entry["seed"] == 7
    assert entry["inputs"] == {str(data): hash_file(data)}
    assert set(entry["outputs"]) == {"data", "tokenizer"}
    assert entry["model"] == {"name": str(tokenizer_dir), "revision": None}
    assert entry["sources"] == [str(data)]
    assert (entry["rows"], entry["tokens"], entry["splits"]) == (result.rows, result.tokens, result.splits)
    assert entry["versions"]["transformers"]


def test_the_split_is_the_seeds(tmp_path: Path, write: Any, do_prepare: Prepare) -> None:
    data = write([chat(number) for number in range(30)])
    held_out = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        do_prepare(data, into=RunDir(tmp_path / name), seed=seed, val_size=5)
        held_out.append((tmp_path / name / "data" / "held_out.jsonl").read_text())
    assert held_out[0] == held_out[1] != held_out[2]


@pytest.mark.parametrize(
    ("rows", "val_size", "splits"),
    [
        (1, 0.05, (1, 0)),
        (2, 0.05, (1, 1)),
        (10, 0.05, (9, 1)),
        (10, 0, (10, 0)),
        (10, 0.3, (7, 3)),
        (10, 4, (6, 4)),
        (3, 2, (1, 2)),
    ],
)
def test_split_sizes(rows: int, val_size: float, splits: tuple[int, int], write: Any, do_prepare: Prepare, run: RunDir) -> None:
    result = do_prepare(write([chat(number) for number in range(rows)]), val_size=val_size)
    assert (result.splits["train"], result.splits["validation"]) == splits
    assert (store.load_split(run.data, "validation") is None) == (splits[1] == 0)


def test_bad_long_and_repeated_rows_are_set_aside(run: RunDir, write: Any, do_prepare: Prepare) -> None:
    long = {"prompt": "q", "completion": "word " * 200}
    data = write([chat(1), '{"messages": ', chat(1), long, chat(2), {"text": ""}])
    result = do_prepare(data, max_rejected=0.5, max_seq_length=100)
    assert result.rows == {"read": 6, "kept": 2, "rejected": 2, "duplicates": 1, "overlength": 1, "near_duplicates": 0}
    rejected = lines_of(run.data / "rejected.jsonl")
    assert [(row["line"], row["reason"]) for row in rejected if row["line"] != 4] == [
        (2, "malformed JSON: unexpected end"),
        (6, "text is empty"),
    ]
    assert {row["source"] for row in rejected} == {str(data)}
    assert rejected[1]["reason"].endswith(" tokens, more than --max-seq-length 100")
    assert result.rejected_reasons == [
        {"reason": "malformed JSON: unexpected end", "count": 1, "first": [f"{data}:2"]},
        {"reason": "text is empty", "count": 1, "first": [f"{data}:6"]},
    ]


def test_keys_that_no_format_reads_are_counted(run: RunDir, write: Any, do_prepare: Prepare) -> None:
    """Keys such as `score` were ignored without a word."""
    scored = [{**chat(number), "score": number, "id": number} for number in range(4)]
    named = {"messages": [{**turn, "mood": "calm"} for turn in chat(9)["messages"]], "score": None}
    refused = {**chat(10), "images": ["x.png"], "size": 3}
    result = do_prepare(write([*scored, named, refused]), max_rejected=0.5)
    assert result.ignored_keys == [
        {"key": "score", "rows": 4, "harmless": False},
        {"key": "messages[].mood", "rows": 1, "harmless": False},
        {"key": "id", "rows": 4, "harmless": True},
    ]
    assert [row["reason"] for row in result.rejected_reasons] == [
        "the row has an image, which a text model cannot learn from (images)"
    ]
    page = (run.data / "report.html").read_text(encoding="utf-8")
    assert "messages[].mood" in page
    again = do_prepare(write([*scored, named, refused]), max_rejected=0.5)
    assert again == result


def test_an_answer_that_is_marked_as_wrong_is_not_in_the_labels(run: RunDir, write: Any, do_prepare: Prepare) -> None:
    """`loss: false` of an answer was ignored: the model learned the wrong answer."""
    turns = [
        {"role": "user", "content": "How many stations are there?"},
        {"role": "assistant", "content": "ninety", "loss": False},
        {"role": "user", "content": "Are you sure?"},
        {"role": "assistant", "content": "seven", "loss": True},
    ]
    do_prepare(write([{"messages": turns}]), val_size=0)
    (sample,) = lines_of(run.data / "samples.jsonl")
    learned = "".join(segment["text"] for segment in sample["segments"] if segment["supervised"])
    assert "seven" in learned
    assert "ninety" not in learned


def test_a_document_is_split_into_parts_whose_first_token_is_not_supervised(
    run: RunDir, tmp_path: Path, do_prepare: Prepare, tiny_tokenizer: Any
) -> None:
    text = " ".join(f"The station number {number} stands in the garden." for number in range(20))
    (tmp_path / "a.txt").write_text(text)
    result = do_prepare(tmp_path / "a.txt", max_seq_length=64, val_size=0)
    ids = ConversationEncoder(tiny_tokenizer).document(text)
    parts = [ids[start : start + 64] for start in range(0, len(ids), 64)]
    train = store.load_split(run.data, "train")
    assert train is not None
    assert train["input_ids"] == [part for part in parts if len(part) > 1]
    assert train["labels"] == [[IGNORED, *part[1:]] for part in parts if len(part) > 1]
    assert result.documents_split == 1
    assert result.rows["read"] == 1
    assert ids[0] == tiny_tokenizer.bos_token_id
    assert ids[-1] == tiny_tokenizer.eos_token_id


def test_a_text_of_one_token_is_rejected_not_lost(
    run: RunDir, write: Any, do_prepare: Prepare, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer.backend_tokenizer)
    bare.save_pretrained(tmp_path / "bare")
    (tmp_path / "bare" / "config.json").write_text('{"model_type": "llama"}')
    result = do_prepare(write([{"text": "a"}, {"text": "a station"}]), model=str(tmp_path / "bare"), max_rejected=1)
    assert result.rows == {"read": 2, "kept": 1, "rejected": 1, "duplicates": 0, "overlength": 0, "near_duplicates": 0}
    assert lines_of(run.data / "rejected.jsonl")[0]["reason"] == "the text is a single token, with nothing to learn"


def test_every_reason_in_rejected_jsonl_is_short(run: RunDir, write: Any, do_prepare: Prepare, tmp_path: Path) -> None:
    template = tmp_path / "strict.jinja"
    template.write_text("{{ raise_exception('not this:\\n' + messages[0].content) if messages | length > 2 else 'a' }}")
    talk = [{"role": "user", "content": 999 * "long "}, {"role": "assistant", "content": "a"}]
    rows = [{"text": "A document."}, {"messages": 2 * talk}, {f"{999 * 'k'}{n}": 1 for n in range(99)}, '{"a": ' + 99 * "9e"]
    rows.append('{"k": {"' + 999 * "k" + '": 1, "' + 999 * "k" + '": 1}}')
    do_prepare(write(rows), chat_template=str(template), max_rejected=1)
    reasons = [row["reason"] for row in lines_of(run.data / "rejected.jsonl")]
    assert len(reasons) == 4
    assert max(map(len, reasons)) <= 300
    assert reasons[0].startswith("the chat template rejects this conversation: not this: ")


def test_no_more_bad_rows_than_max_rejected(run: RunDir, write: Any, do_prepare: Prepare) -> None:
    data = write([*(chat(number) for number in range(9)), {"a": 1}])
    with pytest.raises(DataError) as caught:
        do_prepare(data)
    assert caught.value.message == (
        f"1 of 10 rows are bad, more than --max-rejected 0.05; first: {data} line 10: no known format has the keys 'a'"
    )
    assert caught.value.exit_code == 4
    assert not run.path.exists()
    assert do_prepare(data, max_rejected=0.1).rows["kept"] == 9


def test_nothing_is_written_when_no_row_is_left(run: RunDir, write: Any, do_prepare: Prepare, tmp_path: Path) -> None:
    data = write([chat(1)])
    with pytest.raises(DataError) as caught:
        do_prepare(data, max_seq_length=8)
    message = rf"no usable rows (1 read, 0 rejected, 1 too long); first: {data} line 1: "
    assert caught.value.message.startswith(message)
    assert caught.value.message.endswith(" tokens, more than --max-seq-length 8")
    with pytest.raises(DataError, match="does not exist"):
        do_prepare(tmp_path / "none.jsonl")
    with pytest.raises(ConfigError, match="cannot be read"):
        do_prepare(data, chat_template=str(tmp_path / "none.jinja"))
    assert not run.path.exists()


def test_a_failed_write_leaves_no_run(run: RunDir, write: Any, do_prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "write_json_lines", full)
    with pytest.raises(OSError, match="No space left"):
        do_prepare(write([chat(1)]))
    assert not run.path.exists()


def test_a_prepared_run_is_redone_only_when_told(run: RunDir, write: Any, do_prepare: Prepare) -> None:
    data = write([chat(number) for number in range(4)])
    do_prepare(data)
    with pytest.raises(StageError, match=r"run is already prepared from other data or settings$"):
        do_prepare(data, val_size=0)
    assert do_prepare(write([chat(1), chat(2)]), overwrite=True).rows["kept"] == 2
    assert run.require("prepare")["rows"]["kept"] == 2


def test_the_same_data_is_prepared_once(
    run: RunDir, write: Any, do_prepare: Prepare, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = write([chat(number) for number in range(4)])
    first = do_prepare(data)
    before = run.require("prepare")
    with monkeypatch.context() as patch:
        patch.setattr(store, "write_split", None)
        assert do_prepare(data) == first
    assert run.require("prepare") == before

    changed = [
        lambda: write([chat(number) for number in range(5)]),
        lambda: write([chat(number) for number in range(4)], "other.jsonl"),
    ]
    for change in changed:
        with pytest.raises(StageError, match="from other data or settings"):
            do_prepare(change())
    write([chat(number) for number in range(4)])
    for settings in ({"seed": 1}, {"max_seq_length": 77}, {"train_on": "all"}, {"chat_template": "plain"}):
        with pytest.raises(StageError, match="from other data or settings"):
            do_prepare(data, **settings)
    assert do_prepare(data) == first
    (run.data / "held_out.jsonl").write_text("")
    with pytest.raises(StageError, match="is stale: data has changed since"):
        do_prepare(data)


def test_strict_refuses_what_a_check_warns_of(run: RunDir, write: Any, do_prepare: Prepare) -> None:
    rows = [chat(number) for number in range(4)]
    rows[2]["messages"][1]["content"] = "The cafÃ© opens at nine."
    data = write(rows)
    with pytest.raises(DataError) as caught:
        do_prepare(data, strict=True)
    assert "--strict" in caught.value.message
    assert caught.value.message.endswith(": mojibake 1")
    assert not run.path.exists()
    result = do_prepare(data)
    assert [(check["check"], check["level"], check["count"]) for check in result.checks] == [("mojibake", "warning", 1)]
    assert [(example["source"], example["line"]) for example in result.checks[0]["examples"]] == [(str(data), 3)]


def test_rows_that_are_nearly_the_same_stay_on_one_side(run: RunDir, write: Any, do_prepare: Prepare) -> None:
    texts = [" ".join(f"word{group * 31 + number * number}" for number in range(30)) for group in range(20)]
    rows = [
        {"prompt": f"Where is station {group}?", "completion": text + "!" * member}
        for group, text in enumerate(texts)
        for member in range(3)
    ]
    result = do_prepare(write(rows), val_size=15)
    assert result.rows["near_duplicates"] == 40
    stations = [row["messages"][0]["content"] for row in lines_of(run.data / "held_out.jsonl")]
    assert len(stations) == 15
    assert {stations.count(station) for station in stations} == {3}
    apart = do_prepare(write(rows), val_size=15, near_duplicates=False, overwrite=True)
    assert apart.rows["near_duplicates"] == 0


def test_answers_to_one_question_stay_on_one_side(run: RunDir, write: Any, do_prepare: Prepare) -> None:
    rows = [{"prompt": f"Question {number // 2}?", "completion": f"Answer {number}, {number * 3}."} for number in range(40)]
    do_prepare(write(rows), val_size=10, near_duplicates=False)
    questions = [row["messages"][0]["content"] for row in lines_of(run.data / "held_out.jsonl")]
    assert sorted(questions) == sorted([*set(questions)] * 2)


def on_both_sides(run: RunDir, prompt: Callable[[list[int]], Any]) -> set[Any]:
    """The prompts that rows of both sides of the split have.

    Args:
        prompt: the prompt of a row's ids.
    """
    sides = []
    for name in ("train", "validation"):
        split = store.load_split(run.data, name)
        assert split is not None
        sides.append({prompt(ids) for ids in split["input_ids"]})
    return sides[0] & sides[1]


def as_messages(question: str, answer: str, number: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def as_prompt_and_completion(question: str, answer: str, number: int) -> dict[str, Any]:
    return {"prompt": question, "completion": answer}


def as_several_turns(question: str, answer: str, number: int) -> dict[str, Any]:
    later = as_messages(f"And {number * 37}?", f"That is {number * 41}.", number)["messages"]
    return {"messages": [*as_messages(question, answer, number)["messages"], *later]}


def as_calls_of_tools(question: str, answer: str, number: int) -> dict[str, Any]:
    call = {"type": "function", "function": {"name": "find", "arguments": {"what": answer}}}
    called = [{"role": "user", "content": question}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    return {"messages": [*called, {"role": "tool", "content": answer}, {"role": "assistant", "content": answer}]}


@pytest.mark.parametrize("train_on", ["assistant", "last", "all"])
@pytest.mark.parametrize("form", [as_messages, as_prompt_and_completion, as_several_turns, as_calls_of_tools])
def test_equal_prompts_stay_on_one_side_whatever_is_learned(
    form: Callable[[str, str, int], dict[str, Any]],
    train_on: str,
    run: RunDir,
    write: Any,
    do_prepare: Prepare,
    tiny_tokenizer: Any,
    tmp_path: Path,
) -> None:
    """With `--train-on all` no row had a prompt, and with `last` the prompt was all but the last answer.

    An answer that begins with a line feed changes the last token of its prompt.
    """
    template = tmp_path / "tools.jinja"
    template.write_text(
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
        "{% for call in m.tool_calls or [] %}{{ call | tojson }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    rows = [
        form(f"Question {chr(65 + number // 2)}?", "\n" * (number % 2) + f"Answer {number}, {number * 31}.", number)
        for number in range(40)
    ]
    result = do_prepare(write(rows), near_duplicates=False, val_size=10, train_on=train_on, chat_template=str(template))
    assert result.splits == {"train": 30, "validation": 10}
    assert not on_both_sides(run, lambda ids: tiny_tokenizer.decode(ids).partition("?")[0])


def test_examples_in_a_prompt_of_messages_are_not_its_question(run: RunDir, write: Any, do_prepare: Prepare) -> None:
    """All rows begin with the same example, which is not learned: that does not make one group of them."""
    example = as_messages("An example?", "Its answer.", 0)["messages"]
    rows = [
        {"prompt": [*example, {"role": "user", "content": f"Question {number // 2}?"}], "completion": f"Answer {number * 31}."}
        for number in range(40)
    ]
    result = do_prepare(write(rows), near_duplicates=False, val_size=10, train_on="all")
    assert not [check for check in result.checks if check["check"] == "leakage"]
    asked = [row["messages"][-1]["content"] for row in lines_of(run.data / "held_out.jsonl")]
    assert len(asked) == 10
    assert len(set(asked)) == 5


def test_equal_prompts_of_token_rows_and_of_parts_stay_on_one_side(run: RunDir, write: Any, do_prepare: Prepare) -> None:
    """The parts of an over-long row had a key of their own: its prompt could be learned from another such row."""
    rows = []
    for number in range(24):
        prompt = [300 + number // 2, 5, 6, 7]
        answer = [(number * 7 + step * step) % 290 for step in range(40 if number % 3 else 10)]
        rows.append({"input_ids": [*prompt, *answer], "labels": [-100] * 4 + answer})
    do_prepare(write(rows), near_duplicates=False, val_size=12, max_seq_length=24, on_overlength="split")
    assert not on_both_sides(run, lambda ids: tuple(ids[:4]))


def test_rows_that_differ_in_their_mask_are_not_duplicates(run: RunDir, write: Any, do_prepare: Prepare) -> None:
    """Only the first was kept: what the others teach was lost."""
    turns = [*as_messages("First?", "One.", 0)["messages"], *as_messages("Second?", "Two.", 0)["messages"]]
    only_first = {"messages": [turns[0], {**turns[1], "weight": 1}, turns[2], {**turns[3], "weight": 0}]}
    only_second = {"messages": [turns[0], {**turns[1], "train": False}, turns[2], turns[3]]}
    tokens = [{"input_ids": [5, 6, 7, 8], "labels": labels} for labels in ([-100, 6, 7, 8], [-100, -100, -100, 8])]
    result = do_prepare(
        write([{"messages": turns}, only_first, only_second, {"messages": turns}, *tokens, tokens[0]]),
        val_size=0,
    )
    assert (result.rows["kept"], result.rows["duplicates"]) == (5, 2)
    train = store.load_split(run.data, "train")
    assert train is not None
    assert [sum(label != IGNORED for label in labels) for labels in train["labels"]] == [
        sum(label != IGNORED for labels in train["labels"][1:3] for label in labels),
        sum(label != IGNORED for label in train["labels"][1]),
        sum(label != IGNORED for label in train["labels"][2]),
        3,
        1,
    ]


def test_rows_that_differ_in_their_mask_stay_on_one_side(run: RunDir, write: Any, do_prepare: Prepare) -> None:
    rows = []
    for number in range(20):
        ids = [(number * 7 + step * step) % 300 for step in range(12)]
        rows += [{"input_ids": ids}, {"input_ids": ids, "labels": [-100] * 8 + ids[8:]}]
    assert do_prepare(write(rows), near_duplicates=False, val_size=10).splits == {"train": 30, "validation": 10}
    assert not on_both_sides(run, tuple)


def test_weights_and_caps_of_sources(run: RunDir, write: Any, do_prepare: Prepare) -> None:
    first = write([chat(number) for number in range(10)], "first.jsonl")
    second = write([chat(number) for number in range(100, 120)], "second.jsonl")
    result = do_prepare(first, second, weights="3,1", max_rows="10,5", val_size=0)
    train = store.load_split(run.data, "train")
    assert train is not None
    assert len(train) == 35
    assert result.sources == [
        {"name": str(first), "read": 10, "kept": 10, "rejected": 0, "weight": 3.0},
        {"name": str(second), "read": 5, "kept": 5, "rejected": 0, "weight": 1.0},
    ]
    for settings, complaint in (
        ({"weights": "1,2,3"}, "--weights has 3 numbers for 2 sources"),
        ({"weights": "much"}, "--weights: 'much' is not a list of numbers above 0, at most 10000 (2,0.5)"),
        ({"max_rows": "0"}, "--max-rows: '0' is not a list of whole numbers above 0 (1000,500)"),
        ({"max_rows": "1.5"}, "--max-rows: '1.5' is not a list of whole numbers above 0 (1000,500)"),
        ({"max_rows": "9" * 19}, f"--max-rows: '{'9' * 19}' is not a list of whole numbers above 0 (1000,500)"),
    ):
        with pytest.raises(ConfigError) as caught:
            do_prepare(first, second, overwrite=True, **settings)
        assert caught.value.message == complaint


@pytest.mark.parametrize(
    ("policy", "rows", "losses"),
    [
        ("drop", 1, {"rows": 1, "end_of_turns_lost": 1}),
        ("truncate", 2, {"rows": 1, "end_of_turns_lost": 1}),
        ("split", 4, {"rows": 1, "end_of_turns_lost": 0}),
    ],
)
def test_over_long_rows(policy: str, rows: int, losses: dict[str, int], run: RunDir, write: Any, do_prepare: Prepare) -> None:
    long = {"prompt": "q", "completion": "".join(f"{number} bottles. " for number in range(40))}
    result = do_prepare(write([chat(1), long]), max_seq_length=150, on_overlength=policy, val_size=0)
    assert result.rows["kept"] == rows
    assert {name: result.overlength[name] for name in losses} == losses
    assert result.overlength["policy"] == policy
    assert [(check["check"], check["count"]) for check in result.checks if check["check"] == "overlength"] == [
        ("overlength", 1)
    ]
    assert len(lines_of(run.data / "rejected.jsonl")) == (policy == "drop")


def test_truncation_that_leaves_no_answer_drops_the_row(run: RunDir, write: Any, do_prepare: Prepare) -> None:
    """It used to count as truncated, with a reason that did not say that the row was gone."""
    long = {"prompt": "How many? " * 60, "completion": "none"}
    result = do_prepare(write([chat(1), long]), max_seq_length=100, on_overlength="truncate", val_size=0)
    assert (result.overlength["rows"], result.overlength["dropped"]) == (1, 1)
    (row,) = lines_of(run.data / "rejected.jsonl")
    assert row["reason"].endswith("more than --max-seq-length 100, and no answer is left (--on-overlength truncate)")
    (found,) = [check for check in result.checks if check["check"] == "overlength"]
    assert found["meaning"].endswith("truncated, without their end of turn; 1 of them dropped, with no answer left")


def test_the_parts_of_a_row_stay_together_and_are_asked_once(run: RunDir, write: Any, do_prepare: Prepare) -> None:
    """They used to count as near-duplicates of each other, and repeated their prompt in the held-out file."""
    rows = [
        {"prompt": f"List {topic}.", "completion": "".join(f"{topic} {number * step} " for number in range(60))}
        for step, topic in enumerate(["sun", "rain", "wind", "snow", "frost", "mist"], 2)
    ]
    result = do_prepare(write(rows), max_seq_length=150, on_overlength="split", val_size=8)
    assert result.rows["near_duplicates"] == 0
    assert not [check for check in result.checks if check["check"] == "leakage"]
    held_out = [row["messages"][0]["content"] for row in lines_of(run.data / "held_out.jsonl")]
    assert len(held_out) == len(set(held_out)) < result.splits["validation"]


def test_an_over_long_row_can_be_an_error(run: RunDir, write: Any, do_prepare: Prepare) -> None:
    data = write([chat(1), {"prompt": "q", "completion": "word " * 200}])
    with pytest.raises(DataError, match=r"rows.jsonl line 2: \d+ tokens, more than --max-seq-length 100$"):
        do_prepare(data, max_seq_length=100, on_overlength="error")
    assert not run.path.exists()


def test_token_rows_are_taken_as_they_are(run: RunDir, write: Any, do_prepare: Prepare) -> None:
    rows = [{"input_ids": [5, 6, 7], "labels": [-100, -100, 7]}, {"input_ids": [5, 9999, 7]}]
    result = do_prepare(write(rows), val_size=0, max_rejected=0.5)
    train = store.load_split(run.data, "train")
    assert train is not None
    assert train[:] == {"input_ids": [[5, 6, 7]], "labels": [[-100, -100, 7]]}
    assert result.forms == {"tokens": 1}
    assert lines_of(run.data / "rejected.jsonl")[0]["reason"].startswith("input_ids contains 9999, but the tokenizer has only ")


def test_token_rows_are_compared_by_their_tokens(run: RunDir, write: Any, do_prepare: Prepare) -> None:
    """They have no text, and all used to count as near-duplicates of each other."""
    rows = [{"input_ids": [(start * 7 + step * step) % 300 for step in range(40)]} for start in range(20)]
    alike = {"input_ids": [*rows[3]["input_ids"], 5]}
    result = do_prepare(write([*rows, alike]), val_size=4)
    assert (result.rows["kept"], result.rows["near_duplicates"]) == (21, 1)
    assert (result.splits, result.checks[0]["check"]) == ({"train": 17, "validation": 4}, "near_duplicates")


def test_a_model_without_a_template_leaves_a_clear_choice(
    run: RunDir, write: Any, do_prepare: Prepare, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    from transformers import PreTrainedTokenizerFast

    base = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer.backend_tokenizer, eos_token="<|endoftext|>")
    base.save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError) as caught:
        do_prepare(write([chat(1)]), model=str(tmp_path / "base"))
    assert caught.value.message == "the model's tokenizer has no chat template"
    assert caught.value.hint.endswith("or use plain text turns with --chat-template plain")
    result = do_prepare(write([chat(1)]), model=str(tmp_path / "base"), chat_template="plain", val_size=0)
    train = store.load_split(run.data, "train")
    assert train is not None
    text = "### User:\nQuestion 1?\n\n### Assistant:\nAnswer 1.<|endoftext|>\n\n"
    assert base.decode(train[0]["input_ids"]) == text
    assert base.decode([label for label in train[0]["labels"] if label != IGNORED]) == "Answer 1.<|endoftext|>"
    assert result.template["end_of_turn"] == "<|endoftext|>"


@pytest.mark.parametrize("fault", ["bad-data", "data", "tokenizer"])
def test_a_failed_second_prepare_keeps_the_first(
    fault: str, run: RunDir, write: Any, do_prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    do_prepare(write([chat(number) for number in range(4)]))
    before = run.require("prepare")

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    other = write([chat(9), chat(10)] if fault != "bad-data" else ["{"], "other.jsonl")
    with monkeypatch.context() as patch:
        if fault == "data":
            patch.setattr(store, "write_split", full)
        if fault == "tokenizer":
            patch.setattr("transformers.PreTrainedTokenizerBase.save_pretrained", full)
        with pytest.raises((OSError, DataError)):
            do_prepare(other, overwrite=True)
    assert run.require("prepare") == before
    assert sorted(path.name for path in run.path.iterdir() if path.name != ".lock") == [
        "config.yaml",
        "data",
        "run.json",
        "tokenizer",
    ]


def test_a_chat_template_of_the_users_own_is_frozen_in_the_run(
    run: RunDir, write: Any, do_prepare: Prepare, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    template = "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"
    (tmp_path / "own.jinja").write_text(template)
    do_prepare(write([chat(1)]), chat_template=str(tmp_path / "own.jinja"), val_size=0)
    tokenizer = AutoTokenizer.from_pretrained(run.tokenizer)
    train = store.load_split(run.data, "train")
    assert train is not None
    assert tokenizer.chat_template == template
    assert tokenizer.decode(train[0]["input_ids"]) == "user: Question 1?<|im_end|>assistant: Answer 1.<|im_end|>"


FAILING = {
    "{{ 1 / 0 }}": "ZeroDivisionError: division by zero",
    "{{ 'x'.index('y') }}": "ValueError: substring not found",
    "{{ 2.0 ** 5000 }}": "OverflowError: ",
    "{% for i in range(10 ** 7) %}{% endfor %}": "OverflowError: Range too big",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "RecursionError: ",
    "{{ messages[9].content }}": "list object has no element 9",
    "{% include 'x' %}": "TypeError: no loader for this environment specified",
}


@pytest.mark.parametrize("failing", FAILING)
def test_a_row_for_which_the_template_fails_in_any_way_is_rejected(
    failing: str, run: RunDir, write: Any, do_prepare: Prepare, tmp_path: Path
) -> None:
    """Only Jinja's own errors were caught: a template that divides by zero ended in "a bug of llmft"."""
    template = tmp_path / "own.jinja"
    text = "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"
    template.write_text("{% if '3' in messages[0].content %}" + failing + "{% endif %}" + text)
    result = do_prepare(write([chat(number) for number in range(6)]), chat_template=str(template), max_rejected=0.5)
    assert (result.rows["kept"], result.rows["rejected"]) == (5, 1)
    (rejected,) = lines_of(run.data / "rejected.jsonl")
    assert rejected["line"] == 4
    assert rejected["reason"].startswith(f"the chat template rejects this conversation: {FAILING[failing]}")


def test_a_template_that_renders_a_lone_surrogate(run: RunDir, write: Any, do_prepare: Prepare, tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text("{{ '\\ud83d' }}")
    with pytest.raises(DataError, match=r"the text that the chat template renders has a lone surrogate \(\\ud83d\)"):
        do_prepare(write([chat(1)]), chat_template=str(tmp_path / "own.jinja"), max_rejected=1.0)


BAD_TEMPLATES = {
    b"\x89PNG\r\n": "{file} is not UTF-8 (byte 0x89)",
    "{{ messages }}".encode("utf-16"): "{file} is not UTF-8 (byte 0xff)",
    b" \n": "{file} is empty",
}


@pytest.mark.parametrize("content", BAD_TEMPLATES)
def test_a_file_that_is_no_chat_template(content: bytes, write: Any, do_prepare: Prepare, tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        do_prepare(write([chat(1)]), chat_template=str(file))
    assert caught.value.message == "the chat template " + BAD_TEMPLATES[content].format(file=file)


@pytest.mark.parametrize("name", ["missing.jinja", ".", "~no-such-user/a.jinja"])
def test_a_chat_template_that_cannot_be_read(name: str, write: Any, do_prepare: Prepare) -> None:
    with pytest.raises(ConfigError, match=r"^the chat template '.*' cannot be read: "):
        do_prepare(write([chat(1)]), chat_template=name)


def test_the_byte_order_mark_of_a_template_is_not_rendered(
    run: RunDir, write: Any, do_prepare: Prepare, tmp_path: Path
) -> None:
    """Editors on Windows write one; it became the first token of every row."""
    text = "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"
    rows = []
    for number, content in enumerate([text.encode(), b"\xef\xbb\xbf" + text.encode()]):
        (tmp_path / "own.jinja").write_bytes(content)
        do_prepare(write([chat(1)]), chat_template=str(tmp_path / "own.jinja"), val_size=0, overwrite=number == 1)
        train = store.load_split(run.data, "train")
        assert train is not None
        rows.append(train[0]["input_ids"])
    assert rows[0] == rows[1]


def test_files_of_several_forms_go_together(write: Any, do_prepare: Prepare) -> None:
    chats = write([chat(number) for number in range(3)])
    table = write(["prompt,completion", "a,b", "c,d"], "table.csv")
    text = write(["A station stands in the garden."], "text.txt")
    result = do_prepare(chats, table, text)
    assert result.forms == {"messages": 3, "prompt-completion": 2, "text": 1}
    assert result.rows["kept"] == 6


def test_the_sample_data_is_all_kept(write: Any, do_prepare: Prepare, tmp_path: Path) -> None:
    samples = Path(__file__).parents[3] / "sample_data"
    for number, (name, kept) in enumerate({"chat.jsonl": 398, "alpaca.json": 342, "prompt_completion.csv": 342}.items()):
        result = do_prepare(samples / name, into=RunDir(tmp_path / str(number)))
        assert (result.rows["kept"], result.rows["rejected"]) == (kept, 0)
    assert do_prepare(samples / "documents", into=RunDir(tmp_path / "pages")).rows["read"] == 14


def test_rendered_text_is_rendered_anew(write: Any, do_prepare: Prepare, run: RunDir, tmp_path: Path) -> None:
    """Rows that were rendered with a chat template became documents with its markers as plain text."""
    chats = [chat(number) for number in range(4)]
    texts = ["".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in row["messages"]) for row in chats]
    pair = {"prompt": "[INST] Who? [/INST]", "completion": "The keeper.</s>"}
    documents = ["It begins with <|im_start|>.", "The lamp on the hill turns all night."]
    result = do_prepare(write([*({"text": text} for text in [*texts, *documents]), pair]), val_size=1, near_duplicates=False)
    assert result.forms == {
        "text (rendered: ChatML)": 4,
        "text": 2,
        "prompt-completion (rendered: Mistral or Llama 2)": 1,
    }
    (finding,) = (check for check in result.checks if check["check"] == "rendered_text")
    assert (finding["level"], finding["count"], finding["examples"][0]["line"]) == ("warning", 1, 5)
    own = do_prepare(write(chats, "own.jsonl"), val_size=0, into=RunDir(tmp_path / "own"))
    assert result.tokens["total"] > own.tokens["total"]
    rows = do_prepare(write([{"text": text} for text in texts], "texts.jsonl"), val_size=0, into=RunDir(tmp_path / "rows"))
    assert rows.tokens == own.tokens
    as_documents = do_prepare(
        write([{"text": text} for text in texts], "texts.jsonl"), val_size=0, into=RunDir(tmp_path / "raw"), format="text"
    )
    assert as_documents.forms == {"text": 4}
    assert [(check["check"], check["count"]) for check in as_documents.checks if check["level"] == "warning"] == [
        ("rendered_text", 4)
    ]


def test_the_reporter_tells_of_rendered_text(write: Any, tokenizer_dir: Path, run: RunDir) -> None:
    told: list[str] = []

    class Listening(Silent):
        def note(self, message: str) -> None:
            told.append(message)

    rows = [{"text": f"### Human: {number}?### Assistant: {number}."} for number in range(3)]
    prepare(run, [str(write(rows))], config.resolve({"model": str(tokenizer_dir), "val_size": 0}), Listening())
    assert "3 rows of rendered text (### Human: / ### Assistant:) read as conversations" in told


def test_json_lines_in_a_text_file_are_rows(write: Any, do_prepare: Prepare, tmp_path: Path) -> None:
    """A .txt with a JSON object a line became one document, braces and all."""
    file = write([chat(number) for number in range(4)], "chats.txt")
    result = do_prepare(file, val_size=0)
    assert (result.forms, result.sources[0]["name"]) == ({"messages": 4}, str(file))
    raw = do_prepare(file, val_size=0, format="text", into=RunDir(tmp_path / "raw"))
    assert raw.forms == {"text": 1}
    assert [(check["check"], check["level"]) for check in raw.checks] == [("json_documents", "note")]
