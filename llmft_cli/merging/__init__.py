"""merge: merge the adapter into the base model, and verify the result."""
