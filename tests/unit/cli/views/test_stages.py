"""The texts of the commands' results."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("torch")

from llmft_cli.cli.views import stages
from llmft_cli.cli.views.sections import Section
from llmft_cli.data.report.summary import PrepareResult
from llmft_cli.evaluation.evaluate import EvalResult
from llmft_cli.evaluation.results import ArmScores
from llmft_cli.merging.merge import MergeResult
from llmft_cli.merging.verify import Verification
from llmft_cli.training.judgement.advice import Advice
from llmft_cli.training.judgement.result import TrainResult
from llmft_cli.training.profiling.profiling import Profile
from llmft_cli.training.profiling.roofline import Roofline

GIB = 2**30


def rows(section: Section) -> dict[str, str]:
    return {row[0]: row[1] for row in section.rows}


def prepared(**changes: object) -> PrepareResult:
    values = {
        "rows": {"read": 1200, "kept": 1100, "rejected": 0, "duplicates": 0, "overlength": 0, "near_duplicates": 0},
        "tokens": {"total": 5000, "supervised": 2000},
        "splits": {"train": 1000, "validation": 100},
        "packing": {"rows": 40, "length": 2048, "efficiency": 0.9512},
        "lengths": {"min": 4, "median": 7.5, "mean": 8.0, "p95": 20, "max": 30},
        "forms": {"messages": 1100},
        "documents_split": 0,
        "rejected_reasons": [],
        "sources": [{"name": "a.jsonl", "read": 1200, "kept": 1100, "rejected": 0, "weight": 1.0}],
        "overlength": {"policy": "drop", "rows": 0, "tokens_lost": 0, "end_of_turns_lost": 0},
        "checks": [],
        "template": {"sha256": "ab" * 32, "end_of_turn": "<|im_end|>"},
    }
    return PrepareResult(**{**values, **changes})  # type: ignore[arg-type]


def found(check: str, level: str, count: int, *places: int) -> dict[str, object]:
    examples = [{"source": "a.jsonl", "line": line, "excerpt": "x"} for line in places]
    return {"check": check, "level": level, "count": count, "meaning": f"meaning of {check}", "examples": examples}


def test_prepare_of_clean_rows() -> None:
    figures, ending, following = stages.prepare("runs/x", prepared())
    assert figures.title == "Prepared runs/x"
    assert rows(figures) == {
        "rows": "1,100 kept of 1,200 read",
        "formats": "messages 1,100",
        "tokens": "5,000, of which 2,000 supervised",
        "row lengths": "min 4, median 7.5, p95 20, max 30 tokens",
        "split": "1,000 training, 100 held out",
        "packing": "40 sequences of 2,048 tokens would be 95.1% full",
        "end of turn": "<|im_end|>",
    }
    assert rows(ending) == {"report": "runs/x/data/report.html"}
    assert rows(following) == {"next": "llmft train runs/x"}


def test_prepare_tells_what_was_left_out() -> None:
    counts = {"read": 10, "kept": 4, "rejected": 3, "duplicates": 2, "overlength": 1, "near_duplicates": 1234}
    reasons = [{"reason": f"reason {number}", "count": number, "first": ["a:1", "a:2"]} for number in range(7)]
    lost = {"policy": "drop", "rows": 1, "tokens_lost": 2100, "end_of_turns_lost": 1}
    result = prepared(rows=counts, documents_split=2, rejected_reasons=reasons, overlength=lost, template={})
    figures, rejected, _, _ = stages.prepare("runs/x", result)
    shown = rows(figures)
    assert shown["rejected"] == "3 (see runs/x/data/rejected.jsonl)"
    assert shown["duplicates"] == "2 dropped"
    assert shown["near-duplicates"] == "1,234, kept on the same side of the split"
    assert shown["too long"] == "1 dropped with 2,100 tokens (see runs/x/data/rejected.jsonl)"
    assert shown["documents split"] == "2"
    assert "end of turn" not in shown
    assert list(rejected.rows) == [(f"reason {number}", str(number), "a:1, a:2") for number in range(5)]


@pytest.mark.parametrize(
    ("policy", "line"),
    [
        ("auto", "3 conversations became 8 rows, since the template renders answers in another way later"),
        ("on", "3 conversations became 8 rows, one for each answer"),
    ],
)
def test_prepare_tells_conversations_that_became_several_rows(policy: str, line: str) -> None:
    result = prepared(answer_rows={"policy": policy, "conversations": 3, "rows": 8})
    assert rows(stages.prepare("runs/x", result)[0])["rows per answer"] == line
    none = prepared(answer_rows={"policy": policy, "conversations": 0, "rows": 0})
    assert "rows per answer" not in rows(stages.prepare("runs/x", none)[0])


def keys(*names: str, harmless: bool = False) -> list[dict[str, object]]:
    return [{"key": name, "rows": 1100, "harmless": harmless} for name in names]


def test_prepare_tells_ignored_keys_but_not_those_that_only_describe_a_row() -> None:
    assert "ignored keys" not in rows(stages.prepare("runs/x", prepared(ignored_keys=keys("id", harmless=True)))[0])
    few = prepared(ignored_keys=[*keys("score", "title"), *keys("id", harmless=True)])
    assert rows(stages.prepare("runs/x", few)[0])["ignored keys"] == "score (1,100 rows), title (1,100 rows)"
    many = prepared(ignored_keys=keys(*"abcdefghij"))
    shown = rows(stages.prepare("runs/x", many)[0])["ignored keys"]
    assert shown.endswith("h (1,100 rows) and 2 more keys (see runs/x/data/report.json)")


@pytest.mark.parametrize(
    ("policy", "tokens_lost", "line"),
    [
        ("truncate", 1200, "3 truncated, which lost 1,200 tokens and 3 ends of turn"),
        ("split", 0, "3 split, nothing lost"),
        ("split", 12, "3 split, which lost 12 tokens and 3 ends of turn"),
    ],
)
def test_prepare_tells_what_over_length_rows_lost(policy: str, tokens_lost: int, line: str) -> None:
    lost = {"policy": policy, "rows": 3, "tokens_lost": tokens_lost, "end_of_turns_lost": 3}
    assert rows(stages.prepare("runs/x", prepared(overlength=lost))[0])["too long"] == line


def test_rows_without_an_answer_left_are_not_told_as_truncated() -> None:
    lost = {"policy": "truncate", "rows": 3, "tokens_lost": 1200, "end_of_turns_lost": 3, "dropped": 2}
    assert rows(stages.prepare("runs/x", prepared(overlength=lost))[0])["too long"] == (
        "1 truncated, 2 dropped without an answer left (see runs/x/data/rejected.jsonl), "
        "which lost 1,200 tokens and 3 ends of turn"
    )


def test_prepare_shows_warnings_in_full_and_notes_shortly() -> None:
    checks = [
        found("email_addresses", "note", 1200),
        found("mojibake", "warning", 1500, 7, 9),
        found("language", "note", 2),
        found("end_of_turn", "warning", 3),
        found("empty", "error", 1, 2),
    ]
    _, errors, warnings, ending, _ = stages.prepare("runs/x", prepared(checks=checks))
    assert (errors.title, errors.header) == ("1 error", ("check", "found", "meaning"))
    assert list(errors.rows) == [("empty", "1", "meaning of empty (first: a.jsonl:2)")]
    assert warnings.title == "2 warnings"
    assert list(warnings.rows) == [
        ("mojibake", "1,500", "meaning of mojibake (first: a.jsonl:7)"),
        ("end of turn", "3", "meaning of end_of_turn"),
    ]
    assert rows(ending) == {"notes": "email addresses 1,200, language 2", "report": "runs/x/data/report.html"}


def test_prepare_lists_sources_where_there_are_several() -> None:
    sources = [
        {"name": "a.jsonl", "read": 1200, "kept": 1100, "rejected": 0, "weight": 1.0},
        {"name": "b.csv", "read": 5, "kept": 4, "rejected": 1, "weight": 2.0},
    ]
    _, listed, _, _ = stages.prepare("runs/x", prepared(sources=sources))
    assert (listed.title, listed.header) == ("Sources", ("source", "read", "kept", "rejected"))
    assert list(listed.rows) == [("a.jsonl", "1,200", "1,100", "0"), ("b.csv", "5", "4", "1")]


def test_train() -> None:
    result = TrainResult(
        steps=12, train_loss=1.23456, eval_loss=None, best_step=None, tokens_per_second=1234.5, peak_memory_bytes=3 * GIB,
        plan={}, adapter="runs/a b/adapter", trainable_parameters=1_000_000, seconds=61.2,
        out_of_memory_retries=0, largest_pass_tokens=None, rehearsal_peak_bytes=None,
    )  # fmt: skip
    figures, following = stages.train("runs/a b", result)
    assert rows(figures) == {
        "steps": "12",
        "training loss": "1.2346",
        "speed": "1,234 tokens/s",
        "peak memory": "3.00 GiB",
        "time": "61 s",
        "trainable": "1,000,000 parameters",
        "adapter": "runs/a b/adapter",
    }
    assert rows(following) == {"next": "llmft eval 'runs/a b'"}
    compared = stages.train("runs/a b", replace(result, eval_loss=0.19, base_eval_loss=4.29))[0]
    assert rows(compared)["held-out loss"] == "0.1900 (base: 4.2900)"
    further = stages.train("runs/a b", replace(result, eval_loss=0.19, starting_adapter_eval_loss=0.25))[0]
    assert rows(further)["held-out loss"] == "0.1900 (starting adapter: 0.2500)"
    smaller = stages.train("runs/a b", replace(result, out_of_memory_retries=2, largest_pass_tokens=2048))[0]
    assert rows(smaller)["out of memory"] == "2 times; batches in passes of at most 2,048 tokens"


def test_wall_time_by_stage() -> None:
    found = stages.time_by_stage({"imports": 6.04, "first step": 2.0, "steps": 11.96})
    assert found.header == ("", "s", "share")
    assert list(found.rows) == [
        ("imports", "6.0", "30.2%"),
        ("first step", "2.0", "10.0%"),
        ("steps", "12.0", "59.8%"),
        ("in all", "20.0", "100.0%"),
    ]


def test_train_shows_its_advice_as_it_is() -> None:
    item = Advice("still_learning", "the loss fell from 1.2 to 1.1 in runs/[bold]", "llmft train 'runs/[bold]'")
    result = TrainResult(
        steps=1, train_loss=1.0, eval_loss=1.1, best_step=1, tokens_per_second=None, peak_memory_bytes=1, plan={},
        adapter="a", trainable_parameters=1, seconds=1, out_of_memory_retries=0, largest_pass_tokens=None,
        rehearsal_peak_bytes=None, advice=[item],
    )  # fmt: skip
    _, advice, _ = stages.train("runs/x", result)
    assert advice.title == "Advice"
    assert advice.rows == [("still learning", f"{item.message}\n{item.hint}")]


def test_profile() -> None:
    seconds = {"attention": 0.06, "matrix_products": 0.3, "other": 0.04}
    line = Roofline(0.296, 2e14, 1e11, 8e14, 2.9e12)
    found = Profile(4, 2, "cuda:0", 0.423, 0.4 / 0.423, seconds, line, None, "runs/x/profile/trace.json.gz")
    times, figures = stages.profile(found)
    assert (times.title, times.header) == ("Profile of steps 4 to 5 on cuda:0", ("", "ms per step", "share"))
    assert times.rows == [
        ("attention", "60.0", "14.2%"),
        ("matrix products", "300.0", "70.9%"),
        ("other", "40.0", "9.5%"),
        ("between kernels", "23.0", "5.4%"),
        ("step", "423.0", "100.0%"),
    ]
    assert rows(figures) == {
        "busy": "94.6% of the step",
        "roofline": "the step took 423 ms; the roofline is 296 ms (70%)",
        "trace": "runs/x/profile/trace.json.gz",
    }
    alone = replace(found, steps=1, device="cpu", roofline=None, why_no_roofline="steps on a CPU are not predicted")
    times, figures = stages.profile(alone)
    assert times.title == "Profile of step 4 on cpu"
    assert times.rows[-2][0] == "between operators"
    assert rows(figures)["roofline"] == "none: steps on a CPU are not predicted"


def test_merge() -> None:
    proof = Verification(True, 0.99876, 1.5e-4, 0.25, 0.4321, 900)
    figures, following = stages.merge("runs/x", MergeResult("runs/x/merged", "bfloat16", proof, 5 * GIB, 12.3))
    assert rows(figures) == {
        "merged": "runs/x/merged (bfloat16)",
        "verified": "top-1 agreement 99.88%, mean KL 1.5e-04, 900 tokens",
        "effect of the adapter": "mean KL 0.43 from the base",
        "peak memory": "5.00 GiB",
        "time": "12 s",
    }
    assert rows(following) == {"next": "llmft chat runs/x"}


def test_eval() -> None:
    arms = {"base": ArmScores(loss=2.5, perplexity=12.1825), "tuned": ArmScores(1.5, 4.48, 0.5, 0.75, 0.6, 0.4)}
    scores, summary = stages.evaluate("runs/x", EvalResult("held-out", "better", 20, 20, 4, 300, arms, [], "report.html"))
    assert scores.title == "Evaluated runs/x: held-out, 20 prompts"
    assert scores.header == ["", "loss", "perplexity", "exact_match", "token_f1", "rouge_l", "chrf"]
    assert scores.rows == [
        ["base", "2.500", "12.182", "-", "-", "-", "-"],
        ["tuned", "1.500", "4.480", "0.500", "0.750", "0.600", "0.400"],
    ]
    assert summary.rows == [("", "better"), ("report", "report.html")]


def test_eval_shows_answers_that_were_cut_or_are_empty() -> None:
    arms = {"base": ArmScores(cut=1200, empty=0), "tuned": ArmScores(cut=0, empty=3)}
    scores, _ = stages.evaluate("runs/x", EvalResult("mine", "better", 2000, 1500, 0, 0, arms, [], "report.html"))
    assert scores.title == "Evaluated runs/x: mine, 2,000 prompts, 1,500 with an expected answer"
    assert scores.header == ["", "loss", "perplexity", "exact_match", "token_f1", "rouge_l", "chrf", "cut", "empty"]
    assert [row[-2:] for row in scores.rows] == [["1,200", "0"], ["0", "3"]]
