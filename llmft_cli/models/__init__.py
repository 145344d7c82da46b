"""Base models: sources, configs, loading, and adapters."""
