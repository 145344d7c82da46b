"""From chat rows to token ids and the loss mask, for any chat template."""
