"""merge: the adapter folded into the 16-bit base, and a proof that it is the same model.

The proof runs the same real token ids through base + adapter and through the directory as it
was written, read back from the disk, and compares what they say about the next token.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmft_cli import compute_types, models
from llmft_cli import config as settings
from llmft_cli.adapters import load_adapter
from llmft_cli.compute_types import torch_type, written_type
from llmft_cli.config import Config
from llmft_cli.cpu_threads import use_free_cores
from llmft_cli.data.rendering import ConversationEncoder
from llmft_cli.data.store import TRAIN, VALIDATION, load_split
from llmft_cli.errors import VerificationError
from llmft_cli.expected_time import FORWARD, warn_if_long
from llmft_cli.libraries import versions
from llmft_cli.models import ModelSource
from llmft_cli.progress import Reporter
from llmft_cli.run_dir import RunDir, hash_path, replacing_directory

if TYPE_CHECKING:
    import torch

PROBE_ROWS = 8
PROBE_TOKENS = 512
PASSES = 3  # of each row: through base + adapter, the base alone, and the merged model
# Rounding merged weights to 16 bits, and computing in 16 bits, moves a model's distributions by
# 1e-3 nats or so (measured: 1.5e-3 on smollm2-135m); an adapter that is missing, doubled or in the
# wrong place moves them by about as much as training did.
ROUNDING_KL = 5e-3
SHARE_OF_BASE_KL = 0.01


@dataclass(frozen=True)
class Verification:
    """Merged model against base + adapter over the tokens of real rows.

    Attributes:
        top1_agreement: share of positions with the same likeliest next token.
        mean_kl: mean KL divergence of the next-token distributions, in nats.
        max_abs_logit_diff: largest difference of two logits.
        mean_kl_of_base: what the adapter itself changes (base against base + adapter), to compare with.
        tokens: positions compared.
    """

    passed: bool
    top1_agreement: float
    mean_kl: float
    max_abs_logit_diff: float
    mean_kl_of_base: float
    tokens: int


@dataclass(frozen=True)
class MergeResult:
    """What `merge --json` prints."""

    merged: str
    base_choice: str
    verification: Verification
    peak_rss_bytes: int
    seconds: float


def merge(
    run: RunDir, config: Config, reporter: Reporter, *, overwrite: bool = False, allow_stale: bool = False
) -> MergeResult:
    """Write the merged model to `run.merged` as a plain Hugging Face directory.

    Raises:
        StageError: the run is not trained, is stale, or is merged already.
        VerificationError: the written model does not say what base + adapter says; nothing is kept of it.
    """
    import resource  # not on Windows, where gpu-check reads the figures above

    trained = run.require("train", allow_stale)
    started = time.perf_counter()
    with run.stage("merge", settings.of_command(config, "merge"), {"adapter": hash_path(run.adapter)}, overwrite) as record:
        device = models.pick_device(config.device)
        computed = compute_types.settled(config, device, reporter).compute_dtype
        use_free_cores(device, reporter)
        source = models.resolve_recorded(trained["model"], reporter)
        probes = probe_rows(run)
        with replacing_directory(run.merged) as folder:
            expected, base = write_merged(run, source, device, computed, folder, probes, reporter)
            reporter.note("comparing the written model with base + adapter")
            written = models.load_base(ModelSource(str(folder), folder, None, ""), device, torch_type(computed))
            verification = compare(expected, next_token_logits(written, probes), base)
            base_choice = str(written_type(computed)).removeprefix("torch.")
            if not verification.passed:
                raise VerificationError(
                    f"the merged model is not base + adapter (mean KL {verification.mean_kl:.4f}, "
                    f"top-1 agreement {verification.top1_agreement:.1%})",
                    "the adapter is as it was: `llmft chat` serves it; please report this",
                )
        result = MergeResult(
            merged=str(run.merged),
            base_choice=base_choice,
            verification=verification,
            peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            seconds=time.perf_counter() - started,
        )
        record.outputs.append("merged")
        record.facts |= {"headline": asdict(result), "versions": versions()}
    return result


def probe_rows(run: RunDir) -> list[list[int]]:
    """Token ids of real rows, held-out ones where there are any."""
    rows = load_split(run.data, VALIDATION) or load_split(run.data, TRAIN)
    assert rows is not None
    return [row["input_ids"][:PROBE_TOKENS] for row in rows.select(range(min(PROBE_ROWS, len(rows))))]


def write_merged(
    run: RunDir,
    source: ModelSource,
    device: torch.device,
    compute_dtype: str,
    folder: Path,
    probes: Sequence[Sequence[int]],
    reporter: Reporter,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Merge into the 16-bit base and save; returns what base + adapter, and base alone, say about the probes.

    The base's values are those of 16 bits also where the device computes in fp32.
    """
    reporter.note(f"loading {source.name} in 16 bits on {device}")
    base_model = models.load_base(source, device, written_type(compute_dtype)).to(torch_type(compute_dtype))
    tuned = load_adapter(base_model, run.adapter)
    tokens = PASSES * sum(map(len, probes))
    warn_if_long("the comparison", tuned, tokens, FORWARD, device, compute_dtype, "merge on a machine with a GPU", reporter)
    expected = next_token_logits(tuned, probes)
    with tuned.disable_adapter():
        base = next_token_logits(tuned, probes)
    reporter.note(f"merging {run.adapter}")
    merged = tuned.merge_and_unload(safe_merge=True).to(written_type(compute_dtype))
    tokenizer = models.load_tokenizer(run.tokenizer)
    # Servers read from here where an answer ends; it must be the end of turn that was trained.
    stop_ids = models.end_of_answer_ids(tokenizer, merged, ConversationEncoder(tokenizer).end_of_turn())
    merged.generation_config.eos_token_id = stop_ids if len(stop_ids) > 1 else stop_ids[0]
    merged.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return expected, base


def next_token_logits(model: torch.nn.Module, rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Logits in fp32 on the CPU, one tensor of shape (tokens, vocabulary) per row."""
    import torch

    device = next(model.parameters()).device
    with torch.inference_mode():
        return [model(input_ids=torch.tensor([list(row)], device=device)).logits[0].float().cpu() for row in rows]


def compare(expected: Sequence[torch.Tensor], actual: Sequence[torch.Tensor], base: Sequence[torch.Tensor]) -> Verification:
    """Judge the merged model's logits by base + adapter's."""
    import torch

    tokens = sum(len(logits) for logits in expected)
    pairs = list(zip(expected, actual, strict=True))
    same = sum(int((one.argmax(-1) == other.argmax(-1)).sum()) for one, other in pairs)
    largest = max(float((one - other).abs().max()) for one, other in pairs)
    mean_kl = sum(kl_divergence(one, other) for one, other in pairs) / tokens
    mean_kl_of_base = sum(kl_divergence(one, other) for one, other in zip(expected, base, strict=True)) / tokens
    finite = all(bool(torch.isfinite(logits).all()) for logits in actual)
    passed = finite and mean_kl <= ROUNDING_KL + SHARE_OF_BASE_KL * mean_kl_of_base
    return Verification(passed, same / tokens, mean_kl, largest, mean_kl_of_base, tokens)


def kl_divergence(expected: torch.Tensor, actual: torch.Tensor) -> float:
    """KL(expected || actual) summed over positions, in nats."""
    import torch

    return float(torch.nn.functional.kl_div(actual.log_softmax(-1), expected.log_softmax(-1), reduction="sum", log_target=True))
