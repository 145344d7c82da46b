"""Measuring training steps: memory, time, and where the time goes."""
