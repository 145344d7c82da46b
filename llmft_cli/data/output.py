"""Splits the ingested rows, and writes them to the run with their report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmft_cli.base.errors import DataError
from llmft_cli.data import store
from llmft_cli.data.checks import Finding
from llmft_cli.data.encoding.overlength import OverlengthLosses
from llmft_cli.data.forms.formats import Message
from llmft_cli.data.report import summary
from llmft_cli.data.report.page import write_report
from llmft_cli.data.report.samples import Sample, sample
from llmft_cli.data.report.summary import PrepareResult
from llmft_cli.data.splitting import Split, merged_groups, repeated, split_by_group, wanted_rows

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    from llmft_cli.data.encoding.encoder import ConversationEncoder
    from llmft_cli.data.ingested import IngestedRows
    from llmft_cli.settings.config import Config

SAMPLES = {store.TRAIN: 20, store.VALIDATION: 4}
EXAMPLES = 3


def write_data(data: Path, ingested: IngestedRows, encoder: ConversationEncoder, config: Config) -> PrepareResult:
    """Split and write the rows, their report and samples to `data`.

    Raises:
        DataError: the weights leave no row to train on, or a check warns and `strict` is set.
    """
    near_duplicates = ingested.near_duplicates.groups() if ingested.near_duplicates else None
    split = split_rows(ingested, near_duplicates, config)
    findings = [*findings_of_rows(ingested, near_duplicates, split, config), *ingested.checks.findings()]
    refuse_warnings(findings, config)
    spool = ingested.spool
    weights = [item.weight for item in ingested.inputs]
    train = repeated(split.train, spool.inputs, weights, config.seed)
    if not train:
        raise DataError(f"--weights {config.weights} leaves no row to train on", "raise the weights")
    store.write_split(store.split_file(data, store.TRAIN), spool, train)
    if split.validation:
        store.write_split(store.split_file(data, store.VALIDATION), spool, split.validation)
    conversations = (messages for row in split.validation if (messages := spool.messages(row)))
    store.write_json_lines(data / store.HELD_OUT_FILE, map(held_out_prompt, conversations))
    result = summary.summarise(ingested, encoder, split, train, findings, config)
    samples = pick_samples(ingested, encoder, split)
    store.write_json_lines(data / store.SAMPLES_FILE, map(asdict, samples))
    write_reports(data, result, samples, config)
    return result


def split_rows(ingested: IngestedRows, near_duplicates: NDArray[numpy.int64] | None, config: Config) -> Split:
    """Split the rows; near-duplicates, and rows with the same prompt or the same tokens, stay on the same side."""
    import numpy

    groupings = [numpy.asarray(ingested.prompts), numpy.asarray(ingested.contents)]
    if near_duplicates is not None:
        groupings.append(near_duplicates)
    return split_by_group(merged_groups(*groupings), wanted_rows(config.val_size, len(ingested.spool)), config.seed)


def held_out_prompt(messages: Sequence[Message]) -> dict[str, Any]:
    """A held-out conversation as a prompt with its expected answer."""
    return {"messages": messages[:-1], "expected": messages[-1]["content"]}


def findings_of_rows(
    ingested: IngestedRows, near_duplicates: NDArray[numpy.int64] | None, split: Split, config: Config
) -> list[Finding]:
    """Findings about the rows as a whole."""
    found = [
        Finding("rejected", "warning", ingested.bad, "unusable rows; rejected.jsonl has the reasons", []),
        Finding("overlength", "warning", ingested.losses.rows, overlength_meaning(ingested.losses, config), []),
        Finding(
            "unrendered",
            "warning",
            ingested.unrendered.rows,
            "the chat template leaves out a part, which the model never sees: choose another template, or remove the part",
            ingested.unrendered.examples,
        ),
        Finding(
            "other_beginning",
            "warning",
            ingested.other_beginnings.rows,
            "the prompt of an answer goes on with text that the answer does not begin with, such as thinking: "
            "the model is asked in another way than it learns; use a template that fits the answers",
            ingested.other_beginnings.examples,
        ),
        Finding("duplicates", "note", ingested.duplicates, "exact duplicates, dropped", []),
        Finding(
            "leakage",
            "warning",
            split.leaking,
            "near-duplicate rows on both sides of the split: the held-out loss is optimistic; use other held-out data",
            [],
        ),
    ]
    if near_duplicates is not None:
        found.append(near_duplicate_finding(ingested, near_duplicates))
    return [finding for finding in found if finding.count]


def overlength_meaning(losses: OverlengthLosses, config: Config) -> str:
    done = {"drop": "dropped", "truncate": "truncated, without their end of turn", "split": "split into several"}
    meaning = f"rows longer than {config.max_seq_length} tokens, {done.get(config.on_overlength, '')}"
    dropped = losses.dropped if config.on_overlength != "drop" else 0
    return f"{meaning}; {dropped:,} of them dropped, with no answer left" if dropped else meaning


def near_duplicate_finding(ingested: IngestedRows, groups: NDArray[numpy.int64]) -> Finding:
    import numpy

    rows = numpy.flatnonzero(groups != numpy.arange(len(groups))).tolist()
    examples = []
    for row in rows[:EXAMPLES]:
        earlier = "{source}:{line}".format(**source_and_line(ingested, int(groups[row])))
        examples.append({**source_and_line(ingested, row), "excerpt": f"nearly identical to {earlier}"})
    meaning = "rows nearly identical to an earlier one; all are kept, on the same side of the split"
    return Finding("near_duplicates", "note", len(rows), meaning, examples)


def source_and_line(ingested: IngestedRows, row: int) -> dict[str, Any]:
    return {"source": ingested.source_names[ingested.spool.sources[row]], "line": ingested.spool.lines[row]}


def refuse_warnings(findings: Sequence[Finding], config: Config) -> None:
    """With --strict, reject data that a check warns about."""
    bad = [finding for finding in findings if finding.level != "note"]
    if config.strict and bad:
        counts = ", ".join(f"{finding.check} {finding.count}" for finding in bad)
        raise DataError(
            f"the checks found problems, and --strict is set: {counts}", "prepare without --strict and see data/report.html"
        )


def pick_samples(ingested: IngestedRows, encoder: ConversationEncoder, split: Split) -> list[Sample]:
    """Sample rows, evenly spaced over each side of the split."""
    chosen = []
    for name, rows in ((store.TRAIN, split.train), (store.VALIDATION, split.validation)):
        step = max(1, len(rows) // SAMPLES[name])
        # Interleaved, so that the first few samples show both sides.
        chosen += [(index / SAMPLES[name], name, row) for index, row in enumerate(rows[::step][: SAMPLES[name]])]
    samples = []
    for _, name, row in sorted(chosen):
        input_ids, labels = ingested.spool.tokens([row])
        where = source_and_line(ingested, row)
        samples.append(sample(encoder.tokenizer, where["source"], where["line"], name, input_ids.tolist(), labels.tolist()))
    return samples


def write_reports(data: Path, result: PrepareResult, samples: Sequence[Sample], config: Config) -> None:
    text = json.dumps(asdict(result), indent=2, ensure_ascii=False) + "\n"
    (data / store.REPORT_FILE).write_text(text, encoding="utf-8", errors="backslashreplace")
    values = {**asdict(result), "seed": config.seed, "max_seq_length": config.max_seq_length}
    write_report(data / store.REPORT_PAGE, values, samples, config.model)
