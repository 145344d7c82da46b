"""Answers of a model: generation and chat."""
