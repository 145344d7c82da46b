"""Base models: where they come from, their shapes, loading them, and adapters on them."""
