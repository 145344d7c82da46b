"""Hints about refused rows: the options in them were tried, and read this very file."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmft_cli.base.errors import DataError
from llmft_cli.base.reporter import Silent
from llmft_cli.data.cures.sampled import MOST_CHARACTERS, SampledRows
from llmft_cli.data.cures.search import Search
from llmft_cli.data.encoding.encoder import ConversationEncoder
from llmft_cli.data.forms.columns import parse_columns
from llmft_cli.data.prepare import prepare
from llmft_cli.data.reading.rows import Row
from llmft_cli.data.report.summary import PrepareResult
from llmft_cli.run_dir.run import RunDir
from llmft_cli.settings import config

Prepare = Callable[..., PrepareResult]
MESSAGES = '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'
LOOKS_LIKE = "fix the rows; a usable one looks like "


def question(number: int) -> str:
    return f"What is number {number} about?"


def answer(number: int) -> str:
    return f"It is about {7 * number} little things."


def turns(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": question(number)}, {"role": "assistant", "content": answer(number)}]


def sharegpt(number: int) -> list[dict[str, str]]:
    return [{"from": "human", "value": question(number)}, {"from": "gpt", "value": answer(number)}]


@pytest.fixture
def do_prepare(tmp_path: Path, tokenizer_dir: Path) -> Prepare:
    def do(rows: list[Any], **flags: Any) -> PrepareResult:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        chosen = config.resolve({"model": str(tokenizer_dir), "val_size": 0, **flags})
        return prepare(RunDir(tmp_path / "run"), [str(file)], chosen, Silent(), overwrite=True)

    return do


@pytest.fixture
def hint_for(do_prepare: Prepare) -> Callable[..., str]:
    def hint(rows: list[Any], **flags: Any) -> str:
        with pytest.raises(DataError) as caught:
            do_prepare(rows, **flags)
        return caught.value.hint

    return hint


def flags_in(options: str) -> dict[str, Any]:
    """The settings that options on a command line say."""
    found: dict[str, Any] = {}
    words = shlex.split(options)
    while words:
        name = words.pop(0).removeprefix("--").replace("-", "_")
        found[name] = words.pop(0) if words and not words[0].startswith("--") else True
    return found


READABLE: dict[str, tuple[Callable[[int], dict[str, Any]], str]] = {
    "turns under another key": (lambda n: {"id": n, "exchange": turns(n)}, "messages=exchange"),
    "sharegpt under another key": (lambda n: {"talk": sharegpt(n), "source": "forum"}, "messages=talk"),
    "turns in JSON text": (lambda n: {"chat_log": json.dumps(turns(n))}, "messages=chat_log"),
    "turns in an object": (lambda n: {"data": {"turns": turns(n)}}, "messages=data.turns"),
    "question and reply": (
        lambda n: {"id": f"r{n}", "question_text": question(n), "reply": answer(n)},
        "prompt=question_text,completion=reply",
    ),
    "camel case": (
        lambda n: {"createdAt": "2024-01-01", "questionText": question(n), "modelAnswer": answer(n)},
        "prompt=questionText,completion=modelAnswer",
    ),
    "keys with spaces": (
        lambda n: {"the answer": answer(n), "my question": question(n)},
        "prompt=my question,completion=the answer",
    ),
    "translations": (lambda n: {"source": question(n), "target": answer(n)}, "prompt=source,completion=target"),
    "a label": (
        lambda n: {"review": question(n), "sentiment_label": ["good", "bad"][n % 2]},
        "prompt=review,completion=sentiment_label",
    ),
    "with context": (
        lambda n: {"frage": question(n), "kontext": f"Page {n} of the book.", "antwort": answer(n)},
        "question=frage,context=kontext,answer=antwort",
    ),
    "with input": (
        lambda n: {"instruction_text": "Say it again.", "input_text": question(n), "output_text": answer(n)},
        "instruction=instruction_text,input=input_text,output=output_text",
    ),
    "with a system message": (
        lambda n: {"sys_prompt": "Be nice to me.", "user_msg": question(n), "assistant_msg": answer(n)},
        "prompt=user_msg,completion=assistant_msg,system=sys_prompt",
    ),
    "several answers": (
        lambda n: {"q": question(n), "passage": f"Page {n}.", "answers": {"text": [answer(n)]}},
        "question=q,context=passage,answer=answers",
    ),
    "documents": (lambda n: {"url": f"http://example.com/{n}", "article": 9 * answer(n)}, "text=article"),
    "Chinese": (
        lambda n: {"编号": str(n), "问题": f"第{n}号是关于什么的", "回答": f"它是关于{n}个小东西的。"},
        "prompt=问题,completion=回答",
    ),
}


@pytest.mark.parametrize("name", READABLE)
def test_the_columns_that_read_the_file_are_the_hint(name: str, do_prepare: Prepare, hint_for: Callable[..., str]) -> None:
    """The hint used to be "set their format with --format", which helps none of these."""
    row_of, columns = READABLE[name]
    rows = [row_of(number) for number in range(12)]
    hint = hint_for(rows)
    assert hint == f"add --columns {shlex.quote(columns)}"
    assert do_prepare(rows, **flags_in(hint.removeprefix("add "))).rows["kept"] == 12


def test_two_meanings_are_both_offered(hint_for: Callable[..., str]) -> None:
    rows = [{"title": question(number), "body": 9 * answer(number)} for number in range(12)]
    assert hint_for(rows) == "add --columns prompt=title,completion=body, or --columns text=body"


def test_unknown_keys_are_taken_in_their_order(hint_for: Callable[..., str]) -> None:
    rows = [{"foo": question(number), "bar": answer(number)} for number in range(12)]
    assert hint_for(rows) == "add --columns prompt=foo,completion=bar, or --columns text=bar"


def test_the_chosen_side_of_preference_pairs(do_prepare: Prepare, hint_for: Callable[..., str]) -> None:
    rows = [{"prompt": question(n), "chosen": answer(n), "rejected": "No idea."} for n in range(12)]
    assert hint_for(rows) == "to train on the chosen side, add --columns completion=chosen"
    assert do_prepare(rows, columns="completion=chosen").rows["kept"] == 12


def test_the_rejected_side_is_never_offered(hint_for: Callable[..., str]) -> None:
    rows = [{"topic": n, "chosen": {"name": answer(n)}, "rejected": question(n), "essay": answer(n)} for n in range(12)]
    assert hint_for(rows).startswith(LOOKS_LIKE)


def test_settings_that_were_given_are_replaced(do_prepare: Prepare, hint_for: Callable[..., str]) -> None:
    rows = [{"prompt": question(n), "completion": answer(n)} for n in range(12)]
    assert hint_for(rows, format="alpaca") == "use --format auto instead of --format alpaca"
    german = [{"frage": question(n), "antwort": answer(n)} for n in range(12)]
    assert hint_for(german, format="prompt-completion") == "add --columns prompt=frage,completion=antwort"
    assert hint_for(german, format="alpaca") == (
        "use --format auto --columns prompt=frage,completion=antwort instead of --format alpaca"
    )
    hint = hint_for(german, columns="prompt=question")
    assert hint == "use --columns prompt=frage,completion=antwort instead of --columns prompt=question"


def test_a_row_that_is_too_long_may_be_longer_if_the_model_has_positions(
    do_prepare: Prepare, hint_for: Callable[..., str], tokenizer_dir: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": question(n), "completion": 9 * answer(n)} for n in range(4)]
    hint = hint_for(rows, max_seq_length=64)
    assert hint == "use --max-seq-length 256 instead of --max-seq-length 64"
    assert do_prepare(rows, max_seq_length=256).rows["kept"] == 4


def test_columns_and_a_length_together(do_prepare: Prepare, hint_for: Callable[..., str]) -> None:
    rows = [{"exchange": [*turns(n), *turns(n + 50)]} for n in range(4)]
    hint = hint_for(rows, max_seq_length=64)
    assert hint == "use --columns messages=exchange --max-seq-length 256 instead of --max-seq-length 64"


def test_a_few_rows_may_stay_unusable(hint_for: Callable[..., str]) -> None:
    rows: list[dict[str, Any]] = [{"exchange": turns(n)} for n in range(19)]
    assert hint_for([{"exchange": None}, *rows]) == "add --columns messages=exchange"


def test_a_row_that_is_longer_than_the_model_is_split(
    hint_for: Callable[..., str], tokenizer_dir: Path, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    for file in tokenizer_dir.iterdir():
        (small / file.name).write_bytes(file.read_bytes())
    (small / "config.json").write_text('{"model_type": "llama", "max_position_embeddings": 64}')
    rows = [{"prompt": question(n), "completion": 9 * answer(n)} for n in range(4)]
    assert hint_for(rows, model=str(small)) == "add --on-overlength split"


def test_plain_turns_if_the_model_has_no_template(
    do_prepare: Prepare, hint_for: Callable[..., str], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer.backend_tokenizer, eos_token=tiny_tokenizer.eos_token)
    bare.save_pretrained(tmp_path / "bare")
    (tmp_path / "bare" / "config.json").write_text('{"model_type": "llama"}')
    model = str(tmp_path / "bare")
    rows = [{"exchange": turns(number)} for number in range(4)]
    assert hint_for(rows, model=model) == "add --columns messages=exchange --chat-template plain"
    assert do_prepare(rows, model=model, columns="messages=exchange", chat_template="plain").rows["kept"] == 4
    documents = [{"article": 9 * answer(number)} for number in range(4)]
    assert hint_for(documents, model=model) == "add --columns text=article"


def test_plain_turns_if_the_template_rejects_rows(do_prepare: Prepare, hint_for: Callable[..., str], tmp_path: Path) -> None:
    template = tmp_path / "strict.jinja"
    template.write_text("{{ raise_exception('no system message') if messages[0].role == 'system' }}{{ messages[0].content }}")
    rows = [{"messages": [{"role": "system", "content": "Be nice."}, *turns(number)]} for number in range(4)]
    assert hint_for(rows, chat_template=str(template)) == (
        "to use plain text turns instead of the model's template, "
        f"use --chat-template plain instead of --chat-template {template}"
    )
    assert do_prepare(rows, chat_template="plain").rows["kept"] == 4


def test_tools_that_the_template_leaves_out(do_prepare: Prepare, hint_for: Callable[..., str], tmp_path: Path) -> None:
    template = tmp_path / "chatml.jinja"
    template.write_text("{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}")
    tools = [{"name": "f", "parameters": {"type": "object", "properties": {}}}]
    rows = [{"messages": turns(number), "tools": tools} for number in range(4)]
    hint = hint_for(rows, chat_template=str(template))
    assert hint == "to keep the rows without the part that is left out, add --on-unrendered keep"
    assert do_prepare(rows, chat_template=str(template), on_unrendered="keep").rows["kept"] == 4


def test_very_long_rows_are_not_tried() -> None:
    sampled = SampledRows()
    sampled.add(Row("a", 1, {"conversation": [{"role": "user", "content": 4 * MOST_CHARACTERS * "a"}]}), usable=False)
    sampled.add(Row("a", 2, {"text": "short"}), usable=False)
    sampled.add(None, usable=False)
    assert [row.line for row in sampled.unusable] == [2]


def test_a_wide_table_is_refused_quickly(hint_for: Callable[..., str]) -> None:
    rows = [{f"text {column}": question(column + number) for column in range(2000)} for number in range(4)]
    assert hint_for(rows).startswith("add --columns 'prompt=text 0,completion=text 1'")


def test_more_bad_rows_than_allowed(do_prepare: Prepare, hint_for: Callable[..., str]) -> None:
    good = [{"prompt": question(number), "completion": answer(number)} for number in range(30)]
    bad = [{"prompt": "", "completion": ""}] * 6
    assert hint_for(good + bad) == "fix the rows, or set --max-rejected 17% to use the other 30"
    assert do_prepare(good + bad, max_rejected="17%").rows["kept"] == 30


def test_a_cure_keeps_the_good_rows_good(hint_for: Callable[..., str]) -> None:
    good = [{"prompt": question(number), "completion": answer(number)} for number in range(12)]
    bad = [{"exchange": turns(number)} for number in range(12, 24)]
    assert hint_for(good + bad) == "fix the rows, or set --max-rejected 50% to use the other 12"
    both = [{**row, "exchange": turns(40 + number)} for number, row in enumerate(good)]
    expected = "add --columns messages=exchange, or set --max-rejected 50% to use the other 12"
    assert hint_for(both + bad) == expected


def test_what_a_row_means_is_not_worked_around(hint_for: Callable[..., str]) -> None:
    """Another format would train on the unwanted answers."""
    rows = [{"prompt": question(n), "completion": answer(n), "label": n % 2 == 1} for n in range(12)]
    assert hint_for(rows) == "fix the rows, or set --max-rejected 50% to use the other 6"


@pytest.mark.parametrize(
    ("row", "example"),
    [
        ({"chat": [{"speaker": "user", "said": "Hello there."}]}, MESSAGES),
        ({"id": 7, "hash": "ab7c"}, MESSAGES),
        ({"messages": [{"role": "user", "content": "Hello there."}]}, MESSAGES),
        ({"my, question": "Is it so?", "answer": "It is so."}, '{"prompt": "...", "completion": "..."}'),
        ({"instruction": "Say it.", "completions": [{"response": "a", "rating": 1}, {"response": "b", "rating": 2}]}, "prompt"),
        ("text", MESSAGES),
    ],
)
def test_without_a_cure_the_nearest_format_is_shown(row: Any, example: str, hint_for: Callable[..., str]) -> None:
    hint = hint_for([row] * 3)
    assert hint.startswith(LOOKS_LIKE)
    assert example in hint


def test_ids_are_no_answers(hint_for: Callable[..., str]) -> None:
    rows = [{"sentence": f"no{number}", "code": f"a-{number}f"} for number in range(12)]
    assert hint_for(rows).startswith(LOOKS_LIKE)


def test_a_source_without_rows(tmp_path: Path, tokenizer_dir: Path) -> None:
    (tmp_path / "rows.json").write_text("[]")
    chosen = config.resolve({"model": str(tokenizer_dir)})
    with pytest.raises(DataError) as caught:
        prepare(RunDir(tmp_path / "run"), [str(tmp_path / "rows.json")], chosen, Silent())
    assert caught.value.hint == f"give a source with rows such as {MESSAGES}"


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=9)
    | st.sampled_from(["user", "[{", "Is it so?"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["role", "content", "chosen", "rejected", "answer", "q", "a,b", "a=b", "a b"]), inner)
    ),
    max_leaves=15,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(JSON, min_size=1, max_size=6))
def test_what_is_found_for_any_rows_works(rows: list[Any], encoders: dict[str, ConversationEncoder]) -> None:
    sampled = SampledRows([Row("rows.jsonl", number, row) for number, row in enumerate(rows, 1)])
    search = Search(sampled, encoders["chatml"], config.resolve({}), positions=2048)
    for cure in search.cures():
        parse_columns(cure.changes.get("columns", "prompt=a"))
        assert search.trial(cure.changes).usable >= 0.9
