"""JSON text, decoded value by value, and messages for what is wrong with it."""

from __future__ import annotations

import codecs
import contextlib
import json
import re
from collections import Counter
from typing import Any

from llmft_cli.base.errors import DataError, first_line
from llmft_cli.data.reading.compression import Consumed, check_length, chunks, ignore
from llmft_cli.data.reading.rows import Source, UndecodableText

JSON_SPACE = re.compile(r"[ \t\n\r]*")
# A value that ends this close to the end of the text read so far may continue.
MARGIN_CHARACTERS = 16
UNFINISHED = object()
NOT_UTF_8 = "not UTF-8"


class RefusedValue(ValueError):
    """A value that is well-formed JSON but cannot be used."""


def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise RefusedValue(f"duplicate key {next(key for key in counts if counts[key] > 1)!r} in an object")
    return value


DECODER = json.JSONDecoder(object_pairs_hook=object_of)
# Accepts what DECODER refuses, to find where the value ends.
LENIENT_DECODER = json.JSONDecoder(parse_int=len)


def json_error_text(error: ValueError | RecursionError) -> str:
    """What is wrong in one line of JSON."""
    if isinstance(error, UnicodeDecodeError):
        return utf_8_error_text(error)
    if isinstance(error, RefusedValue):
        return str(error)
    if isinstance(error, RecursionError):
        return "malformed JSON: nested too deeply"
    if not isinstance(error, json.JSONDecodeError):
        return "a number with thousands of digits" if "int_max_str_digits" in str(error) else first_line(error)
    if error.pos >= len(error.doc.rstrip(" \t\n\r")):
        return "malformed JSON: unexpected end"
    if error.doc[error.pos] == "\0":
        return f"NUL byte in column {error.colno}"
    if error.msg == "Extra data" and "\r" in error.doc[: error.pos].lstrip():
        return f"a carriage return instead of a line feed ends the row before column {error.colno}"
    return f"malformed JSON: {error.msg.removesuffix(' at')} in column {error.colno}"


def utf_8_error_text(error: UnicodeDecodeError) -> str:
    """What is wrong in a line that is not UTF-8."""
    return f"{NOT_UTF_8} (byte {error.object[error.start]:#04x} in column {error.start + 1})"


def beginning_of(text: str, position: int) -> tuple[Any, int]:
    """As much of the value at a position as the text has, and where that ends; an unfinished text is None."""
    position = after_space(text, position)
    with contextlib.suppress(ValueError):
        value: Any
        value, position = DECODER.raw_decode(text, position)
        return value, position
    opening = text[position : position + 1]
    if opening not in ("{", "["):
        return None, len(text)
    items: list[Any] = []
    pairs: dict[str, Any] = {}
    while position < len(text) and text[position] in "{[,":
        value, position = beginning_of(text, position + 1)
        if opening == "{":
            key, colon = value, after_space(text, position)
            value, position = beginning_of(text, colon + 1)
            if isinstance(key, str) and colon < len(text):
                pairs[key] = value
        else:
            items.append(value)
        position = after_space(text, position)
    return pairs if opening == "{" else items, len(text)


def after_space(text: str, position: int) -> int:
    return JSON_SPACE.match(text, position).end()  # type: ignore[union-attr]


