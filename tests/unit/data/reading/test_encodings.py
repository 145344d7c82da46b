"""Files in other encodings than UTF-8: recognised, named by the user, or refused with the likely names."""

# ruff: noqa: RUF001

from __future__ import annotations

import gzip
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from llmft_cli.base.errors import DataError
from llmft_cli.data.reading.readers import read
from llmft_cli.data.reading.rows import BadRow
from llmft_cli.data.reading.sources import find_sources

CHINESE = ["什么是机器学习？", "机器学习是人工智能的一个分支，它使计算机能够从数据中学习。", "写一首关于春天的诗。"]
TAIWANESE = ["什麼是機器學習？", "機器學習是人工智慧的一個分支，它使電腦能夠從資料中學習。", "寫一首關於春天的詩。"]
JAPANESE = ["機械学習とは何ですか。", "機械学習はデータから学習する技術です。", "春についての詩を書いてください。"]
KOREAN = ["기계 학습이란 무엇입니까?", "기계 학습은 데이터에서 배우는 기술입니다.", "봄에 대한 시를 써 주세요."]
GERMAN = ["Wie heißt die Hauptstadt von Österreich?", "Für viele Gäste ist Wien schön.", "Erkläre mir die Größe der Erde."]
FRENCH = ["Où se trouve l'hôtel de ville ?", "Il est situé à côté du café, près de la bibliothèque.", "L'été est là, déjà."]
ENGLISH = ["It’s a “nice” day – isn’t it?", "The user’s question was about the company’s plan.", "I don’t know."]
POLISH = ["Zażółć gęślą jaźń.", "Jak się nazywa stolica Polski?", "Stolicą jest Warszawa, leży nad Wisłą."]
HUNGARIAN = ["Mi Magyarország fővárosa?", "Budapest, amely a Duna két partján fekszik.", "Árvíztűrő tükörfúrógép."]
RUSSIAN = ["Что такое машинное обучение?", "Это раздел искусственного интеллекта.", "Привет, как дела? Расскажи о погоде."]

TEXTS = {
    "gbk": CHINESE,
    "gb18030": [*CHINESE, "𠀀"],
    "big5": TAIWANESE,
    "shift_jis": JAPANESE,
    "euc_jp": JAPANESE,
    "euc_kr": KOREAN,
    "cp1252": GERMAN,
    "latin-1": FRENCH,
    "windows-1252": ENGLISH,
    "cp1250": POLISH * 3,
    "windows-1250": HUNGARIAN * 3,
    "cp1251": RUSSIAN,
    "koi8_r": RUSSIAN,
    "utf-16": CHINESE,
    "utf-16-le": GERMAN,
    "utf-16-be": JAPANESE,
    "utf-32": KOREAN,
}


def told(path: Path, encoding: str = "") -> tuple[list[Any], list[str]]:
    """The values of a file's rows, or the reasons of bad ones, and the notes."""
    notes: list[str] = []
    (source,) = find_sources([str(path)], encoding)
    rows = list(read(source, "train", note=notes.append))
    return [row.reason if isinstance(row, BadRow) else row.value for row in rows], notes


def content_of(ending: str, texts: list[str]) -> tuple[str, list[Any]]:
    """A file with the texts as answers, and the rows it holds."""
    rows = [{"prompt": f"question {number}", "completion": text} for number, text in enumerate(texts)]
    if ending == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), rows
    if ending == ".json":
        return json.dumps(rows, ensure_ascii=False, indent=1), rows
    if ending in (".csv", ".tsv"):
        separator = "," if ending == ".csv" else "\t"
        lines = [f'{row["prompt"]}{separator}"{row["completion"]}"' for row in rows]
        return "\n".join([f"prompt{separator}completion", *lines]), rows
    return "\n".join(texts), [{"text": "\n".join(texts)}]


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".tsv", ".txt", ".jsonl.gz"])
@pytest.mark.parametrize("name", TEXTS)
def test_an_encoding_is_recognised_and_told(name: str, ending: str, tmp_path: Path) -> None:
    content, rows = content_of(ending.removesuffix(".gz"), TEXTS[name])
    path = tmp_path / f"rows{ending}"
    packed = content.encode(name)
    path.write_bytes(gzip.compress(packed) if ending.endswith(".gz") else packed)
    values, notes = told(path)
    assert values == rows
    assert len(notes) == 1
    assert notes[0].startswith(f"{path}")
    assert "reading it as" in notes[0]


