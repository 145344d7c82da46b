"""Training rows in every form, damaged at random, and files of them in every format that prepare reads."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# None of these is text that a template writes. An end of turn is left out: with a beginning of turn after it, inserted by
# a second mutation, a text could spell a whole turn, and nothing would show that its tokens are not the template's.
TEXTS = [
    "\ud83d", "\udc00", "\ud83d\ude00", "\0", "\x1b[31m", "\x85", "\u2028", "\u2029", "\ufeff", "\u202e", "\u200d", "e\u0301",
    "\ue0f00\ue0f1", "\ue0f01\ue0f1", "\uffff", "\U0010ffff", "👩‍👩‍👧", "\r", "\r\n", "\n\n", "\t", "   ", "{{ 7 * 7 }}",
    "{% raw %}", "{%", "<think>", "</think>", "<|im_start|>", "<|im_start|>assistant\n", "<|endoftext|>", "<s>", "[INST]",
    "<|assistant|>", "\\ud83d", '"', '",', "NaN", "null", "a" * 5000, "word " * 2000, "क्षि", "\u0627", "\x7f", "[", "{", "]}",
]  # fmt: skip
BYTES = [b"\xff", b"\0", b"\r", b"\n", b"\xef\xbb\xbf", b'"', b"\xc3", b"\xe2\x80\xa8"]
KEYS = [
    "messages", "conversations", "prompt", "completion", "instruction", "input", "output", "text", "content", "role", "from",
    "value", "system", "tools", "functions", "tool_calls", "function_call", "name", "arguments", "weight", "train", "training",
    "input_ids", "labels", "assistant_masks", "attention_mask", "history", "question", "answer", "context", "chosen",
    "rejected", "label", "type", "tool_call_id", "reasoning_content", "thinking", "id", "", " text", "Text", "\ud83d",
    "a.b", "\0",
]  # fmt: skip
ROLES = ["system", "user", "assistant", "tool", "developer", "function", "human", "gpt", "observation", "moderator", "", None]
NUMBERS = [0, 1, -1, -100, 2, 399, 400, 10**6, 2**31, -(2**31) - 1, 2**63, 10**30, 0.5, 1.0, -0.0, 1e308, 5.0]
NOT_FINITE = [float("nan"), float("inf"), float("-inf")]
TOOL = {"type": "function", "function": {"name": "find", "description": "Finds.", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"what": "rain"}'}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
SUFFIXES = (".jsonl", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".md", ".parquet", ".arrow")
DEEP_LEVELS = 3000


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def any_value(rng: random.Random) -> Any:
    """A value that has no business being there."""
    makers: list[Callable[[], Any]] = [
        lambda: rng.choice([None, True, False, "", " ", [], {}, [[]], [None], {"": None}, [{}], "[]", "{}", "[1,", "0"]),
        lambda: rng.choice(NUMBERS),
        lambda: rng.choice(NOT_FINITE),
        lambda: rng.choice(TEXTS),
        lambda: nested(rng.choice([1, 5, 40])),
        lambda: {rng.choice(KEYS): rng.choice(TEXTS)},
        lambda: [rng.choice(NUMBERS) for _ in range(rng.randrange(6))],
        lambda: [{"type": "text", "text": rng.choice(TEXTS)}, *([IMAGE] if rng.random() < 0.5 else [])],
        lambda: [{"role": rng.choice(ROLES), "content": rng.choice(TEXTS)}],
    ]
    return rng.choice(makers)()


# -- rows


def pairs_of(directory: Path) -> list[tuple[str, str]]:
    """Questions and answers of the JSON, JSON Lines and CSV files in a directory, those in its folders too."""
    found: list[tuple[str, str]] = []
    for file in sorted(item for item in directory.rglob("*") if item.suffix in (".json", ".jsonl", ".csv")):
        try:
            text = file.read_text(encoding="utf-8")
            if file.suffix == ".csv":
                rows: list[Any] = list(csv.DictReader(io.StringIO(text)))
            else:
                rows = json.loads(text) if file.suffix == ".json" else [json.loads(line) for line in text.split("\n") if line]
        except (ValueError, csv.Error):  # some of the sample data is damaged on purpose
            continue
        found += [pair for row in rows if (pair := pair_of(row))]
    return found


def pair_of(row: Any) -> tuple[str, str] | None:
    """A row's question and answer, shortened, or None if it has none."""
    if not isinstance(row, dict):
        return None
    said = [turn.get("content") for turn in row["messages"][-2:]] if isinstance(row.get("messages"), list) else []
    said = said or [row.get("prompt") or row.get("instruction"), row.get("completion") or row.get("output")]
    question, answer = (*said, None, None)[:2]
    return (question[:300], answer[:300]) if isinstance(question, str) and isinstance(answer, str) else None


