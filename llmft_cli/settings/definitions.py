"""Every setting, defined once with its default, unit, range and help text."""

from __future__ import annotations

from dataclasses import dataclass

from llmft_cli.settings.quantities import SIZE_FORM, parse_size
from llmft_cli.settings.setting import rows_or_share, setting, share

DEFAULT_MODEL = "meta-llama/Llama-2-7b-chat-hf"
LARGEST_SEED = 2**32 - 1  # numpy takes no larger one
FIT = "gpu-check train"  # what decides whether a training fits


def size(text: str) -> int:
    """Bytes, as `parse_size` reads them, and as a saved config has them: a bare number."""
    return int(text) if text.isdecimal() else parse_size(text)


@dataclass(frozen=True)
class Config:
    """All settings of a run, checked. Field names are the flags' with underscores."""

    # -- model
    model: str = setting(
        DEFAULT_MODEL,
        "Hub id, local directory, .gguf file, or smollm2-135m (built in).",
        "Model",
        "gpu-check prepare train",
    )
    revision: str | None = setting(None, "Branch, tag or commit of a Hub model.", "Model", "gpu-check prepare train")
    trust_remote_code: bool = setting(False, "Run code that the model's repository brings.", "Model", "gpu-check prepare train")
    chat_template: str | None = setting(
        None, "Jinja file to use as chat template, or `plain` for models without one.", "Model", "prepare train"
    )
    quantization: str = setting(
        "nf4", "How the frozen base weights are held.", "Model", FIT, choices=("nf4", "fp4", "int8", "none")
    )
    device: str = setting("auto", "Where to compute.", "Model", "train merge eval chat", choices=("auto", "cuda", "cpu"))
    compute_dtype: str = setting(
        "auto",
        "Type of the computation; auto is bf16 where the device has it, else fp16 on a GPU and fp32 on a CPU.",
        "Model",
        "gpu-check train merge eval chat",
        choices=("auto", "bf16", "fp16", "fp32"),
    )
    # -- data
    format: str = setting(
        "auto",
        "Form of the rows; auto recognises it by content.",
        "Data",
        "prepare train",
        choices=(
            "auto",
            "messages",
            "sharegpt",
            "alpaca",
            "prompt-completion",
            "question-answer",
            "text",
            "tokens",
        ),
    )
    columns: str | None = setting(
        None, "Columns under other names: prompt=question,completion=answer (ours=theirs).", "Data", "prepare train"
    )
    dataset_split: str = setting("train", "Which split of a Hub dataset to read.", "Data", "prepare train")
    max_seq_length: int = setting(2048, "Longest row, in tokens.", "Data", "gpu-check prepare train", minimum=8)
    on_overlength: str = setting(
        "drop",
        "What to do with a row that is longer.",
        "Data",
        "prepare train",
        choices=("drop", "truncate", "split", "error"),
    )
    train_on: str = setting(
        "assistant",
        "What is learned: all answers, the last one of each conversation, or every token.",
        "Data",
        "prepare train",
        choices=("assistant", "last", "all"),
    )
    packing: bool = setting(
        True, "Put several rows into one sequence, without attention between them.", "Data", "prepare train"
    )
    val_size: float = setting(
        0.05,
        "Rows held out: a share below 1 (or 5%), or a number of rows.",
        "Data",
        "prepare train",
        minimum=0,
        parse=rows_or_share,
        form="a share below 1 (0.05 or 5%) or a number of rows",
    )
    max_rejected: float = setting(
        0.05,
        "Share of bad rows (0.05 or 5%) above which the data is refused.",
        "Data",
        "prepare train",
        minimum=0,
        maximum=1,
        parse=share,
        form="a share (0.05 or 5%)",
    )
    weights: str | None = setting(
        None,
        "How often each source's training rows are used, in the order of the sources: 2,0.5 doubles and halves.",
        "Data",
        "prepare train",
    )
    max_rows: str | None = setting(
        None, "Most rows to take of each source: one number for all, or one for each (1000,500).", "Data", "prepare train"
    )
    near_duplicates: bool = setting(
        True, "Look for rows that are nearly the same, and keep them on one side of the split.", "Data", "prepare train"
    )
    strict: bool = setting(False, "Refuse data that a check warns of.", "Data", "prepare train")
    # -- training
    learning_rate: float = setting(2e-4, "Peak learning rate.", "Training", "train", above=0, below=1)
    num_epochs: float = setting(3.0, "Passes over the training rows.", "Training", FIT, above=0)
    max_steps: int | None = setting(
        None, "Stop after this many optimizer steps, whatever num_epochs says.", "Training", FIT, minimum=1
    )
    batch_size: int = setting(4, "Sequences in one forward pass.", "Training", FIT, minimum=1)
    tokens_per_batch: int | None = setting(
        None,
        "Tokens in one forward pass, padding included, in place of --batch-size: as many sequences of like length as fit.",
        "Training",
        FIT,
        minimum=1,
    )
    gradient_accumulation_steps: int = setting(4, "Forward passes per optimizer step.", "Training", FIT, minimum=1)
    warmup_ratio: float = setting(
        0.03, "Share of the steps with rising learning rate.", "Training", "train", minimum=0, maximum=1
    )
    lr_scheduler: str = setting(
        "cosine",
        "Learning rate schedule.",
        "Training",
        "train",
        choices=("cosine", "linear", "constant", "constant_with_warmup"),
    )
    weight_decay: float = setting(0.0, "Decoupled weight decay.", "Training", "train", minimum=0)
    max_grad_norm: float = setting(0.3, "Gradient norm to clip at; 0 turns clipping off.", "Training", "train", minimum=0)
    optim: str = setting(
        "adamw_torch_fused", "Optimizer, by transformers' name (adamw_torch_fused, paged_adamw_8bit, ...).", "Training", FIT
    )
    gradient_checkpointing: bool | None = setting(
        None, "Recompute activations in the backward pass, or never; by default where the plan needs it.", "Training", FIT
    )
    fast: bool = setting(
        True,
        "Use fused layers for supported models; results match up to rounding.",
        "Training",
        FIT,
    )
    plan: str = setting(
        "fast",
        "How a GPU's memory is used: fast, balanced (three quarters of it), frugal, a plan file, or given "
        "(--batch-size and --gradient-checkpointing as they are).",
        "Training",
        FIT,
    )
    max_vram: int | None = setting(
        None, "GPU memory that the process may take, such as 12GiB.", "Training", FIT, minimum=1, parse=size, form=SIZE_FORM
    )
    seed: int = setting(
        42,
        "Seed of the split, the order and the initialisation.",
        "Training",
        "prepare train chat",
        minimum=0,
        maximum=LARGEST_SEED,
    )
    # -- adapter
    lora_r: int = setting(16, "Rank of the LoRA matrices.", "Adapter", FIT, minimum=1)
    lora_alpha: float = setting(32, "LoRA scaling numerator (scaling = alpha / r).", "Adapter", FIT, above=0)
    lora_dropout: float = setting(0.0, "Dropout on the input of the LoRA matrices.", "Adapter", FIT, minimum=0, below=1)
    target_modules: str = setting(
        "all-linear", "Modules to adapt: all-linear, or names with commas (q_proj,v_proj).", "Adapter", FIT
    )
    use_rslora: bool = setting(False, "Rank-stabilised LoRA: scaling = alpha / sqrt(r).", "Adapter", FIT)
    use_dora: bool = setting(False, "Weight-decomposed LoRA (DoRA).", "Adapter", FIT)
    init_lora_weights: str = setting(
        "default",
        "Initialisation of the LoRA matrices, as PEFT names it.",
        "Adapter",
        "train",
        choices=("default", "gaussian"),
    )
    # -- evaluation during training and logging
    eval_steps: float = setting(
        0.2, "Evaluate and save every so many steps, or every share (below 1) of the steps.", "Watching", "train", above=0
    )
    load_best_model_at_end: bool = setting(
        True, "Take the adapter of the best evaluation, not of the last step.", "Watching", "train"
    )
    early_stopping_patience: int | None = setting(
        None, "Stop after this many evaluations without a better loss.", "Watching", "train", minimum=1
    )
    save_total_limit: int = setting(2, "Checkpoints to keep (the best is always kept).", "Watching", FIT, minimum=1)
    logging_steps: int = setting(1, "Log every so many optimizer steps.", "Watching", "train", minimum=1)
    report_to: str = setting("none", "Experiment tracker to report to.", "Watching", "train", choices=("none", "wandb"))
    wandb_project: str = setting("llm-fine-tuning", "Weights & Biases project.", "Watching", "train")
    # -- generation
    max_new_tokens: int = setting(256, "Longest answer, in tokens.", "Generation", "eval chat", minimum=1)
    eval_batch_size: int = setting(8, "Sequences in one forward pass of the evaluation.", "Generation", "train eval", minimum=1)
    temperature: float = setting(0.0, "Sampling temperature; 0 is greedy.", "Generation", "chat", minimum=0)
    top_p: float = setting(
        1.0, "Sample from the likeliest tokens that hold this probability.", "Generation", "chat", above=0, maximum=1
    )
