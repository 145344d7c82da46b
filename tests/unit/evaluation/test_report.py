import dataclasses

import pytest
from lxml import html as lxml_html
from markdown_it import MarkdownIt

from llmft_cli.base import html_pages
from llmft_cli.evaluation import metrics, report
from llmft_cli.evaluation.comparison import Comparison
from llmft_cli.evaluation.results import ArmScores, HeldOutRows, Prediction, Summary
from llmft_cli.evaluation.thinking import RULE

MINUS = "\N{MINUS SIGN}"
HOSTILE = [
    "<script>alert(1)</script>",
    "</div></section></td></table><img src=x onerror=alert(1)>",
    "```\n# out\n```",
    "````\n~~~\n| a | b |\n",
    "a | b || c \\| d",
    "--> <!-- {{ 7 * 7 }} {% raw %}",
    "[x](javascript:alert(1)) <https://evil.example> &lt;b&gt;",
]
HIDDEN = {
    "\x1b[31mred\x1b[0m": "\\x1b[31mred\\x1b[0m",
    "bell\a nul\0": "bell\\x07 nul\\x00",
    "over\rwritten": "over\\x0dwritten",
    "\u202egnp.exe": "\\u202egnp.exe",
    "\ud800lone": "\\ud800lone",
    "\x9bcsi": "\\x9bcsi",
}


USER = [{"role": "user", "content": "Which lamp?"}]


def prediction(expected: str | None, **answers: str) -> Prediction:
    scores = {arm: metrics.score(answer, expected) for arm, answer in answers.items()} if expected is not None else {}
    return Prediction([{"role": "user", "content": "Which lamp?"}], expected, answers, scores)


def comparison(delta: float, ci95: tuple[float, float] | None, p_value: float | None, a: str = "base") -> Comparison:
    return Comparison("token_f1", a, "tuned", delta, ci95, p_value)


def summary(predictions: list[Prediction], comparisons: list[Comparison], **arms: ArmScores) -> Summary:
    arms = arms or {"base": ArmScores(loss=2.91, token_f1=0.12), "tuned": ArmScores(loss=0.84, token_f1=0.71)}
    return Summary("runs/lamps", "default", "smollm2-135m", arms, comparisons, predictions, {"seed": 42})


def hostile_everywhere(text: str) -> Summary:
    case = Prediction([{"role": text, "content": text}], text, {text: text, "tuned": text}, {text: {"token_f1": 0.5}})
    compared = Comparison(text, text, "tuned", 0.1, (0.0, 0.2), 0.2)
    arms = {text: ArmScores(token_f1=0.5), "tuned": ArmScores(token_f1=0.6)}
    return Summary(text, text, text, arms, [compared, dataclasses.replace(compared, metric="token_f1")], [case], {text: text})


def scored(count: int) -> list[Prediction]:
    return [prediction("red lamp", base="blue", tuned="red lamp") for _ in range(count)]


def rendered_markdown(text: str) -> str:
    return MarkdownIt("commonmark").enable("table").render(text)


def tags(page: str) -> set[str]:
    return {element.tag for element in lxml_html.fromstring(page).iter() if isinstance(element.tag, str)}


@pytest.mark.parametrize(
    ("delta", "ci95", "p_value", "sentence"),
    [
        (
            0.59,
            (0.52, 0.66),
            0.0001,
            "On 68 prompts the tuned model's token F1 is 0.71 against the base model's 0.12 "
            "(+0.59, 95% interval +0.52 to +0.66, p < 0.001); held-out loss 0.84 against 2.91.",
        ),
        (
            -0.2,
            (-0.3, -0.1),
            0.002,
            "On 68 prompts the tuned model did worse: its token F1 is 0.71 against the base model's 0.12 "
            f"({MINUS}0.20, 95% interval {MINUS}0.30 to {MINUS}0.10, p = 0.002); held-out loss 0.84 against 2.91.",
        ),
        (
            0.01,
            (-0.03, 0.05),
            0.6,
            "On 68 prompts there is no clear difference: the tuned model's token F1 is 0.71 against the base model's 0.12 "
            f"(+0.01, 95% interval {MINUS}0.03 to +0.05, p = 0.600); held-out loss 0.84 against 2.91.",
        ),
        (
            0.0,
            (0.0, 0.0),
            1.0,
            "On 68 prompts the tuned model scored the same as the base model: token F1 is 0.71 on both sides; "
            "held-out loss 0.84 against 2.91.",
        ),
    ],
)
def test_headline_says_how_it_went(delta: float, ci95: tuple[float, float], p_value: float, sentence: str) -> None:
    assert report.headline(summary(scored(68), [comparison(delta, ci95, p_value)])) == sentence