def asked(question: str) -> dict[str, Any]:
    return {"role": "user", "content": question}


def answered(answer: str) -> dict[str, Any]:
    return {"role": "assistant", "content": answer}


def several_turns(question: str, answer: str) -> dict[str, Any]:
    turns = [asked(question), answered(answer), asked(answer), {**answered(question), "weight": 0}]
    return {"messages": [{"role": "system", "content": "Be brief."}, *turns]}


def calls_a_tool(question: str, answer: str) -> dict[str, Any]:
    result = {"role": "tool", "content": answer, "tool_call_id": "c1"}
    return {
        "messages": [asked(question), {"role": "assistant", "tool_calls": [CALL]}, result, answered(answer)],
        "tools": [TOOL],
    }


def parts_and_thinking(question: str, answer: str) -> dict[str, Any]:
    parts = [{"type": "text", "text": question}]
    return {"messages": [{**asked(question), "content": parts}, {**answered(answer), "thinking": question}]}


def sharegpt(question: str, answer: str) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}


def labelled_ids(question: str, answer: str) -> dict[str, Any]:
    ids = [3 + ord(character) % 390 for character in question + answer]
    return {"input_ids": ids, "labels": [-100] * len(question) + ids[len(question) :]}


def masked_ids(question: str, answer: str) -> dict[str, Any]:
    ids, labels = labelled_ids(question, answer).values()
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "completion_mask": [int(label != -100) for label in labels]}


FORMS: list[Callable[[str, str], dict[str, Any]]] = [
    lambda question, answer: {"messages": [asked(question), answered(answer)]},
    several_turns,
    calls_a_tool,
    parts_and_thinking,
    sharegpt,
    lambda question, answer: {"instruction": question, "input": "", "output": answer, "history": [[question, answer]]},
    lambda question, answer: {"prompt": question, "completion": answer},
    lambda question, answer: {"prompt": [asked(question)], "completion": [answered(answer)]},
    lambda question, answer: {"question": question, "answer": answer, "context": answer},
    lambda question, answer: {"text": f"{question}\n{answer}"},
    labelled_ids,
    masked_ids,
    lambda question, answer: {"chosen": [asked(question), answered(answer)], "rejected": [asked(question), answered(answer)]},
]


def mutated(row: Any, rng: random.Random) -> Any:
    """A copy of the row with none to three changes, anywhere in it."""
    row = json.loads(json.dumps(row))
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        row = json.loads(json.dumps(change(row, rng)))  # what was put in shares nothing with the next row's
    return row


def change(row: Any, rng: random.Random) -> Any:
    """The row, changed in place where that is possible."""
    places = list(containers(row))
    if not places or rng.random() < 0.01:
        return any_value(rng)
    place = rng.choice(places)
    if isinstance(place, list):
        change_list(place, rng)
    else:
        change_object(place, rng)
    return row


