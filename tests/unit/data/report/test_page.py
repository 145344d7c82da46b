"""The data report: its texts, the chart, and that row contents are escaped."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import pytest
from lxml import html as lxml_html

from llmft_cli.data.report import page
from llmft_cli.data.report.page import Tick, write_report
from llmft_cli.data.report.samples import Sample, Segment
from llmft_cli.data.report.summary import length_figures

HOSTILE = [
    "</script><script>alert(1)</script>",
    "</mark></code></div></details></td></table><img src=x onerror=alert(1)>",
    "<!-- {{ 7 * 7 }} {% raw %} {#",
    "\" onfocus=alert(1) autofocus x='",
    "]]> &lt;b&gt; &#60;",
]


def finding(check: str, level: str, count: int, text: str = "what it means") -> dict[str, Any]:
    return {
        "check": check, "level": level, "count": count, "meaning": text,
        "examples": [{"source": text, "line": 3, "excerpt": text}],
    }  # fmt: skip


def report(text: str = "harmless", **changes: Any) -> dict[str, Any]:
    return {
        "rows": {"read": 1200, "kept": 1100, "rejected": 12, "duplicates": 3, "overlength": 2, "near_duplicates": 4},
        "tokens": {"total": 50_000, "supervised": 19_000},
        "splits": {"train": 1000, "validation": 100},
        "packing": {"rows": 40, "length": 512, "efficiency": 0.95},
        "lengths": length_figures([10, 20, 30, 500]),
        "forms": {text: 1100},
        "documents_split": 1,
        "answer_rows": {"policy": "auto", "conversations": 3, "rows": 8},
        "sources": [{"name": text, "read": 1200, "kept": 1100, "rejected": 12, "weight": 1.0}],
        "overlength": {"policy": "truncate", "rows": 2, "tokens_lost": 900, "end_of_turns_lost": 2},
        "rejected_reasons": [{"reason": text, "count": 12, "first": [text, text]}],
        "checks": [finding(text, "warning", 7, text)],
        "template": {"sha256": "ab" * 32, "end_of_turn": text},
        "ignored_keys": [{"key": text, "rows": 1100, "harmless": False}, {"key": "id", "rows": 7, "harmless": True}],
        "seed": 42,
        "max_seq_length": 512,
        **changes,
    }


def sample(text: str = "harmless") -> Sample:
    segments = [
        Segment(text, False, True, 1),
        Segment(text, False, False, 5),
        Segment(text, True, False, 2),
        Segment(text, True, True, 1),
    ]
    return Sample(text, 7, "validation", 9, 3, segments)


def written_page(folder: Path, content: dict[str, Any], samples: list[Sample], model: str = "smollm2-135m") -> Any:
    file = folder / "report.html"
    write_report(file, content, samples, model)
    return lxml_html.fromstring(file.read_text(encoding="utf-8"))


def words(element: Any) -> str:
    return " ".join(element.text_content().split())


def table_under(tree: Any, heading: str) -> list[list[str]]:
    rows = tree.xpath(f"//section[@aria-labelledby='{heading}']//table//tr")
    return [[words(cell) for cell in row] for row in rows]


@pytest.mark.parametrize(
    ("checks", "level", "word"),
    [
        ([], "ready", "Ready to train"),
        ([finding("emails", "note", 3), finding("mojibake", "warning", 0)], "ready", "Ready to train"),
        ([finding("emails", "warning", 3)], "warning", "1 warning"),
        ([finding("a", "warning", 3), finding("b", "error", 1), finding("c", "warning", 1)], "error", "1 error and 2 warnings"),
    ],
)
def test_the_verdict(checks: list[dict[str, Any]], level: str, word: str, tmp_path: Path) -> None:
    content = report(checks=checks)
    assert page.verdict(content) == {
        "level": level,
        "word": word,
        "sentence": "1,100 rows with 50,000 tokens, of which the model learns to write 38.0%.",
    }
    assert written_page(tmp_path, content, []).xpath("//*[contains(@class, 'verdict')]/text()") == [word]


def test_checks_stand_by_level_and_count_and_those_that_found_nothing_are_left_out(tmp_path: Path) -> None:
    checks = [
        finding("small_note", "note", 1),
        finding("big_note", "note", 1500),
        finding("none", "error", 0),
        {**finding("warned_of", "warning", 5), "examples": []},
    ]
    tree = written_page(tmp_path, report(checks=checks), [])
    assert table_under(tree, "checks") == [
        ["check", "found"],
        ["1 warning"],
        ["warned of what it means", "5"],
        ["2 notes"],
        ["big note what it means 1 example what it means:3what it means", "1,500"],
        ["small note what it means 1 example what it means:3what it means", "1"],
    ]
    assert tree.xpath("//th[@scope='rowgroup']/@class") == ["level warning", "level note"]
    nothing = written_page(tmp_path, report(checks=[]), [])
    assert words(nothing.xpath("//section[@aria-labelledby='checks']")[0]) == "Checks No check found anything."


def test_what_became_of_the_rows(tmp_path: Path) -> None:
    tree = written_page(tmp_path, report(), [])
    assert table_under(tree, "packing") == [
        ["outcome", "rows"],
        ["read", "1,200"],
        ["kept", "1,100"],
        ["rejected", "12"],
        ["exact duplicates, dropped", "3"],
        ["near-duplicates, kept on the same side of the split", "4"],
        ["too long, truncated", "2"],
        ["documents split into several rows", "1"],
        ["conversations whose answers have rows of their own", "3"],
    ]
    assert "Over-length rows lost 900 tokens and 2 ends of turn (--on-overlength truncate)." in words(tree)
    assert "the training rows take 40 sequences of 512 tokens, which would be 95.0% full." in words(tree)
    assert tree.xpath("//rect[@class='used']/@width") == ["95.00%"]
    assert "The rest is padding" in words(tree)
    full = written_page(tmp_path, report(packing={"rows": 40, "length": 512, "efficiency": 1.0}), [])
    assert "The rest is padding" not in words(full)


@pytest.mark.parametrize(
    ("policy", "outcome"), [("drop", "dropped"), ("truncate", "truncated"), ("split", "split")]
)  # fmt: skip
def test_over_length_rows_by_policy(policy: str, outcome: str) -> None:
    lost = {"policy": policy, "rows": 2, "tokens_lost": 0, "end_of_turns_lost": 0}
    assert (f"too long, {outcome}", 2) in page.outcomes(report(overlength=lost))


def test_truncated_rows_without_an_answer_are_dropped_rows() -> None:
    lost = {"policy": "truncate", "rows": 2, "tokens_lost": 0, "end_of_turns_lost": 0, "dropped": 1}
    assert page.outcomes(report(overlength=lost))[-4:-2] == [
        ("too long, truncated", 1),
        ("too long, dropped without an answer left", 1),
    ]


def test_sources_have_weights_where_any_is_given(tmp_path: Path) -> None:
    sources = [
        {"name": "a.jsonl", "read": 1200, "kept": 1100, "rejected": 12, "weight": 1.0},
        {"name": "b.jsonl", "read": 5, "kept": 4, "rejected": 1, "weight": 2.5},
    ]
    assert table_under(written_page(tmp_path, report(sources=sources), []), "sources") == [
        ["source", "read", "kept", "rejected", "weight"],
        ["a.jsonl", "1,200", "1,100", "12", "1"],
        ["b.jsonl", "5", "4", "1", "2.5"],
    ]
    plain = written_page(tmp_path, report(sources=sources[:1]), [])
    assert table_under(plain, "sources")[0] == ["source", "read", "kept", "rejected"]


def test_rejected_rows_have_their_reason_and_first_places(tmp_path: Path) -> None:
    reasons = [
        {"reason": "text is empty", "count": 3, "first": ["a:1", "a:2"]},
        {"reason": "no JSON", "count": 1, "first": ["b:9"]},
    ]
    tree = written_page(tmp_path, report(rejected_reasons=reasons), [])
    assert table_under(tree, "rejected")[1:] == [["text is emptya:1, a:2, …", "3"], ["no JSONb:9", "1"]]
    assert not written_page(tmp_path, report(rejected_reasons=[]), []).xpath("//*[@id='rejected'] | //a[@href='#rejected']")


def test_ignored_keys_are_listed_and_those_that_describe_rows_are_marked(tmp_path: Path) -> None:
    tree = written_page(tmp_path, report("score"), [])
    assert table_under(tree, "ignored") == [["key", "rows"], ["score", "1,100"], ["id describes the row", "7"]]
    many = [{"key": f"key{number}", "rows": 1, "harmless": False} for number in range(page.MOST_KEYS + 2)]
    full = written_page(tmp_path, report(ignored_keys=many), [])
    assert len(table_under(full, "ignored")) == page.MOST_KEYS + 1
    assert "report.json, next to this page, lists all 52 keys." in words(full)
    assert not written_page(tmp_path, report(ignored_keys=[]), []).xpath("//*[@id='ignored'] | //a[@href='#ignored']")


def test_the_chart_fills_its_room_and_shows_a_limit_that_is_near() -> None:
    histogram = [{"up_to": 25, "rows": 40}, {"up_to": 50, "rows": 1}, {"up_to": 75, "rows": 0}, {"up_to": 100, "rows": 7}]
    chart = page.chart(histogram, 125)
    assert [(bar.x, bar.width, bar.height) for bar in chart.bars] == [(0, 20, 100), (20, 20, 2.5), (40, 20, 0), (60, 20, 17.5)]
    assert chart.bars[1].label == "26 to 50 tokens: 1 row"
    assert chart.limit == 100
    assert chart.lengths == [Tick(0, "0"), Tick(40, "50"), Tick(80, "100")]
    assert chart.counts == [Tick(100, "0"), Tick(75, "10"), Tick(50, "20"), Tick(25, "30"), Tick(0, "40")]
    assert page.chart(histogram, 80).limit == 80
    assert page.chart(histogram, 2048).limit is None
    assert page.chart(histogram, None).limit is None


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (1, [0, 1]),
        (5, [0, 1, 2, 3, 4, 5]),
        (6, [0, 2, 4, 6]),
        (11, [0, 5, 10, 15]),
        (101, [0, 50, 100, 150]),
        (2048, [0, 500, 1000, 1500, 2000, 2500]),
        (52_311, [0, 20_000, 40_000, 60_000]),
    ],
)
def test_ticks_are_round_and_few(most: int, expected: list[int]) -> None:
    assert page.ticks(most) == expected


def test_samples_show_the_mask_and_special_tokens(tmp_path: Path) -> None:
    segments = [
        Segment("<|user|>", False, True, 1),
        Segment(" Which\n lamp? ", False, False, 5),
        Segment("The red\n\n lamp.\r", True, False, 2),
        Segment("<|end|>", True, True, 1),
    ]
    tree = written_page(tmp_path, report(), [Sample("rows.jsonl", 7, "validation", 9, 3, segments)])
    (shown,) = tree.xpath("//details[@id='sample-1']")
    assert words(shown.xpath("summary")[0]) == "rows.jsonl:7 held out 9 tokens, 3 learned (33.3%)"
    assert shown.get("data-split") == "validation"
    (text,) = shown.xpath("div")
    assert [(part.tag, part.get("class"), part.text_content()) for part in text] == [
        ("code", "token masked", "<|user|>"),
        ("span", "masked", " Which\n lamp? "),
        ("mark", "learned", "The red\n\n lamp.\\x0d"),
        ("code", "token learned", "<|end|>"),
    ]
    assert text.text_content() == "<|user|> Which\n lamp? The red\n\n lamp.\\x0d<|end|>"
    assert len(text.xpath("mark/span[@class='end']")) == 2


def test_every_sample_is_there_and_the_first_is_open(tmp_path: Path) -> None:
    shown = written_page(tmp_path, report(), [sample()] * 3).xpath("//details[contains(@class, 'sample')]")
    assert [(each.get("id"), each.get("open") is not None) for each in shown] == [
        ("sample-1", True),
        ("sample-2", False),
        ("sample-3", False),
    ]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(text: str, tmp_path: Path) -> None:
    harmless = written_page(tmp_path, report(), [sample()])
    hostile = written_page(tmp_path, report(text), [sample(text)], text)
    assert [(element.tag, sorted(element.keys())) for element in hostile.xpath("//*")] == [
        (element.tag, sorted(element.keys())) for element in harmless.xpath("//*")
    ]
    assert [part.text_content() for part in hostile.xpath("//*[@class='text']/*")] == [text] * 4
    assert hostile.xpath("//head/title/text()") == [f"Prepared data ({text})"]
    assert hostile.xpath("//dl[@class='origin']//code/text()")[1] == text


def test_control_characters_and_lone_surrogates_are_spelled(tmp_path: Path) -> None:
    tree = written_page(tmp_path, report("\x1b[31m \ud800\u202e"), [sample("\x1b[31m \ud800\u202e")])
    assert tree.xpath("//mark/text()")[1] == "\\x1b[31m \\ud800\\u202e"
    assert "\x1b" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_page_is_one_file_and_only_its_own_script_may_run(tmp_path: Path) -> None:
    tree = written_page(tmp_path, report(), [sample()])
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.startswith('<!doctype html>\n<html lang="en">')
    assert tree.xpath("//head/title/text()") == ["Prepared data (smollm2-135m)"]
    (script,) = tree.xpath("//script/text()")
    policy = tree.xpath("//meta[@http-equiv='Content-Security-Policy']/@content")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'; style-src 'unsafe-inline'" in policy
    assert f"script-src 'sha256-{digest}'" in policy
    assert not tree.xpath(
        "//link | //img | //@src | //@href[not(starts-with(., '#'))] | //@style | //@*[starts-with(name(), 'on')]"
    )
    assert "url(" not in text
    assert "@import" not in text


def test_headings_tables_and_controls_are_named(tmp_path: Path) -> None:
    tree = written_page(tmp_path, report(), [sample()])
    assert tree.xpath("//h1 | //h2") == sorted(tree.xpath("//h1 | //h2"), key=lambda heading: heading.sourceline)
    assert [words(heading) for heading in tree.xpath("//h2")] == [
        "Checks", "Lengths", "Packing", "Rows", "Sources", "Ignored keys", "Rejected", "Samples",
    ]  # fmt: skip
    assert not tree.xpath("//th[not(@scope)]")
    ids = tree.xpath("//@id")
    assert len(ids) == len(set(ids))
    assert set(tree.xpath("//@aria-labelledby")) <= set(ids)
    assert {link[1:] for link in tree.xpath("//a/@href")} <= set(ids)
    assert all(control.xpath("ancestor::label") for control in tree.xpath("//input | //select"))
