"""Rows with pictures, sound or video are refused, whatever the key is called; empty ones are not."""

from __future__ import annotations

from typing import Any

import pytest
from turns import ANSWER, USER, reason_of, talk

from llmft_cli.data.forms.examples import RowError
from llmft_cli.data.forms.formats import parse
from llmft_cli.data.forms.media_keys import media_in
from llmft_cli.data.forms.prompt_rows import parse_prompt

HUMAN, GPT = {"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}
NAMES_OF_IMAGES = "image images Image image_1 image2 imageUrl image_urls image-path img picture photos image_base64 png"


def content(*parts: dict[str, Any]) -> dict[str, Any]:
    return talk({"role": "user", "content": list(parts)}, ANSWER)


def refusal(what: str, place: str) -> str:
    return f"the row has {what}, which a text model cannot learn from ({place})"


@pytest.mark.parametrize(
    ("row", "what", "place"),
    [
        (talk({**USER, "content": "<image>What?"}, ANSWER, images=["1.jpg"]), "an image", "images"),
        (talk(USER, ANSWER, image={"bytes": b"\x89PNG", "path": None}), "an image", "image"),
        (talk(USER, ANSWER, audios=["a.wav"]), "audio", "audios"),
        (talk(USER, ANSWER, videos=[["1.jpg", "2.jpg"]]), "a video", "videos"),
        ({"instruction": "q", "output": "a", "image_path": "x.png"}, "an image", "image_path"),
        ({"conversations": [HUMAN, GPT], "image": "x"}, "an image", "image"),
        ({"text": "a red lamp", "jpg": b"\xff\xd8"}, "an image", "jpg"),
        ({"image": "x.png", "caption": "a red lamp"}, "an image", "image"),
        (talk({**USER, "images": ["iVBORw0KGgo="]}, ANSWER), "an image", "messages[1].images"),
        (talk(USER, {**ANSWER, "audio": {"id": "a"}}), "audio", "messages[2].audio"),
        ({"conversations": [{**HUMAN, "image": "x"}, GPT]}, "an image", "conversations[1].image"),
        (content({"type": "image"}), "an image", "messages[1].content[1]"),
        (content({"type": "text", "text": "q"}, {"type": "image_url", "value": "x"}), "an image", "messages[1].content[2]"),
        (content({"type": "input_audio", "input_audio": {"data": "x"}}), "audio", "messages[1].content[1]"),
        (content({"type": "video_url", "value": "x"}), "a video", "messages[1].content[1]"),
        (content({"inlineData": {"data": "x"}}), "a file", "messages[1].content[1]"),
        (content({"type": "document", "source": {}}), "a file", "messages[1].content[1]"),
    ],
)  # fmt: skip
def test_a_row_with_more_than_text_is_refused(row: dict[str, Any], what: str, place: str) -> None:
    """Rows with pictures were learned without them: the model learned to make up what it cannot see."""
    assert reason_of(row) == refusal(what, place)


@pytest.mark.parametrize(
    "nothing",
    [None, "", [], {}, [None], [""], [[]], {"bytes": None, "path": None}, "[]", "None", "nan", False, 0, float("nan")],
)
def test_no_picture_is_no_obstacle(nothing: Any) -> None:
    assert parse(talk(USER, {**ANSWER, "audio": nothing}, images=nothing))[0] == "messages"


@pytest.mark.parametrize(
    ("name", "what"),
    [
        *((name, "an image") for name in NAMES_OF_IMAGES.split()),
        *((name, "audio") for name in ("audio", "audio_path", "input_audio", "wav")),
        *((name, "a video") for name in ("video", "videos", "video_file", "mp4")),
        *((name, None) for name in ("image_caption", "num_images", "image_id", "imagery", "text", "has_image", "i" * 99, 7)),
    ],
)  # fmt: skip
def test_names_of_media(name: Any, what: str | None) -> None:
    assert media_in(name) == what


def test_a_column_under_another_name_is_what_the_user_says() -> None:
    assert parse({"image": "a text", "answer": "a"}, "auto", {"question": "image"})[0] == "question-answer"


def test_a_prompt_with_a_picture_is_refused() -> None:
    with pytest.raises(RowError, match=r"^the row has an image, which a text model cannot learn from \(image\)$"):
        parse_prompt({"prompt": "What is it?", "image": "x.png"})
