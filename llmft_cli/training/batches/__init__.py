"""Sequences put together into batches."""
