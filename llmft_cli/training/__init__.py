"""train: QLoRA with transformers' Trainer."""
