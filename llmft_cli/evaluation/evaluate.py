"""eval: compare base and tuned model on the same held-out rows and the same prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from llmft_cli.base.errors import DataError, StageError, UsageError
from llmft_cli.base.files import hash_file, hash_path
from llmft_cli.base.libraries import versions
from llmft_cli.base.reporter import Reporter
from llmft_cli.data.forms.formats import RowError
from llmft_cli.data.store import HELD_OUT_FILE, VALIDATION, load_split, write_json_lines
from llmft_cli.evaluation import report
from llmft_cli.evaluation.comparison import Comparison, compare
from llmft_cli.evaluation.metrics import TEXT_METRICS, score
from llmft_cli.evaluation.prompts import Prompt, read_prompts
from llmft_cli.evaluation.results import ArmScores, Prediction, Summary
from llmft_cli.models.expected_time import ANSWERING, warn_if_long
from llmft_cli.run_dir.run import RunDir
from llmft_cli.run_dir.stages import stage
from llmft_cli.serving.generation import BASE, TUNED, TunedModel, answer_all, load_tuned
from llmft_cli.settings import config as settings
from llmft_cli.settings.config import Config
from llmft_cli.training.loop.held_out import HeldOutLoss, held_out_loss

ARMS = (BASE, TUNED)
HELD_OUT_NAME = "held-out"


@dataclass(frozen=True)
class EvalResult:
    """What `eval --json` prints."""

    name: str
    headline: str
    prompts: int
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
        StageError: the run is not trained or is stale, already has this evaluation, or has nothing to evaluate on.
        DataError: the prompt file cannot be used.
    """
    name = valid_name(name or (prompts_file.stem if prompts_file else HELD_OUT_NAME))
    prompts = read_prompts(prompts_file) if prompts_file else held_out_prompts(run)
    run.require("train", allow_stale)
    if not prompts and load_split(run.data, VALIDATION) is None:
        raise StageError(f"{run.path} has no held-out rows to evaluate on", "give prompts with --prompts FILE")
    with stage(run, f"eval/{name}", settings.of_command(config, "eval"), input_hashes(run, prompts_file), overwrite) as record:
        tuned = load_tuned(run, config, reporter, allow_stale)
        losses = held_out_losses(tuned, run, config, reporter)
        summary = summarise(run, name, config, losses, predict(tuned, prompts, config, reporter))
        folder = run.evaluations / name
        result = EvalResult(
            name=name,
            headline=report.headline(summary),
            prompts=len(prompts),
            held_out_tokens=losses[BASE].tokens if losses else 0,
            arms=summary.arms,
            comparisons=summary.comparisons,
            report=str(folder / "report.html"),
        )
        with record.replacing(f"eval/{name}") as new_folder:
            write(new_folder, summary, result)
        record.facts |= {"arms": {arm: asdict(scores) for arm, scores in summary.arms.items()}, "versions": versions()}
    return result


def valid_name(name: str) -> str:
    if not name or name != Path(name).name or name.startswith("."):
        raise UsageError(f"--name {name!r} is not a valid folder name")
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
    )


def held_out_prompts(run: RunDir) -> list[Prompt]:
    file = run.data / HELD_OUT_FILE
    return read_prompts(file) if file.exists() and file.stat().st_size else []


def held_out_losses(tuned: TunedModel, run: RunDir, config: Config, reporter: Reporter) -> dict[str, HeldOutLoss]:
    """Loss of both arms on the held-out split; empty if nothing was held out."""
    from llmft_cli.training.step.row_separation import settle_rows

    rows = load_split(run.data, VALIDATION)
    losses: dict[str, HeldOutLoss] = {}
    if rows is None:
        return losses
    settle_rows(tuned.model)
    with reporter.track("held-out loss", total=len(ARMS)) as advance:
        for arm in ARMS:
            with tuned.arm(arm) as model:
                losses[arm] = held_out_loss(model, rows, config.eval_batch_size, tuned.device)
            advance(1)
    return losses


def predict(tuned: TunedModel, prompts: Sequence[Prompt], config: Config, reporter: Reporter) -> list[Prediction]:
    """Greedy answers of both arms to every prompt, scored if an answer is expected."""
    try:
        ids = [tuned.encoder.prompt(prompt.messages) for prompt in prompts]
    except RowError as error:
        raise DataError(f"a prompt cannot be rendered: {error}") from error
    if prompts:
        reporter.note(f"answering {len(prompts)} prompts with {' and '.join(ARMS)}")
    tokens = len(ARMS) * (sum(map(len, ids)) + len(ids) * config.max_new_tokens)
    less = "use a GPU, fewer prompts, or a smaller --max-new-tokens"
    warn_if_long("answering", tuned.model, tokens, ANSWERING, tuned.device, tuned.compute_dtype, less, reporter)
    answers: dict[str, list[str]] = {}
    for arm in ARMS:
        with reporter.track(f"{arm} answers", total=len(prompts)) as advance:
            answers[arm] = answer_all(tuned, ids, arm, config.max_new_tokens, config.eval_batch_size, advance)
    predictions = []
    for index, prompt in enumerate(prompts):
        own = {arm: answers[arm][index] for arm in ARMS}
        scores = {} if prompt.expected is None else {arm: score(answer, prompt.expected) for arm, answer in own.items()}
        predictions.append(Prediction(prompt.messages, prompt.expected, own, scores))
    return predictions


def arm_scores(arm: str, loss: HeldOutLoss | None, predictions: Sequence[Prediction]) -> ArmScores:
    scored = [prediction.scores[arm] for prediction in predictions if prediction.scores]
    means: dict[str, float | None] = {
        metric: fmean(row[metric] for row in scored) if scored else None for metric in TEXT_METRICS
    }
    return ArmScores(loss=loss.loss if loss else None, perplexity=loss.perplexity if loss else None, **means)


def comparisons_of(predictions: Sequence[Prediction], seed: int) -> list[Comparison]:
    """Tuned against base, prompt by prompt, for every text metric."""
    scored = [prediction.scores for prediction in predictions if prediction.scores]
    if not scored:
        return []
    return [
        compare(metric, BASE, TUNED, [row[BASE][metric] for row in scored], [row[TUNED][metric] for row in scored], seed)
        for metric in TEXT_METRICS
    ]


def write(folder: Path, summary: Summary, result: EvalResult) -> None:
    content: dict[str, Any] = asdict(summary)
    write_json_lines(folder / "predictions.jsonl", content.pop("predictions"))
    content |= {"headline": result.headline, "prompts": result.prompts, "held_out_tokens": result.held_out_tokens}
    (folder / "summary.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(report.markdown(summary), encoding="utf-8")
    (folder / "report.html").write_text(report.html(summary), encoding="utf-8")