def test_headline_of_one_prompt_and_of_a_worse_loss() -> None:
    arms = {"base": ArmScores(loss=1.0, token_f1=0.12), "tuned": ArmScores(loss=1.5, token_f1=0.71)}
    assert report.headline(summary(scored(1), [comparison(0.59, None, None)], **arms)) == (
        "On 1 prompt the tuned model's token F1 is 0.71 against the base model's 0.12 "
        "(+0.59; one prompt is too few for an interval); held-out loss got worse, 1.50 against 1.00."
    )


def test_headline_where_there_is_nothing_to_compare() -> None:
    unscored = [prediction(None, base="a", tuned="b")] * 2
    assert report.headline(summary(unscored, [])) == (
        "No text scores, because none of the 2 prompts has an expected answer; held-out loss 0.84 against 2.91."
    )
    assert report.headline(summary([], [], base=ArmScores(), tuned=ArmScores())) == "No prompts were answered."
    alone = summary([prediction("x", base="x")], [], base=ArmScores(token_f1=1.0))
    assert report.headline(alone) == "Only the base model was evaluated, so there is nothing to compare it with."


def test_prompts_stand_by_gain_with_the_losses_named_at_the_top() -> None:
    predictions = [
        prediction("red lamp", base="red lamp", tuned="red lamp"),
        prediction("red lamp", base="red lamp", tuned="blue"),
        prediction(None, base="x", tuned="y"),
        prediction("red lamp", base="blue", tuned="red lamp"),
        prediction("red lamp", base="red lamp", tuned="red"),
        prediction("red lamp", base="blue", tuned="red"),
    ]
    content = summary(predictions, [comparison(0.1, (-0.1, 0.3), 0.5)])
    page = lxml_html.fromstring(report.html(content))
    assert page.xpath("//article/@id") == [f"prompt-{number}" for number in (4, 6, 1, 5, 2, 3)]
    assert page.xpath("//p/a/@href") == ["#prompt-2", "#prompt-5"]
    text = report.markdown(content)
    assert "By token F1, tuned against base: better on 2, worse on 2, equal on 1, not scored 1." in text
    assert f"Largest losses: prompt 2 ({MINUS}1.00), prompt 5 ({MINUS}0.33)." in text
    assert next(line for line in text.splitlines() if line.startswith("### ")) == "### Prompt 4: better, +1.00"


def test_tables_mark_the_best_arm_and_the_direction() -> None:
    arms = {
        "base": ArmScores(2.0, 7.39, token_f1=0.5),
        "tuned": ArmScores(1.0, 2.72, token_f1=0.4),
        "retrieval": ArmScores(token_f1=0.5),
    }
    content = summary(
        scored(2), [comparison(-0.1, (-0.2, 0.0), 0.5), comparison(-0.1, (-0.2, 0.0), 0.5, a="retrieval")], **arms
    )
    page = lxml_html.fromstring(report.html(content))
    rows = {row.xpath("string(th)"): row for row in page.xpath("(//table)[1]/tbody/tr")}
    assert list(rows) == ["held-out loss (lower is better)", "perplexity (lower is better)", "token F1"]
    assert rows["held-out loss (lower is better)"].xpath("td[contains(@class, 'best')]/text()") == ["1.000"]
    assert rows["token F1"].xpath("td[contains(@class, 'best')]/text()") == ["0.500", "0.500"]
    assert page.xpath("//th[@scope='rowgroup']/text()") == ["tuned against base", "tuned against retrieval"]
    assert "| token F1 | 0.500 | 0.400 | 0.500 |" in report.markdown(content)
    assert "| held-out loss (lower is better) | 2.000 | 1.000 | \N{EN DASH} |" in report.markdown(content)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text_in_html(text: str) -> None:
    harmless = report.html(hostile_everywhere("harmless"))
    page = report.html(hostile_everywhere(text))
    assert tags(page) == tags(harmless)
    assert len(lxml_html.fromstring(page).xpath("//*")) == len(lxml_html.fromstring(harmless).xpath("//*"))
    shown = [element.text_content() for element in lxml_html.fromstring(page).xpath("//div[@class='text']")]
    assert shown == [text] * 4


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text_in_markdown(text: str) -> None:
    harmless = rendered_markdown(report.markdown(hostile_everywhere("harmless")))
    page = rendered_markdown(report.markdown(hostile_everywhere(text)))
    structure = [element.tag for element in lxml_html.fromstring(f"<div>{harmless}</div>").iter()]
    assert [element.tag for element in lxml_html.fromstring(f"<div>{page}</div>").iter()] == structure
    blocks = lxml_html.fromstring(f"<div>{page}</div>").xpath("//code")
    assert [block.text_content() for block in blocks] == [text + "\n"] * 4


