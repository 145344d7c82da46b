"""Disk and RAM that training and merging need, computed from the shapes of a model on `meta`.

The contents of files follow from the shapes. The overhead was measured: headers and small files by `du`, with torch 2.13,
transformers 5.23, peft 0.21.2 and safetensors 0.8; the process by its peak RAM in a merge on an H100.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from llmft_cli.merging.verify import PROBE_ROWS, PROBE_TOKENS
from llmft_cli.settings.config import Config

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

STORED_BYTES = 2  # per value in a 16-bit safetensors file
FP32_BYTES = 4
# Names, shapes and offsets: 112 to 132 bytes per tensor measured.
SAFETENSORS_HEADER_BYTES = 128
# torch.save writes an archive entry for each state tensor: 813 to 830 bytes per parameter measured with AdamW.
OPTIMIZER_ENTRY_BYTES = 820
# README.md, adapter_config.json, scheduler.pt, rng_state.pth and 147 steps in trainer_state.json: 60 KiB on disk.
CHECKPOINT_SMALL_FILES_BYTES = 60 * 1024
# tokenizer.json: 72 bytes per token for SmolLM2 (49,152 tokens), 56 for a BPE trained on Python sources (32,000 tokens).
TOKENIZER_BYTES_PER_TOKEN = 75
# `save_pretrained` writes shards of this size, and copies a whole shard from the GPU at a time.
SHARD_BYTES = 50 * 10**9
# Python with all libraries and CUDA: the merge of Llama-2-7B on an H100, minus 13.48 GB of weights and 0.08 GB of logits
# (benchmarks/results/workflow-llama-2-7b-h100.json: 15.23 GB).
CUDA_PROCESS_BYTES = 1_700_000_000
LOADING_THREADS = 4  # transformers' `GLOBAL_WORKERS`
# glibc keeps freed allocations below this size in the process (M_MMAP_THRESHOLD_MAX).
KEPT_BELOW_BYTES = 32 * 2**20


@dataclass(frozen=True)
class HostResources:
    """The disk and RAM that a model needs.

    RAM means memory that the kernel cannot reclaim. Weights are read from mapped files: their pages count towards the
    process while there is room, and are dropped when there is none (observed: all private and clean).

    Attributes:
        parameters: of the base model.
        model_download_bytes: 16-bit safetensors of the base that must still be downloaded or converted.
        training_disk_bytes: checkpoints and tokenizer at the run's peak, without its data.
        training_ram_bytes: peak while the base is loaded and trained.
        merging_disk_bytes: the merged model; with `--overwrite`, the old one stays until the new one is complete.
        merging_ram_bytes: peak while the adapter is merged and the result is saved and verified.
        mapped_weights_bytes: peak of mapped pages of the base's files; they are gone when training starts or the merged
            model is saved.
    """

    parameters: int
    model_download_bytes: int
    training_disk_bytes: int
    training_ram_bytes: int
    merging_disk_bytes: int
    merging_ram_bytes: int
    mapped_weights_bytes: int


def host_resources(
    model: PeftModel | PreTrainedModel,
    config: Config,
    *,
    weights_here: bool,
    offloaded_tokens: int = 0,
) -> HostResources:
    """Predict the disk and RAM for training and merging.

    Args:
        model: from `tuned_model.make_trainable`, on the `meta` device; may have no adapter.
        weights_here: whether the base's 16-bit weights are on this machine.
        offloaded_tokens: tokens in a pass whose checkpointed layers offload their inputs to the host; 0 without.
    """
    base = [count_values(weights) for weights in model.parameters() if not weights.requires_grad]
    weights_bytes = safetensors_bytes(base, STORED_BYTES)
    probe_tokens = PROBE_ROWS * min(PROBE_TOKENS, config.max_seq_length)
    vocabulary: int = model.config.get_text_config().vocab_size
    tokenizer_bytes = TOKENIZER_BYTES_PER_TOKEN * vocabulary
    return HostResources(
        parameters=sum(base),
        model_download_bytes=0 if weights_here else weights_bytes,
        training_disk_bytes=most_checkpoints(config) * checkpoint_bytes(model, config.optim) + tokenizer_bytes,
        training_ram_bytes=training_ram_on_gpu(model, config, max(base)) + offloaded_bytes(model, offloaded_tokens),
        merging_disk_bytes=weights_bytes + tokenizer_bytes,
        merging_ram_bytes=merging_ram(model, probe_tokens),
        mapped_weights_bytes=weights_bytes,
    )


def count_values(weights: torch.Tensor) -> int:
    """The number of values in a weight, whether packed into 4 bits or not."""
    state: Any = getattr(weights, "quant_state", None)
    return weights.numel() if state is None else prod(state.shape)


def safetensors_bytes(values: list[int], bytes_per_value: int) -> int:
    return sum(values) * bytes_per_value + len(values) * SAFETENSORS_HEADER_BYTES


def trained_values(model: torch.nn.Module) -> list[int]:
    return [weights.numel() for weights in model.parameters() if weights.requires_grad]


def checkpoint_bytes(model: torch.nn.Module, optim: str) -> int:
    """One `checkpoint-N`: adapter in fp32, optimizer state, and small files."""
    from llmft_cli.training.planning.optimizer_state import whole_state

    values = trained_values(model)
    state_bytes = whole_state(values, optim) + len(values) * OPTIMIZER_ENTRY_BYTES
    return safetensors_bytes(values, FP32_BYTES) + state_bytes + CHECKPOINT_SMALL_FILES_BYTES


def most_checkpoints(config: Config) -> int:
    """The largest number of checkpoints on disk: Trainer deletes old ones only after writing a new one.

    It never deletes the best one, which exists if rows are held out. The final adapter is written after
    one checkpoint has been deleted.
    """
    return max(config.save_total_limit, 2 if config.val_size else 1) + 1


def training_ram_on_gpu(model: torch.nn.Module, config: Config, largest: int) -> int:
    """The process, paged optimizer state, and the larger of: weights on their way to the GPU, the adapter when saved.

    Read from transformers 5.23 (`convert_and_load_state_dict_in_model`), not measured: weights are slices of mapped
    files, which are copied to the GPU one at a time if quantised, and by four threads otherwise. torch converts a
    weight that is stored in another type on the CPU, before copying it.
    """
    from llmft_cli.training.planning.optimizer_state import paged_state

    at_once = LOADING_THREADS if config.quantization == "none" else 1
    values = trained_values(model)
    paged = paged_state(values, config.optim)
    return CUDA_PROCESS_BYTES + paged + max(at_once * largest * STORED_BYTES, sum(values) * FP32_BYTES)


def offloaded_bytes(model: PeftModel | PreTrainedModel, tokens: int) -> int:
    """One tensor of hidden states per layer; torch pins memory in powers of two."""
    config: Any = model.config.get_text_config()
    size = tokens * config.hidden_size * computed_bytes(model)
    return config.num_hidden_layers * (1 << (size - 1).bit_length()) if size else 0


def computed_bytes(model: torch.nn.Module) -> int:
    """Bytes per value of the base's compute type."""
    return next(weights.itemsize for weights in model.parameters() if not weights.requires_grad and weights.is_floating_point())


def merging_ram(model: PeftModel | PreTrainedModel, probe_tokens: int) -> int:
    """The process, logits of the probes, and one shard of merged weights on its way to the disk.

    The logits of base and base + adapter exist while the model is merged and saved. The comparison adds the merged
    model's logits and, row by row, five more tensors (log-probabilities of both, and their divergence). By then, large
    weights have been returned to the system.
    """
    merged = [count_values(weights) * STORED_BYTES for weights in model.parameters() if not weights.requires_grad]
    logits = probe_tokens * model.config.get_text_config().vocab_size * FP32_BYTES
    merging = min(sum(merged), SHARD_BYTES) + 2 * logits
    comparing = sum(size for size in merged if size < KEPT_BELOW_BYTES) + 3 * logits + 5 * logits // PROBE_ROWS
    return CUDA_PROCESS_BYTES + max(merging, comparing)
