"""Pictures, sound and video in a row, which training on text cannot use, by the many names of their keys."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from llmft_cli.data.forms.examples import RowError

# `image`, `images`, `image_1`, `imageUrl`, `image_path`, `input_image`, but not `image_caption` or `num_images`.
MEDIA = re.compile(
    r"(?:input_|output_)?(?P<kind>image|img|picture|photo|audio|video)s?(?:_?\d+)?"
    r"(?:_(?:url|uri|path|file|file_?name|bytes|base64|b64|data|list)s?)?"
)
KINDS = {
    "img": "an image",
    "image": "an image",
    "picture": "an image",
    "photo": "an image",
    "audio": "audio",
    "video": "a video",
}
# Names with no such pattern: inputs of models that see, and columns of WebDataset.
OTHER_MEDIA = {
    "pixel_values": "an image",
    "pixel_values_videos": "a video",
    "multi_modal_data": "an image, audio or video",
    **dict.fromkeys(("jpg", "jpeg", "png", "webp"), "an image"),
    **dict.fromkeys(("wav", "mp3", "flac"), "audio"),
    **dict.fromkeys(("mp4", "webm"), "a video"),
}
# Types of parts of a message, and keys of Gemini's parts. As keys of a row they are often something else.
FILE_PARTS = frozenset({"file", "input_file", "document", "inline_data", "file_data"})
LONGEST_NAME = 40
CAMEL_CASE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


@lru_cache(maxsize=1024)
def media_keys(keys: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the keys of a row or a message that have a medium other than text."""
    return tuple(key for key in keys if media_in(key))


def media_in(name: Any) -> str | None:
    """What a key has by its name ("an image"), or None for text."""
    plain = plain_name(name)
    match = MEDIA.fullmatch(plain)
    return KINDS[match["kind"]] if match else OTHER_MEDIA.get(plain)


def media_in_part(name: Any) -> str | None:
    """The same for the type of a part of a message, or a key of one."""
    return "a file" if plain_name(name) in FILE_PARTS else media_in(name)


def plain_name(name: Any) -> str:
    """A name in lower case, with underscores between its words; empty if it is too long for the name of a medium."""
    if not isinstance(name, str) or len(name) > LONGEST_NAME:
        return ""
    return CAMEL_CASE.sub("_", name).lower().replace("-", "_").strip()


def is_given(value: Any) -> bool:
    """Whether a medium is there: empty texts, lists and objects, false and 0 are none."""
    if isinstance(value, dict):
        return any(map(is_given, value.values()))
    if isinstance(value, list | tuple):
        return any(map(is_given, value))
    if isinstance(value, str):
        return value.strip().lower() not in ("", "[]", "{}", "null", "none", "nan")
    return bool(value) and value == value  # NaN, an empty cell of a table, is not equal to itself


def refuse_media(values: dict[str, Any], keys: Iterable[str], where: str = "") -> None:
    """Refuse a row with anything but text.

    Args:
        values: the row, a message, or a part of one.
        keys: those of its keys that are media.
        where: the place of `values`, for error messages.

    Raises:
        RowError: one of them has a value.
    """
    for key in keys:
        if is_given(values[key]):
            place = f"{where}.{key}" if where else key
            raise RowError(f"the row has {media_in(key)}, which a text model cannot learn from ({place})")


def refuse_media_in_turns(turns: Sequence[Any], key: str) -> None:
    """Refuse a conversation one of whose messages has a medium beside its text.

    Args:
        turns: the messages as read.
        key: the place of the list, for error messages.

    Raises:
        RowError: one has.
    """
    for number, turn in enumerate(turns, 1):
        if type(turn) is dict and len(turn) > 2 and (keys := media_keys(tuple(turn))):
            refuse_media(turn, keys, f"{key}[{number}]")


def refuse_media_part(part: dict[str, Any], where: str) -> None:
    """Refuse a part of a message's content that is an image, audio, a video or a file.

    Raises:
        RowError: it is one.
    """
    kind = media_in_part(part.get("type"))
    if kind is None and part.get("type") != "text":
        kind = next((found for key, value in part.items() if (found := media_in_part(key)) and is_given(value)), None)
    if kind:
        raise RowError(f"the row has {kind}, which a text model cannot learn from ({where})")