class JsonText:
    """The text of a JSON file; only the part being decoded is in memory.

    Attributes:
        text: the part in memory.
        position: index in `text` of the next character to decode.
        ended: whether `text` reaches the end of the file.
    """

    def __init__(self, source: Source, consumed: Consumed = ignore) -> None:
        self.source = source
        self.text = ""
        self.position = 0
        self.ended = False
        self._chunks = chunks(source, consumed)
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._first_line = 1  # of `text`
        self._first_column = 0  # of `text`, from 0
        self._counted = (0, 1)  # a position and its line: line feeds before it are not counted again

    def line(self) -> int:
        """The line of the current position."""
        position, line = self._counted
        self._counted = (self.position, line + self.text.count("\n", position, self.position))
        return self._counted[1]

    def peek(self) -> str:
        """The next character that is not white space; empty at the end of the file."""
        skipped, line = 0, self.line()
        while True:
            start = self.position
            self.position = after_space(self.text, start)
            if self.position < len(self.text):
                return self.text[self.position]
            if self.ended:
                return ""
            skipped += self.position - start
            check_length(self.source, line, skipped)
            self._grow()

    def skip(self, characters: int) -> None:
        self.position += characters

    def decode(self, limit_characters: int | None = None) -> Any:
        """The next value, or `UNFINISHED` if it is longer than `limit_characters`.

        Raises:
            DataError: the value is too long.
            RefusedValue: it cannot be used; the position is after it.
            ValueError, RecursionError: it is malformed.
        """
        refused: ValueError | None = None
        decoder = DECODER
        while True:
            try:
                value, end = decoder.raw_decode(self.text, self.position)
            except json.JSONDecodeError as error:
                if self.ended or not self._may_be_cut(error):
                    raise
            except ValueError as error:
                refused, decoder = RefusedValue(json_error_text(error)), LENIENT_DECODER
                continue
            else:
                check_length(self.source, self.line(), end - self.position)
                if self.ended or end + MARGIN_CHARACTERS <= len(self.text) or isinstance(value, dict | list | str):
                    self.position = end
                    if refused:
                        raise refused
                    return value
            size = len(self.text) - self.position
            if limit_characters is not None and size > limit_characters:
                return UNFINISHED
            check_length(self.source, self.line(), size)
            self._grow()

    def beginning(self) -> Any:
        """As much of the next value as is in memory; an empty object if it is nested too deeply."""
        try:
            return beginning_of(self.text, self.position)[0]
        except RecursionError:
            return {}

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        """Whether an error may go away after reading more of the file."""
        return error.msg.startswith("Unterminated string") or error.pos + MARGIN_CHARACTERS > len(self.text)

    def _grow(self) -> None:
        """Drop the decoded text and double the rest, so that a long value is decoded only a few times."""
        behind, rest = self.text[: self.position], self.text[self.position :]
        line_start = behind.rfind("\n") + 1
        self._first_column = len(behind) - line_start + (0 if line_start else self._first_column)
        self._first_line = self.line()
        self._counted, self.position = (0, self._first_line), 0
        parts, wanted = [rest], max(len(rest), 1)
        while wanted > 0 and not self.ended:
            chunk = next(self._chunks, b"")
            self.ended = not chunk
            try:
                parts.append(self._decode(chunk, self.ended))
            except UnicodeDecodeError as error:
                line = self._first_line + "".join(parts).count("\n") + error.object.count(b"\n", 0, error.start)
                raise UndecodableText(
                    f"{self.source.name} line {line} is not UTF-8 (byte {error.object[error.start]:#04x})"
                ) from error
            wanted -= len(parts[-1])
        self.text = "".join(parts)

    def place(self, position: int) -> tuple[int, int]:
        """Line and column, both from 1, of a position in `text`."""
        line_start = self.text.rfind("\n", 0, position) + 1
        column = position - line_start + (0 if line_start else self._first_column) + 1
        return self._first_line + self.text.count("\n", 0, position), column

    def refusal(self, error: ValueError | RecursionError) -> DataError:
        """The error that rejects the whole file because of its next value."""
        if not isinstance(error, json.JSONDecodeError):
            return DataError(f"{self.source.name} line {self.line()}: {json_error_text(error)}")
        solid = len(self.text.rstrip(" \t\n\r"))
        if self.ended and error.pos >= solid:
            return DataError(f"{self.source.name} line {self.place(solid)[0]}: malformed JSON: unexpected end")
        return self.malformed(error.msg.removesuffix(" at"), self.place(error.pos))

    def unexpected(self, message: str) -> DataError:
        """The error that rejects the whole file because of an unexpected character, or its unexpected end."""
        return self.refusal(json.JSONDecodeError(message, self.text, self.position))

    def malformed(self, message: str, place: tuple[int, int]) -> DataError:
        return DataError(f"{self.source.name} line {place[0]}: malformed JSON: {message} in column {place[1]}")