def containers(value: Any) -> Iterator[Any]:
    """All lists and objects in a value that are not empty, without recursion."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, (list, dict)) and part:
            yield part
            waiting += part.values() if isinstance(part, dict) else part


def change_object(place: dict[str, Any], rng: random.Random) -> None:
    key = rng.choice(list(place))
    changes: list[Callable[[], Any]] = [
        lambda: place.update({key: any_value(rng)}),
        lambda: place.pop(key),
        lambda: place.update({rng.choice(KEYS): place.pop(key)}),
        lambda: place.update({rng.choice(KEYS): any_value(rng)}),
        lambda: place.update({key: json.dumps(place[key])}),
        lambda: place.update({key: [place[key]]}),
        lambda: place.update({key: text_changed(place[key], rng)}),
        lambda: place.update({key: text_changed(place[key], rng)}),
        lambda: place.update(role=rng.choice(ROLES)),
        lambda: place.update(tool_calls=rng.choice([[CALL], [], None, [CALL, CALL], "[]", json.dumps([CALL])])),
        lambda: place.update(content=rng.choice([None, "", [], [IMAGE], [{"type": "text"}], {"parts": ["a"]}])),
        lambda: place.update({rng.choice(["weight", "train", "training"]): rng.choice([0, 1, True, False, None, 0.5, "0"])}),
    ]
    rng.choice(changes)()


def change_list(place: list[Any], rng: random.Random) -> None:
    number = rng.randrange(len(place))
    changes: list[Callable[[], Any]] = [
        lambda: place.__setitem__(number, any_value(rng)),
        lambda: place.__setitem__(number, text_changed(place[number], rng)),
        lambda: place.pop(number),
        lambda: place.insert(number, json.loads(json.dumps(place[number]))),
        lambda: place.append(any_value(rng)),
        lambda: place.reverse(),
        lambda: place.__setitem__(number, rng.choice(NUMBERS)),
        lambda: place.__delitem__(slice(number, None)),
    ]
    rng.choice(changes)()


def text_changed(value: Any, rng: random.Random) -> Any:
    """A text with another one inserted; anything else as it is."""
    if not isinstance(value, str):
        return value
    position = rng.choice([0, len(value), rng.randrange(len(value) + 1)])
    return value[:position] + rng.choice(TEXTS) + value[position:]


# -- files


def content_of(suffix: str, rows: list[Any], rng: random.Random) -> bytes:
    """A file of rows in the format of a suffix."""
    if suffix in (".parquet", ".arrow"):
        return table_of(suffix, rows, rng)
    if suffix in (".csv", ".tsv"):
        return csv_of(rows, "," if suffix == ".csv" else "\t", rng)
    if suffix in (".txt", ".md"):
        return encoded("\n".join(" ".join(map(str, row.values())) if isinstance(row, dict) else str(row) for row in rows), rng)
    lines = [json_of(row, rng) for row in rows]
    if suffix == ".json" and rng.random() < 0.7:
        array = rng.choice(["[{}]", '{{"data": [{}]}}', "[\n{}\n]\n"])
        return encoded(array.format(",\n".join(lines)), rng)
    return encoded(rng.choice(["\n", "\n", "\r\n", "\n\n", "\n \n"]).join(lines) + "\n", rng)


def json_of(row: Any, rng: random.Random) -> str:
    """A row as JSON text; some in another way than a program would write it."""
    text = json.dumps(row, ensure_ascii=rng.random() < 0.5)
    way = rng.random()
    if way < 0.02 and text.startswith("{") and len(text) > 2:
        return f"{text[:-1]}, {text[1:]}"  # every key twice
    if way < 0.03:
        return "[" * DEEP_LEVELS + text + "]" * DEEP_LEVELS
    if way < 0.04:
        return text.replace(": ", ": 1" + "0" * 5000 + ", ", 1)
    return (
        text.replace(": ", f": {rng.choice(['NaN', '-Infinity', '1e999', '0x1', '.5', 'undefined'])}, ", 1)
        if way < 0.06
        else text
    )


def encoded(text: str, rng: random.Random) -> bytes:
    """The text as bytes: UTF-8 but for a few; lone surrogates become the three bytes that no UTF-8 has."""
    encoding = rng.choices(["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"], [60, 4, 1, 1, 1])[0]
    return text.encode(encoding, "surrogatepass" if "utf" in encoding else "replace")


def csv_of(rows: list[Any], separator: str, rng: random.Random) -> bytes:
    rows = [row if isinstance(row, dict) else {"text": row} for row in rows]
    names = list(dict.fromkeys(key for row in rows for key in row if key and "\0" not in key and "\r" not in key))
    names = rng.sample(names, min(len(names), 30))
    file = io.StringIO()
    writer = csv.writer(
        file, delimiter=separator, lineterminator=rng.choice(["\n", "\r\n"]), escapechar=rng.choice([None, "\\"])
    )
    writer.writerow(names or ["text"])
    for row in rows:
        cells = [row.get(name, "") for name in names]
        writer.writerow([cell if isinstance(cell, str) else json.dumps(cell) for cell in cells])
    return encoded(file.getvalue(), rng)


def table_of(suffix: str, rows: list[Any], rng: random.Random) -> bytes:
    """A table; columns whose cells have several types are JSON text, and text columns have any of Arrow's types."""
    import pyarrow
    import pyarrow.parquet

    rows = [row for row in rows if isinstance(row, dict)]
    cells = {name: [row.get(name) for row in rows] for name in dict.fromkeys(key for row in rows for key in row)}
    columns = {name.encode("utf-8", "replace").decode(): column_of(column, rng) for name, column in cells.items()}
    table, file = pyarrow.table(columns), io.BytesIO()
    if suffix == ".parquet":
        with contextlib.suppress(pyarrow.ArrowNotImplementedError):  # objects without keys cannot be written
            pyarrow.parquet.write_table(table, file, compression=rng.choice(["snappy", "zstd", "none"]))
    else:
        opener = rng.choice([pyarrow.ipc.new_file, pyarrow.ipc.new_stream])
        with opener(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=rng.choice([1, 7, 1000]))
    return file.getvalue()


