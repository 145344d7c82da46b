"""gpu-check --model: whether a training run fits, and with which plan."""
