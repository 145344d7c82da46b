"""The peers of `train_step_side.py`, each as its documentation or its trainer sets it up.

`stock` is PEFT's guide to quantisation: k-bit preparation, adapters in fp32, autocast. `trl` is what TRL 1.15's
SFTTrainer does with a quantised model: no k-bit preparation, adapters in bf16, logits and loss in tiles. `unsloth` is
Unsloth 2026.10.9's loader and kernels, whose trainer joins short rows without padding, always so on an H100
(unsloth/utils/padding_choice.py). Full rows are given to it as a batch, for which it compiles whole layers.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from train_step_cases import Measurement

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK = ALPHA = 16
IGNORED, PADDING_ID = -100, 0
NOT_REENTRANT = {"use_reentrant": False}

Rows = list[list[int]]


def load_unsloth(wanted: Measurement) -> Any:
    from unsloth import FastLanguageModel

    checkpointing = {"offloaded": "unsloth", "full": True, "none": False}[wanted.checkpointing]
    model, _ = FastLanguageModel.from_pretrained(
        wanted.model,
        max_seq_length=wanted.length,
        dtype=torch.bfloat16,
        load_in_4bit=True,
        use_gradient_checkpointing=checkpointing,
    )
    return FastLanguageModel.get_peft_model(
        model,
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=0,
        bias="none",
        target_modules=TARGETS,
        use_gradient_checkpointing=checkpointing,
        random_state=0,
    )


def load_transformers(wanted: Measurement, device: torch.device, dtype: torch.dtype) -> Any:
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    torch.manual_seed(0)
    checkpointing = wanted.checkpointing == "full"
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    model = AutoModelForCausalLM.from_pretrained(
        wanted.model, dtype=dtype, device_map={"": device}, quantization_config=quantization
    )
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0, target_modules=TARGETS, task_type="CAUSAL_LM")
    if wanted.side == "stock":
        options = {"use_gradient_checkpointing": checkpointing, "gradient_checkpointing_kwargs": NOT_REENTRANT}
        return get_peft_model(prepare_model_for_kbit_training(model, **options), lora)
    return as_trl_does(get_peft_model(model, lora), checkpointing)


def as_trl_does(model: Any, checkpointing: bool) -> Any:
    """What SFTTrainer's constructor does to a quantised PEFT model, and Trainer before the first step."""
    from trl.trainer.utils import add_fused_lm_head

    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(NOT_REENTRANT)
    for weights in model.parameters():
        if weights.requires_grad:
            weights.data = weights.data.to(torch.bfloat16)
    # Entropy and accuracy are among the figures that it logs.
    add_fused_lm_head(model.get_base_model(), outputs=("log_probs", "entropy", "is_top1"))
    return model


def own_loss(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    loss: torch.Tensor = model(**batch).loss
    return loss


def trl_loss(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    outputs = model(**batch, use_cache=False, fused_lm_head=True)
    loss: torch.Tensor = -outputs.log_probs.sum() / outputs.label_mask.sum()
    return loss


def padded(rows: Rows) -> dict[str, torch.Tensor]:
    """Rows filled up to the longest; rows of one length need no attention mask."""
    longest = max(map(len, rows))

    def tensor(filling: int, fields: Rows) -> torch.Tensor:
        return torch.tensor([[*field, *[filling] * (longest - len(field))] for field in fields])

    batch = {"input_ids": tensor(PADDING_ID, rows), "labels": tensor(IGNORED, rows)}
    if any(len(row) < longest for row in rows):
        batch["attention_mask"] = tensor(0, [[1] * len(row) for row in rows])
    return batch


def padding_free(model: Any) -> Callable[[Rows], dict[str, Any]]:
    """Rows one after the other, by TRL's collator as Unsloth's trainer changes it, and the model told so."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
    from unsloth.utils.packing import enable_padding_free_metadata

    collator = DataCollatorForLanguageModeling(pad_token_id=PADDING_ID, padding_free=True)
    trainer = SimpleNamespace(data_collator=collator, args=SimpleNamespace(), model=model)
    enable_padding_free_metadata(model, trainer)

    def join(rows: Rows) -> dict[str, Any]:
        batch: dict[str, Any] = collator.torch_call([{"input_ids": row} for row in rows])
        if "packed_seq_lengths" not in batch:
            raise RuntimeError("Unsloth did not mark where rows end: its padding-free batches are made in another way now")
        return batch

    return join
