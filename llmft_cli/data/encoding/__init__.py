"""Chat rows to token ids and the loss mask, by any chat template."""
