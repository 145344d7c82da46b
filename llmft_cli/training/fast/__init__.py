"""The fast path of a training step: whole decoder layers as one function each, with kernels of their own."""