@pytest.mark.parametrize(("text", "shown"), HIDDEN.items())
def test_control_characters_are_visible(text: str, shown: str) -> None:
    content = hostile_everywhere(text)
    for output in (report.markdown(content), report.html(content)):
        assert shown in output.replace("\\\\", "\\").replace("\\[", "[")
        assert not any(character in output for character in "\x1b\a\0\r\u202e\ud800\x9b")
        output.encode("utf-8")


def test_ordinary_unicode_and_windows_line_ends_are_left_alone() -> None:
    assert html_pages.visible("Grüße\r\n\t👩‍👩‍👧 نعم हिन्दी") == "Grüße\n\t👩‍👩‍👧 نعم हिन्दी"


def test_html_is_one_file_that_runs_and_loads_nothing() -> None:
    page = report.html(summary(scored(2), [comparison(0.59, (0.5, 0.6), 0.01)]))
    tree = lxml_html.fromstring(page)
    assert page.startswith('<!doctype html>\n<html lang="en">')
    assert tree.xpath("//title/text()") == ["Evaluation default of runs/lamps (smollm2-135m)"]
    assert tree.xpath("//meta[@charset='utf-8']")
    assert "default-src 'none'" in tree.xpath("//meta[@http-equiv]/@content")[0]
    assert not tree.xpath("//script | //link | //img | //@src | //@href[not(starts-with(., '#'))] | //@style")
    assert "url(" not in page
    assert "@import" not in page


def test_reports_mark_cut_answers_and_tell_the_rule_of_thinking() -> None:
    thought = "<think>red?</think>red lamp"
    scores = {"base": metrics.score("red lamp", "red lamp"), "tuned": metrics.score("blue", "red lamp")}
    raw = {"base": metrics.score(thought, "red lamp"), "tuned": scores["tuned"]}
    cut = {"base": False, "tuned": True}
    case = Prediction(
        USER, ["red lamp", "a red one"], {"base": thought, "tuned": "blue"}, scores, cut, {"base": "red lamp"}, raw
    )
    arms = {
        "base": ArmScores(token_f1=1.0, thinking=1, raw=raw["base"]),
        "tuned": ArmScores(token_f1=0.0, cut=1, raw=raw["tuned"]),
    }
    content = dataclasses.replace(summary([case], [], **arms), held_out=HeldOutRows(24, 1234))
    text, page = report.markdown(content), report.html(content)
    assert "| token F1 | 1.000 | 0.000 |" in text
    assert f"| token F1, thinking included | {raw['base']['token_f1']:.3f} | 0.000 |" in text
    assert "| answers cut at --max-new-tokens | 0 | 1 |" in text
    assert "| answers with thinking | 1 | 0 |" in text
    assert "| empty answers |" not in text
    assert "**tuned** (cut, exact match 0.00, " in text
    assert "**base** (scored without thinking, exact match 1.00, " in text
    tree = lxml_html.fromstring(page)
    assert tree.xpath("//span[@class='mark']/text()") == ["scored without thinking", "cut"]
    assert tree.xpath("//section[@class='answer expected']/div/text()") == ["red lamp", "a red one"]
    rows = {row.xpath("string(th)"): row.xpath("td/text()") for row in tree.xpath("(//table)[1]/tbody/tr")}
    assert rows["answers cut at --max-new-tokens"] == ["0", "1"]
    assert "token F1, thinking included" in rows
    notes = tree.xpath("//section[@aria-labelledby='scores']/p/text()")
    assert notes == [
        "Held-out loss and perplexity are of the run's 24 held-out rows (1,234 supervised tokens). "
        "The text metrics are means over the 1 prompt with an expected answer. "
        f"Where several answers are expected, the best score counts. {RULE}"
    ]
    assert "&lt;/think" in page
    assert "Answers are scored without the thinking before them" in text


def test_reports_of_nothing() -> None:
    empty = summary([], [], base=ArmScores(), tuned=ArmScores())
    empty = dataclasses.replace(empty, settings={})
    assert not {"table", "article"} & tags(report.html(empty))
    assert report.markdown(empty) == "# Evaluation default of runs/lamps\n\nModel: smollm2-135m\n\nNo prompts were answered.\n"
    unscored = report.html(summary([prediction(None, base="", tuned="b")], []))
    assert "(empty)" in unscored
    assert "better on" not in unscored
