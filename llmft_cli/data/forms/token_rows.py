"""Rows that come as token ids, with labels or masks that say what of them is learned."""

from __future__ import annotations

from typing import Any

from llmft_cli.data.forms.examples import IGNORED, RowError, Tokenised
from llmft_cli.data.forms.fields import decoded, kind_of, shown

LEARNING_MASKS = ("assistant_masks", "completion_mask", "loss_mask")
PADDING_MASK = "attention_mask"


def parse_tokens(row: dict[str, Any]) -> Tokenised:
    """`input_ids`, learned where `labels` and every mask of `LEARNING_MASKS` that the row has say so.

    The first token is never learned, since nothing comes before it, and padding is taken away.

    Raises:
        RowError: a list is missing, malformed or of another length, or no token is learned.
    """
    if "input_ids" not in row:
        raise RowError("input_ids is missing")
    ids = whole_numbers(row, "input_ids")
    for number, token in enumerate(ids, 1):
        if token < 0:
            raise RowError(f"input_ids[{number}] is {token}, and token ids are 0 or more")
    labels = ids if row.get("labels") in (None, "") else labels_of(row, ids)
    for key in LEARNING_MASKS:
        if row.get(key) not in (None, ""):
            labels = [label if one else IGNORED for label, one in zip(labels, mask_of(row, key, ids), strict=True)]
    if row.get(PADDING_MASK) not in (None, ""):
        present = mask_of(row, PADDING_MASK, ids)
        labels = [label for label, one in zip(labels, present, strict=True) if one]
        ids = [token for token, one in zip(ids, present, strict=True) if one]
    labels = [IGNORED, *labels[1:]]
    if all(label == IGNORED for label in labels):
        raise RowError("no token is supervised")
    return Tokenised(ids, labels)


def whole_numbers(row: dict[str, Any], key: str) -> list[int]:
    """The list of whole numbers at `key`, also where they are written as floats (5.0)."""
    value = decoded(row[key], key)
    if not isinstance(value, list) or not value:
        raise RowError(f"{key} must be a list of whole numbers, not {kind_of(value)}")
    if set(map(type, value)) == {int}:
        return value
    for number, item in enumerate(value, 1):
        if type(item) is not int and not (type(item) is float and item.is_integer()):
            raise RowError(f"{key}[{number}] is {shown(item)}, not a whole number")
    return [int(item) for item in value]


def labels_of(row: dict[str, Any], ids: list[int]) -> list[int]:
    labels = whole_numbers(row, "labels")
    check_length("labels", labels, ids)
    for number, (label, token) in enumerate(zip(labels, ids, strict=True), 1):
        if label not in (IGNORED, token):
            raise RowError(f"labels[{number}] is {label}, neither {IGNORED} nor the token there ({token})")
    return labels


def mask_of(row: dict[str, Any], key: str, ids: list[int]) -> list[Any]:
    mask = decoded(row[key], key)
    if not isinstance(mask, list) or not mask:
        raise RowError(f"{key} must be a list of 0 and 1, not {kind_of(mask)}")
    for number, item in enumerate(mask, 1):
        if item not in (0, 1):
            raise RowError(f"{key}[{number}] is {shown(item)}, not 0 or 1")
    check_length(key, mask, ids)
    return mask


def check_length(key: str, values: list[Any], ids: list[int]) -> None:
    if len(values) != len(ids):
        raise RowError(f"{key} has the length {len(values)}, and input_ids {len(ids)}")