def column_of(cells: list[Any], rng: random.Random) -> Any:
    import pyarrow

    try:
        column = pyarrow.array(cells)
    except (pyarrow.ArrowException, ValueError, TypeError, OverflowError):
        texts = [None if cell is None else json.dumps(cell) for cell in cells]
        column = pyarrow.array(texts)
    if not pyarrow.types.is_string(column.type):
        return column
    kinds = [pyarrow.large_string(), pyarrow.binary(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())]
    if rng.random() < 0.1:
        # Text that is not UTF-8 in a column that says it is.
        broken = pyarrow.array([None if cell is None else b"\xff" + cell.encode() for cell in column.to_pylist()])
        return pyarrow.Array.from_buffers(pyarrow.string(), len(broken), broken.buffers())
    return column.cast(rng.choice(kinds)) if rng.random() < 0.2 else column


def damaged(content: bytes, rng: random.Random) -> bytes:
    """The bytes with one to five changes."""
    data = bytearray(content)
    for _ in range(rng.randrange(1, 6)):
        position = rng.randrange(len(data) + 1)
        ways: list[Callable[[], Any]] = [
            lambda at: data.__setitem__(slice(at, at + 1), bytes([rng.randrange(256)])),
            lambda at: data.__setitem__(slice(at, at), rng.choice(BYTES)),
            lambda at: data.__delitem__(slice(at, at + rng.choice([1, 2, 50]))),
            lambda at: data.__setitem__(slice(at, at), "x\ud83d".encode("utf-16", "surrogatepass")),
        ]
        rng.choice(ways)(position)
    return bytes(data if rng.random() < 0.9 else data[: rng.randrange(len(data) + 1)])


def compressed(content: bytes, way: str) -> bytes:
    if way == ".gz":
        return gzip.compress(content, 1)
    import pyarrow

    return bytes(pyarrow.compress(content, codec="zstd", asbytes=True))
