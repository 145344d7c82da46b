"""eval: compare base and tuned model on the same held-out rows and the same prompts."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmft_cli.base.errors import StageError, UsageError, VerificationError
from llmft_cli.base.files import hash_file, hash_path
from llmft_cli.base.libraries import versions
from llmft_cli.base.reporter import Reporter
from llmft_cli.base.unicode_text import why_not_utf8
from llmft_cli.data.encoding.encoder import ConversationEncoder
from llmft_cli.data.store import VALIDATION, load_split, write_json_lines
from llmft_cli.evaluation import report
from llmft_cli.evaluation.answers import ARMS, arm_scores, comparison_of_complete, comparisons_of, predict
from llmft_cli.evaluation.comparison import Comparison
from llmft_cli.evaluation.prompt_lengths import check_prompt_lengths
from llmft_cli.evaluation.prompts import encode_prompts, held_out_prompts, read_prompts
from llmft_cli.evaluation.results import ArmScores, HeldOutRows, Prediction, Summary
from llmft_cli.evaluation.verdict import headline
from llmft_cli.models.limits import limits_of_recorded
from llmft_cli.models.loading import load_run_tokenizer
from llmft_cli.run_dir.run import RunDir
from llmft_cli.run_dir.stages import stage
from llmft_cli.serving.generation import BASE, TunedModel, load_tuned
from llmft_cli.settings import config as settings
from llmft_cli.settings.compute_types import FP32
from llmft_cli.settings.config import Config
from llmft_cli.training.loop.held_out import HeldOutLoss, held_out_loss

HELD_OUT_NAME = "held-out"


@dataclass(frozen=True)
class EvalResult:
    """What `eval --json` prints."""

    name: str
    headline: str
    prompts: int
    scored_prompts: int
    held_out_rows: int
    held_out_tokens: int
    arms: dict[str, ArmScores]
    comparisons: list[Comparison]
    report: str


def evaluate(
    run: RunDir,
    prompts_file: Path | None,
    name: str | None,
    config: Config,
    reporter: Reporter,
    *,
    overwrite: bool = False,
    allow_stale: bool = False,
) -> EvalResult:
    """Compare the tuned model with its base and write the report to `eval/NAME`.

    Args:
        prompts_file: prompts to answer; the run's held-out rows by default.
        name: of this evaluation; by default the prompt file's stem, or `held-out`.

    Raises:
        StageError: the run is not trained, stale or of an earlier version, already has this evaluation, or has no rows for it.
        DataError: the prompt file cannot be used.
    """
    name = valid_name(name or (prompts_file.stem if prompts_file else HELD_OUT_NAME))
    trained = run.require("train", allow_stale)
    prompts = read_prompts(prompts_file, reporter, merges_turns(run)) if prompts_file else held_out_prompts(run, reporter)
    if load_split(run.data, VALIDATION) is None and not prompts:
        raise StageError(f"{run.path} has no held-out rows to evaluate on", "give prompts with --prompts FILE")
    # Before the model is loaded, which takes minutes: the run's tokenizer is all that prompts need.
    limits = limits_of_recorded(trained["model"], reporter)
    tokenizer = load_run_tokenizer(run, trained["model"]["trust_remote_code"])
    ids = encode_prompts(ConversationEncoder(tokenizer, limits=limits), prompts)
    check_prompt_lengths(prompts, ids, limits, config)
    with stage(run, f"eval/{name}", settings.of_command(config, "eval"), input_hashes(run, prompts_file), overwrite) as record:
        tuned = load_tuned(run, config, reporter, allow_stale)
        losses = held_out_losses(tuned, run, config, reporter)
        summary = summarise(run, name, config, losses, predict(tuned, prompts, ids, config, reporter))
        with record.replacing(f"eval/{name}") as new_folder:
            write(new_folder, summary)
        record.facts |= {"arms": {arm: asdict(scores) for arm, scores in summary.arms.items()}, "versions": versions()}
    return EvalResult(
        name=name,
        headline=headline(summary),
        **counts(summary),
        arms=summary.arms,
        comparisons=summary.comparisons,
        report=str(run.evaluations / name / "report.html"),
    )


def merges_turns(run: RunDir) -> bool:
    """Whether the run's rows were prepared with `--merge-turns`."""
    entry = run.entry("prepare")
    return bool(entry and entry["config"].get("merge_turns"))