def test_the_note_names_the_file_and_the_encoding(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content_of(".jsonl", CHINESE)[0].encode("gbk"))
    assert told(path)[1] == [f"{path} is not UTF-8: reading it as gb18030 (--encoding sets another)"]
    path.write_bytes(content_of(".jsonl", CHINESE)[0].encode("utf-16"))
    assert told(path)[1] == [f"{path}: reading it as utf-16"]


def test_standard_input_in_another_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gbk", "utf-16"):
        content, rows = content_of(".csv", CHINESE)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode(name))))
        (source,) = find_sources(["-"])
        assert [row.value for row in read(source, "train") if not isinstance(row, BadRow)] == rows


def test_what_is_utf8_stays_utf8(tmp_path: Path) -> None:
    """A damaged line among others of UTF-8 makes no other encoding of the file."""
    path = tmp_path / "a.jsonl"
    good = json.dumps({"text": "größer"}, ensure_ascii=False).encode()
    path.write_bytes(b"\n".join([good, json.dumps({"text": "größer, schöner"}, ensure_ascii=False).encode("cp1252"), good]))
    assert told(path) == ([{"text": "größer"}, "not UTF-8 (byte 0xf6 in column 13)", {"text": "größer"}], [])
    path.write_bytes(good)
    assert told(path) == ([{"text": "größer"}], [])


def test_texts_that_are_cut_within_a_character_stay_utf8(tmp_path: Path) -> None:
    """Each line ends in a part of a character, so none is UTF-8; GB18030 would read other characters from most bytes."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(b'{"text": "%s"}\n' % text.encode()[:22] for text in CHINESE * 3))
    values, notes = told(path)
    assert notes == []
    assert all(value.startswith("not UTF-8 (byte 0x") for value in values)


@pytest.mark.parametrize("name", ["cp1252", "gbk", "shift_jis", "euc_kr", "big5"])
def test_a_long_text_is_recognised_as_a_short_one(name: str, tmp_path: Path) -> None:
    """charset-normalizer looks at pieces of a long text, and a piece of one character used to decide about all."""
    path = tmp_path / "a.txt"
    texts = FRENCH if name == "cp1252" else TEXTS[name]
    content = "\n".join(texts * 2000)
    path.write_bytes(content.encode(name))
    assert told(path)[0] == [{"text": content}]


def test_rows_before_the_first_other_byte_are_read_once(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    plain = [{"text": f"row {number}"} for number in range(20_000)]
    rows = [*plain, *content_of(".jsonl", GERMAN)[1]]
    path.write_bytes("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("cp1252"))
    (source,) = find_sources([str(path)])
    consumed: list[int] = []
    read_rows = list(read(source, "train", consumed.append))
    assert [row.value for row in read_rows if not isinstance(row, BadRow)] == rows
    assert [row.line for row in read_rows] == list(range(1, len(rows) + 1))
    assert sum(consumed) == path.stat().st_size


def test_an_encoding_that_is_not_certain_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"text": "ascii"}\n{"text": "Grüße"}\n'.encode("cp1252"))
    cure = "if the file is not UTF-8, name its encoding: --encoding cp1252"
    assert told(path) == ([{"text": "ascii"}, f"not UTF-8 (byte 0xfc in column 13); {cure}"], [])
    assert told(path, "cp1252") == ([{"text": "ascii"}, {"text": "Grüße"}], [f"{path}: reading it as cp1252"])
    path = tmp_path / "a.txt"
    path.write_bytes("Jak se máš? Příliš žluťoučký kůň.".encode("iso8859_2"))
    with pytest.raises(DataError, match=r"a\.txt line 1 is not UTF-8 \(byte 0xe1\)$") as caught:
        told(path)
    assert caught.value.hint.startswith("if the file is not UTF-8, name its encoding: --encoding cp1250, ")


def test_a_named_encoding_is_never_read_with_replacements(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "\xff\xff"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl line 2 is not gbk \(byte 0xff\)$") as caught:
        told(path, "gbk")
    assert caught.value.hint == "llmft prepare --encoding NAME reads another encoding"
    assert told(path, "utf-8")[0] == [{"text": "a"}, "not UTF-8 (byte 0xff in column 11)"]
    path.write_bytes('{"text": "a"}'.encode("utf-16"))
    with pytest.raises(DataError, match=r"a\.jsonl is UTF-16, not UTF-8$"):
        told(path, "utf-8")


def test_the_encoding_names_that_mark_the_byte_order_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("\ufeffprompt,completion\na,b\n".encode("utf-16-le"))
    assert told(path, "utf-16-le")[0] == [{"prompt": "a", "completion": "b"}]
