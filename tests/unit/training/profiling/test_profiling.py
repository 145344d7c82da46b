"""Profiling: groups of kernels, which steps are profiled, the roofline, and a training on a CPU."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch._C._autograd import DeviceType

from llmft_cli.base.reporter import Silent
from llmft_cli.data.prepare import prepare
from llmft_cli.run_dir.run import RunDir
from llmft_cli.settings.config import resolve
from llmft_cli.training.batches.collate import collate
from llmft_cli.training.judgement.result import TrainResult
from llmft_cli.training.planning.simulation import Step
from llmft_cli.training.planning.speed import Rates
from llmft_cli.training.profiling.kernel_groups import group_of, groups, timed_events
from llmft_cli.training.profiling.profiling import steps_before
from llmft_cli.training.profiling.roofline import mean_shape, rates_or_why_none, roofline
from llmft_cli.training.train import train

KERNELS = {
    "nvjet_tst_192x192_64x4_2x1_v_bz_coopB_TNN": "matrix_products",
    "void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16_16x16_128x2_tn_align8>": "matrix_products",
    "void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16>": "matrix_products",
    "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize64x128x64": "matrix_products",
    "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, 64, 64, cutlass::bfloat16_t>>": "attention",
    "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_26_64x64x128": "attention",
    "fmha_cutlassF_bf16_aligned_64x128_rf_sm80(PyTorchMemEffAttention::AttentionKernel)": "attention",
    "void kDequantizeBlockwise<__nv_bfloat16, 512, 64, 8, 2>(float*, unsigned char*)": "dequantising",
    "dequantize_kernel": "dequantising",
    "void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor<float, 4>>": "optimizer",
    "void kOptimizerStatic8bit2StateBlockwise<float, 0, 256, 1>": "optimizer",
    "Memcpy HtoD (Pinned -> Device)": "copies",
    "Memset (Device)": "copies",
    "void at::native::elementwise_kernel<128, 4, at::native::direct_copy_kernel_cuda>": "copies",
    "void at::native::vectorized_elementwise_kernel<8, at::native::CUDAFunctor_add<c10::BFloat16>>": "elementwise",
    "rms_norm_backward_kernel": "elementwise",
    "norm_rotate_backward_kernel": "elementwise",
    "gated_kernel": "elementwise",
    "rotate_kernel": "elementwise",
    "cross_entropy_kernel": "elementwise",
    "void at::native::indexSelectLargeIndex<c10::BFloat16, long, unsigned int>": "other",
}
OPERATORS = {
    "aten::mm": "matrix_products",
    "aten::addmm_": "matrix_products",
    "aten::matmul": "other",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "attention",
    "bitsandbytes::dequantize_4bit": "dequantising",
    "Optimizer.step#AdamW.step": "optimizer",
    "aten::copy_": "copies",
    "aten::cat": "copies",
    "aten::mul_": "elementwise",
    "aten::_log_softmax": "elementwise",
    "aten::empty": "other",
}


@pytest.mark.parametrize(("name", "group"), [*KERNELS.items(), *OPERATORS.items()])
def test_group_of(name: str, group: str) -> None:
    assert group_of(name) == group


def test_groups_add_up() -> None:
    found = groups([("aten::mm", 0.5), ("aten::bmm", 0.25), ("aten::mul", 0.125), ("aten::empty", 1.0)])
    assert found == {
        "attention": 0, "matrix_products": 0.75, "dequantising": 0, "optimizer": 0, "copies": 0, "elementwise": 0.125,
        "other": 1.0,
    }  # fmt: skip


def event(name: str, device: DeviceType, microseconds: float, marks: bool = False) -> Any:
    span = SimpleNamespace(elapsed_us=lambda: microseconds)
    return SimpleNamespace(
        name=name, device_type=device, is_user_annotation=marks, time_range=span, self_cpu_time_total=microseconds / 2
    )


def test_of_a_gpu_only_kernels_count_and_of_a_cpu_what_operators_do_themselves() -> None:
    launch = event("aten::mm", DeviceType.CPU, 8)
    kernel = event("nvjet", DeviceType.CUDA, 2_000_000)
    span = event("Optimizer.step#AdamW.step", DeviceType.CUDA, 5_000_000, marks=True)
    assert list(timed_events([launch, kernel, span], on_gpu=True)) == [("nvjet", 2.0)]
    assert list(timed_events([launch], on_gpu=False)) == [("aten::mm", 4e-6)]


@pytest.mark.parametrize(
    ("done", "total", "saved_every", "expected"),
    [
        (0, 100, 20, 3),
        (0, 5, 5, 3),
        (0, 100, 4, 5),  # steps 5 and 6 would lie around the evaluation after 4, and 4 and 5 before it is warm again
        (0, 100, 3, 4),
        (0, 100, 2, 3),  # no two steps lie between evaluations
        (0, 100, 1, 3),
        (60, 100, 20, 63),
        (0, 4, 4, 1),
        (98, 100, 20, 99),
        (99, 100, 20, None),
        (0, 1, 1, None),
    ],
)
def test_steps_before(done: int, total: int, saved_every: int, expected: int | None) -> None:
    assert steps_before(done, total, saved_every) == expected


def test_roofline_of_two_passes() -> None:
    step = Step(0, 0, 0, 0, product_flops=300, attention_flops=100, moved_bytes=50, kernels=9)
    found = roofline(step, 2, Rates(bf16_flops_per_second=400, bandwidth_bytes_per_second=100))
    assert (found.seconds, found.flops, found.moved_bytes) == (2 + 1, 800, 100)


def test_there_is_no_roofline_on_a_cpu() -> None:
    assert rates_or_why_none(resolve({}), torch.device("cpu")) == "steps on a CPU are not predicted"


def sequence(*lengths: int) -> dict[str, list[int]]:
    tokens = list(range(sum(lengths)))
    return {"input_ids": tokens, "labels": tokens, "row_lengths": list(lengths)}


def test_the_mean_of_micro_batches_attends_as_much_as_they_do() -> None:
    one, other = collate([sequence(4, 4), sequence(8)]), collate([sequence(2, 2), sequence(4)])
    found = mean_shape([one, other])
    assert (found.sequences, found.length, found.longest_row) == (2, 6, 8)
    assert found.supervised == (one["targets"].numel() + other["targets"].numel()) // 2
    # 16 + 16 + 64 and 4 + 4 + 16 are 120 squares in two micro-batches: about one row of 8 in each.
    assert found.rows == 1


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    rows = [{"prompt": f"Tell me of number {number}.", "completion": f"It is {number}."} for number in range(40)]
    file = tmp_path / "numbers.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


class Told(Silent):
    """Keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def trained(
    folder: Path, data_file: Path, model: Path, profile: bool, told: Silent, **flags: Any
) -> tuple[RunDir, TrainResult]:
    run = RunDir(folder)
    prepare(run, [str(data_file)], resolve({"model": str(model), "max_seq_length": 96, "val_size": 4.0}), Silent())
    small = {
        "batch_size": 2,
        "gradient_accumulation_steps": 2,
        "lora_r": 4,
        "lora_dropout": 0.1,
        "warmup_ratio": 0.0,
        "device": "cpu",
    }
    config = resolve({**small, "max_steps": 7, **flags}, saved=run.saved_settings("prepare"))
    return run, train(run, config, told, profile=profile)


