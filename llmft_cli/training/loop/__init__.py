"""The training loop: transformers' Trainer, what it does at each step, checkpoints and logs."""
