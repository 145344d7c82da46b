"""merge: merges the adapter into the 16-bit base, and verifies that the result is the same model.

The verification runs the same rows through base + adapter and through the merged model as
reloaded from disk, and compares the next-token distributions.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmft_cli.base.cpu_threads import use_free_cores
from llmft_cli.base.errors import VerificationError
from llmft_cli.base.files import hash_path
from llmft_cli.base.libraries import versions
from llmft_cli.base.reporter import Reporter
from llmft_cli.data.encoding.encoder import ConversationEncoder
from llmft_cli.data.store import check_version
from llmft_cli.merging.verify import Verification, compare, next_token_logits, probe_rows
from llmft_cli.models import loading, model_source
from llmft_cli.models.adapters import load_adapter
from llmft_cli.models.expected_time import FORWARD, warn_if_long
from llmft_cli.models.model_source import ModelSource
from llmft_cli.run_dir.artifacts import reading
from llmft_cli.run_dir.run import RunDir
from llmft_cli.run_dir.stages import stage
from llmft_cli.settings import compute_types
from llmft_cli.settings import config as settings
from llmft_cli.settings.compute_types import torch_type, written_type
from llmft_cli.settings.config import Config

if TYPE_CHECKING:
    import torch
PASSES = 3  # per row: base + adapter, the base alone, and the merged model


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
        StageError: the run is not trained, is stale, was prepared by an earlier version, or is already merged.
        VerificationError: the merged model does not match base + adapter; it is deleted.
    """
    import resource  # not on Windows, where gpu-check reads the figures above

    trained = run.require("train", allow_stale)
    check_version(run.data)
    started = time.perf_counter()
    with stage(run, "merge", settings.of_command(config, "merge"), {"adapter": hash_path(run.adapter)}, overwrite) as record:
        device = loading.pick_device(config.device)
        computed = compute_types.settled(config, device, reporter).compute_dtype
        use_free_cores(device, reporter)
        source = model_source.resolve_recorded(trained["model"], reporter)
        probes = probe_rows(run)
        with record.replacing("merged") as folder:
            expected, base = write_merged(run, source, device, computed, folder, probes, reporter)
            reporter.note("comparing the written model with base + adapter")
            merged = ModelSource(str(folder), folder, None, "", source.trust_remote_code)
            written = loading.load_base(merged, device, torch_type(computed))
            verification = compare(expected, next_token_logits(written, probes), base)
            base_choice = str(written_type(computed)).removeprefix("torch.")
            if not verification.passed:
                raise VerificationError(
                    f"the merged model does not match base + adapter (mean KL {verification.mean_kl:.4f}, "
                    f"top-1 agreement {verification.top1_agreement:.1%})",
                    "the adapter is unchanged and works with `llmft chat`; please report this",
                )
        result = MergeResult(
            merged=str(run.merged),
            base_choice=base_choice,
            verification=verification,
            peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            seconds=time.perf_counter() - started,
        )
        record.facts |= {"headline": asdict(result), "versions": versions()}
    return result


def write_merged(
    run: RunDir,
    source: ModelSource,
    device: torch.device,
    compute_dtype: str,
    folder: Path,
    probes: Sequence[Sequence[int]],
    reporter: Reporter,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Merge into the 16-bit base and save; returns the logits of base + adapter and of the base for the probe rows.

    The base's weights are rounded to 16 bits even if the device computes in fp32.
    """
    reporter.note(f"loading {source.name} in 16 bits on {device}")
    base_model = loading.load_base(source, device, written_type(compute_dtype)).to(torch_type(compute_dtype))
    with reading(run, run.adapter):
        tuned = load_adapter(base_model, run.adapter)
    tokens = PASSES * sum(map(len, probes))
    warn_if_long("the comparison", tuned, tokens, FORWARD, device, compute_dtype, "merge on a machine with a GPU", reporter)
    expected = next_token_logits(tuned, probes)
    with tuned.disable_adapter():
        base = next_token_logits(tuned, probes)
    reporter.note(f"merging {run.adapter}")
    merged = tuned.merge_and_unload(safe_merge=True).to(written_type(compute_dtype))
    tokenizer = loading.load_run_tokenizer(run, source.trust_remote_code)
    # Inference servers read the eos token from here; it must be the end of turn that was trained.
    stop_ids = loading.end_of_answer_ids(tokenizer, merged, ConversationEncoder(tokenizer).end_of_turn())
    merged.generation_config.eos_token_id = stop_ids if len(stop_ids) > 1 else stop_ids[0]
    merged.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return expected, base
