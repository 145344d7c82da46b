"""gpu-check: what this machine offers a fine-tuning job."""
