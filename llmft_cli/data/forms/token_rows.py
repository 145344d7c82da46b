"""Rows of token ids, with labels or masks for what is supervised."""

from __future__ import annotations

from typing import Any

from llmft_cli.data.forms.examples import IGNORED, RowError, Tokenised
from llmft_cli.data.forms.fields import decoded, shown, type_name

LEARNING_MASKS = ("assistant_masks", "completion_mask", "loss_mask", "loss_weights", "loss_scale")
PADDING_MASK = "attention_mask"


def parse_tokens(row: dict[str, Any]) -> Tokenised:
    """`input_ids`, supervised where `labels` and all masks of `LEARNING_MASKS` in the row agree.

    The first token is never supervised, since nothing predicts it. Padding is removed.

    Raises:
        RowError: a list is missing, malformed or of another length, or no token is supervised.
    """
    if "input_ids" not in row:
        raise RowError("input_ids is missing")
    ids = whole_numbers(row, "input_ids")
    for number, token in enumerate(ids, 1):
        if token < 0:
            raise RowError(f"input_ids[{number}] is {token}; token ids cannot be negative")
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
    """The list of whole numbers at `key`; floats such as 5.0 count."""
    value = decoded(row[key], key)
    if not isinstance(value, list) or not value:
        raise RowError(f"{key} must be a list of whole numbers, not {type_name(value)}")
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
            raise RowError(f"labels[{number}] is {label}, neither {IGNORED} nor the token id ({token})")
    return labels


def mask_of(row: dict[str, Any], key: str, ids: list[int]) -> list[Any]:
    mask = decoded(row[key], key)
    if not isinstance(mask, list) or not mask:
        raise RowError(f"{key} must be a list of 0 and 1, not {type_name(mask)}")
    for number, item in enumerate(mask, 1):
        if item not in (0, 1):
            raise RowError(f"{key}[{number}] is {shown(item)}, not 0 or 1")
    check_length(key, mask, ids)
    return mask


def check_length(key: str, values: list[Any], ids: list[int]) -> None:
    if len(values) != len(ids):
        raise RowError(f"{key} has length {len(values)}, but input_ids has length {len(ids)}")
