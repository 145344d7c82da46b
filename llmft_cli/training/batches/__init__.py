"""Building batches from sequences."""
