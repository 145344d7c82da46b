"""Texts that a chat template has rendered already: known styles, and how they are read back."""