def losses(run: RunDir) -> list[float]:
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.slow
def test_a_profile_is_written_and_changes_nothing(tmp_path: Path, data_file: Path, tiny_model_dir: Path) -> None:
    told = Told()
    plain, result = trained(tmp_path / "plain", data_file, tiny_model_dir, False, told, eval_steps=4.0)
    assert result.profile is None
    assert not (plain.path / "profile").exists()
    run, result = trained(tmp_path / "run", data_file, tiny_model_dir, True, told, eval_steps=4.0)
    assert told.warnings == []
    assert losses(run) == losses(plain)
    weights = [load_file(one.adapter / "adapter_model.safetensors") for one in (plain, run)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])

    profile = result.profile
    assert profile is not None
    assert (profile.steps, profile.first_step, profile.device) == (2, 6, "cpu")  # saved and evaluated after step 4
    assert profile.group_seconds["matrix_products"] > 0
    assert profile.group_seconds["attention"] > 0
    assert 0 < profile.busy_share <= 1
    assert sum(profile.group_seconds.values()) == pytest.approx(profile.busy_share * profile.step_seconds)
    assert (profile.roofline, profile.why_no_roofline) == (None, "steps on a CPU are not predicted")
    summary = json.loads((run.path / "profile" / "summary.json").read_text())
    assert summary == json.loads(json.dumps(vars(profile)))
    with gzip.open(profile.trace, "rt") as file:
        assert "aten::mm" in {found.get("name") for found in json.load(file)["traceEvents"]}


def test_a_training_too_short_for_a_profile_ends_well(tmp_path: Path, data_file: Path, tiny_model_dir: Path) -> None:
    told = Told()
    _, result = trained(tmp_path / "run", data_file, tiny_model_dir, True, told, max_steps=1)
    assert (result.steps, result.profile) == (1, None)
    assert len(told.warnings) == 1
    assert told.warnings[0].startswith("no profile: too few steps")


@pytest.mark.slow
def test_a_profiler_that_fails_fails_no_training(
    tmp_path: Path, data_file: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no CUPTI here\nmore of it")

    monkeypatch.setattr(torch.profiler, "profile", broken)
    told = Told()
    _, result = trained(tmp_path / "run", data_file, tiny_model_dir, True, told, max_steps=2)
    assert (result.steps, result.profile) == (2, None)
    assert told.warnings == ["no profile: no CUPTI here"]
