"""Every setting, defined once with its default, unit, range and help text."""

from __future__ import annotations

from dataclasses import dataclass

from llmft_cli.settings import data_settings, parsers
from llmft_cli.settings.quantities import SIZE
from llmft_cli.settings.setting import BASE, OF_PREPARED_DATA, auto_setting, setting

DEFAULT_MODEL = "meta-llama/Llama-2-7b-chat-hf"
LARGEST_SEED = 2**32 - 1  # numpy takes no larger one
SEQUENCES, PASSES = 4, 4  # per pass and per step, if sequences are counted rather than rows
FIT = "gpu-check train"  # what decides whether a training run fits
EVALUATION = "Evaluation and logging"


@dataclass(frozen=True)
class Config:
    """All settings of a run, checked. Field names are the flags' with underscores.

    What the recipe settles is None before, though its type is that of its value.
    """

    # -- model
    model: str = setting(
        DEFAULT_MODEL,
        "Base model. A Hub id, a local directory, a .gguf file, or smollm2-135m (built in).",
        "Model",
        BASE,
        primary=BASE,
        only_with=OF_PREPARED_DATA,
        metavar="<name>",
        suggestions=("smollm2-135m", DEFAULT_MODEL),
    )
    revision: str | None = setting(None, "Branch, tag or commit of a Hub model.", "Model", BASE, only_with=OF_PREPARED_DATA)
    trust_remote_code: bool = setting(
        False, "Run Python code from the model's repository.", "Model", BASE, only_with=OF_PREPARED_DATA
    )
    quantization: str = setting(
        "nf4",
        "Weight format. It applies to the base weights, which stay frozen.",
        "Model",
        FIT,
        primary=FIT,
        choices=("nf4", "fp4", "int8", "none"),
    )
    device: str = setting(
        "auto",
        "Where to compute.",
        "Model",
        "train merge eval chat",
        primary="merge eval chat",
        choices=("auto", "cuda", "cpu"),
    )
    compute_dtype: str = setting(
        "auto",
        "Data type of the computation. auto is bf16 where the device supports it, else fp16 on a GPU and fp32 on a CPU.",
        "Model",
        "gpu-check train merge eval chat",
        choices=("auto", "bf16", "fp16", "fp32"),
    )
    # -- data
    format: str = data_settings.FORMAT
    columns: str | None = data_settings.COLUMNS
    encoding: str = data_settings.ENCODING
    dataset_split: str = data_settings.DATASET_SPLIT
    chat_template: str | None = data_settings.CHAT_TEMPLATE
    max_seq_length: int = data_settings.MAX_SEQ_LENGTH
    on_overlength: str = data_settings.ON_OVERLENGTH
    train_on: str = data_settings.TRAIN_ON
    rows_per_answer: str = data_settings.ROWS_PER_ANSWER
    on_unrendered: str = data_settings.ON_UNRENDERED
    merge_turns: bool = data_settings.MERGE_TURNS
    val_size: float = data_settings.VAL_SIZE
    max_rejected: float = data_settings.MAX_REJECTED
    weights: str | None = data_settings.WEIGHTS
    max_rows: str | None = data_settings.MAX_ROWS
    near_duplicates: bool = data_settings.NEAR_DUPLICATES
    strict: bool = data_settings.STRICT
    # -- training
    learning_rate: float = auto_setting(
        "Peak learning rate. By default, it falls with the model's width.",
        "Training",
        "train",
        primary="train",
        above=0,
        below=1,
    )
    num_epochs: float = auto_setting(
        "Passes over the training rows. By default, training ends earlier if the held-out loss stops falling.",
        "Training",
        FIT,
        primary="train",
        only_with={"gpu-check": "--run"},
        above=0,
    )
    max_steps: int | None = setting(
        None,
        "Stop after this many optimizer steps. Replaces --num-epochs.",
        "Training",
        FIT,
        primary="train",
        only_with={"gpu-check": "--run"},
        minimum=1,
    )
    rows_per_step: int = auto_setting(
        "Rows that an optimizer step learns from. Packing does not change it.", "Training", FIT, primary=FIT, minimum=1
    )
    batch_size: int = setting(
        None,
        "Sequences per forward pass. Replaces --rows-per-step: rows are packed into sequences of --max-seq-length tokens. On a "
        "GPU, the plan may split --batch-size x --gradient-accumulation-steps another way.",
        "Training",
        FIT,
        minimum=1,
    )
    tokens_per_batch: int | None = setting(
        None,
        "Tokens per forward pass, padding included. Replaces --rows-per-step: similar lengths are batched together.",
        "Training",
        FIT,
        minimum=1,
    )
    packing: bool = setting(
        True,
        "Put several rows into one sequence, of at most --max-seq-length tokens. Rows do not attend to each other.",
        "Training",
        FIT,
        only_with={"gpu-check": "--run"},
    )
    gradient_accumulation_steps: int = setting(
        None,
        f"Forward passes per optimizer step. By default {PASSES}, or what --rows-per-step needs.",
        "Training",
        FIT,
        minimum=1,
    )
    warmup_ratio: float = auto_setting(
        "Share of the steps in which the learning rate rises. No effect with --lr-scheduler constant.",
        "Training",
        "train",
        minimum=0,
        maximum=1,
        **parsers.SHARE,
    )
    lr_scheduler: str = setting(
        "cosine",
        "Learning rate schedule.",
        "Training",
        "train",
        choices=("cosine", "linear", "constant", "constant_with_warmup"),
    )
    weight_decay: float = setting(0.0, "Decoupled weight decay.", "Training", "train", minimum=0)
    max_grad_norm: float = setting(0.3, "Clip gradients to this norm. 0 turns clipping off.", "Training", "train", minimum=0)
    optim: str = setting(
        "adamw_torch_fused",
        "Optimizer, by its name in transformers.",
        "Training",
        FIT,
        metavar="<name>",
        suggestions=("adamw_torch_fused", "paged_adamw_8bit"),
    )
    gradient_checkpointing: bool | None = setting(
        None, "Recompute activations in the backward pass: always, or never. By default, the plan decides.", "Training", FIT
    )
    fast: bool = setting(True, "Use fused layers for supported models. Results match up to rounding.", "Training", FIT)
    plan: str = setting(
        "fast",
        "How to use the GPU's memory. fast is the fastest plan that fits, balanced keeps to three quarters of the memory, "
        "frugal uses the least, given applies --batch-size and --gradient-checkpointing unchanged. May also be a plan file. "
        "When training on a CPU, only a plan file has an effect.",
        "Training",
        FIT,
        metavar="<plan>",
        suggestions=("fast", "balanced", "frugal", "given"),
    )
    max_vram: int | None = setting(
        None,
        "GPU memory limit, as in 12GiB. No effect on training on a CPU.",
        "Training",
        FIT,
        primary="train",
        **SIZE,
    )
    seed: int = setting(
        42,
        "Random seed. It sets the split, the row order, the adapter's initial values, and sampling in chat.",
        "Training",
        "prepare train chat",
        minimum=0,
        maximum=LARGEST_SEED,
    )
    # -- adapter
    lora_r: int = setting(16, "Rank of the LoRA matrices.", "Adapter", FIT, primary=FIT, minimum=1)
    lora_alpha: float = setting(32, "LoRA scaling is alpha / rank.", "Adapter", FIT, primary="train", above=0)
    lora_dropout: float = setting(
        0.0, "Dropout on the input of the LoRA matrices.", "Adapter", FIT, minimum=0, below=1, **parsers.SHARE
    )
    target_modules: str = setting(
        "all-linear",
        "Modules to adapt: all-linear, or names (q_proj,v_proj).",
        "Adapter",
        FIT,
        metavar="<names>",
        is_list=True,
        suggestions=("all-linear", "q_proj,v_proj"),
    )
    use_rslora: bool = setting(False, "Use rank-stabilised LoRA: scaling = alpha / sqrt(rank).", "Adapter", FIT)
    use_dora: bool = setting(False, "Use weight-decomposed LoRA (DoRA).", "Adapter", FIT)
    init_lora_weights: str = setting(
        "default",
        "Initialisation of the LoRA matrices, by its name in PEFT.",
        "Adapter",
        "train",
        choices=("default", "gaussian"),
    )
    # -- evaluation during training and logging
    eval_steps: float = auto_setting(
        "Steps (or share) between evaluations. A value below 1 is a share of all steps. Each evaluation saves a checkpoint.",
        EVALUATION,
        "train",
        above=0,
        **parsers.STEPS,
    )
    load_best_model_at_end: bool = setting(
        True, "Keep the adapter of the best evaluation, not of the last step.", EVALUATION, "train"
    )
    early_stopping_patience: int = auto_setting(
        "Stop after this many evaluations without a lower loss. 0 never stops early.", EVALUATION, "train", minimum=0
    )
    save_total_limit: int = setting(2, "Checkpoints to keep. The best is always kept.", EVALUATION, FIT, minimum=1)
    logging_steps: int = setting(1, "Optimizer steps between log entries.", EVALUATION, "train", minimum=1)
    report_to: str = setting(
        "none",
        "Experiment trackers (wandb,mlflow).",
        EVALUATION,
        "train",
        primary="train",
        metavar="<names>",
        choices=("none", "wandb", "tensorboard", "mlflow", "trackio"),
        is_list=True,
    )
    wandb_project: str = setting(
        "llm-fine-tuning",
        "Weights & Biases project. No effect without --report-to wandb.",
        EVALUATION,
        "train",
        metavar="<name>",
    )
    eval_batch_size: int = setting(8, "Sequences evaluated at once.", EVALUATION, "train eval", primary="eval", minimum=1)
    # -- generation
    max_new_tokens: int = setting(256, "Longest answer, in tokens.", "Generation", "eval chat", primary="eval chat", minimum=1)
    temperature: float = setting(
        0.0,
        "Sampling temperature. 0 is greedy.",
        "Generation",
        "chat",
        primary="chat",
        minimum=0,
        **parsers.TEMPERATURE,
    )
    top_p: float = setting(
        1.0,
        "Probability mass to sample from. Only the likeliest tokens are used. No effect without a --temperature above 0.",
        "Generation",
        "chat",
        primary="chat",
        above=0,
        maximum=1,
        **parsers.SHARE,
    )
