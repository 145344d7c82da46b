"""Experiment trackers: each begins a run of its own, and a guard keeps its failures away from the training."""
