"""The elementwise parts of a fast layer: their interface, and implementations in torch and in Triton."""
