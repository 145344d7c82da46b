"""The memory-bound kernels of the fast layers: their interface, and implementations in torch and Triton."""
