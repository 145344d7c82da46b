"""gpu-check --model: whether a training fits, and with which plan."""