def valid_name(name: str) -> str:
    if not name or name != Path(name).name or name.startswith(".") or why_not_utf8(name):
        raise UsageError(f"{name!r} is not a valid folder name", "give another one with --name")
    return name


def input_hashes(run: RunDir, prompts_file: Path | None) -> dict[str, str]:
    hashes = {"adapter": hash_path(run.adapter)}
    if prompts_file:
        hashes[str(prompts_file.resolve())] = hash_file(prompts_file)
    return hashes


def summarise(
    run: RunDir, name: str, config: Config, losses: Mapping[str, HeldOutLoss], predictions: list[Prediction]
) -> Summary:
    return Summary(
        run=str(run.path),
        name=name,
        model=config.model,
        arms={arm: arm_scores(arm, losses.get(arm), predictions) for arm in ARMS},
        comparisons=comparisons_of(predictions, config.seed),
        predictions=predictions,
        settings=settings.of_command(config, "eval"),
        held_out=HeldOutRows(len(load_split(run.data, VALIDATION) or ()), losses[BASE].tokens) if losses else None,
        complete=comparison_of_complete(predictions, config.seed),
    )


def counts(summary: Summary) -> dict[str, int]:
    """What the scores are of."""
    return {
        "prompts": len(summary.predictions),
        "scored_prompts": sum(bool(row.scores) for row in summary.predictions),
        "held_out_rows": summary.held_out.rows if summary.held_out else 0,
        "held_out_tokens": summary.held_out.tokens if summary.held_out else 0,
    }


def held_out_losses(tuned: TunedModel, run: RunDir, config: Config, reporter: Reporter) -> dict[str, HeldOutLoss]:
    """Loss of both arms on the held-out split; empty if nothing was held out.

    Raises:
        VerificationError: a loss is not finite, so the model's answers mean nothing either.
    """
    from llmft_cli.training.batches.sequences import Sequences
    from llmft_cli.training.step.row_separation import settle_rows

    rows = load_split(run.data, VALIDATION)
    losses: dict[str, HeldOutLoss] = {}
    if rows is None:
        return losses
    sequences = Sequences.one_each(rows)
    settle_rows(tuned.model)
    with reporter.track("held-out loss", total=len(ARMS)) as advance:
        for arm in ARMS:
            with tuned.arm(arm) as model:
                losses[arm] = held_out_loss(model, sequences, config.eval_batch_size, tuned.device)
            check_finite(arm, losses[arm].loss, tuned.compute_dtype, run)
            advance(1)
    return losses


def check_finite(arm: str, loss: float, compute_dtype: str, run: RunDir) -> None:
    if math.isfinite(loss):
        return
    place = shlex.quote(str(run.path))
    hint = f"compute with more range: llmft eval {place} --compute-dtype fp32"
    if compute_dtype == FP32:
        hint = f"train again with a lower rate: llmft train {place} --overwrite --learning-rate 5e-5"
    raise VerificationError(f"the {arm} model's held-out loss is {loss} in {compute_dtype}, so nothing it says counts", hint)


def write(folder: Path, summary: Summary) -> None:
    content: dict[str, Any] = asdict(summary)
    write_json_lines(folder / "predictions.jsonl", content.pop("predictions"))
    content |= {"headline": headline(summary), **counts(summary)}
    texts = {
        "summary.json": json.dumps(content, indent=2, ensure_ascii=False) + "\n",
        "report.md": report.markdown(summary),
        "report.html": report.html(summary),
    }
    for name, text in texts.items():
        # A path that is not UTF-8 contains lone surrogates.
        (folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")
