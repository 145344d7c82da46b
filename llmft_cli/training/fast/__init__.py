"""The fast path of a training step: fused decoder layers with their own kernels, and CUDA graphs."""
