"""gpu-check: what this machine provides for fine-tuning."""
