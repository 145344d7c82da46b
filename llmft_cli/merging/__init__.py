"""merge: fold the adapter into the base model, and verify the result."""
