"""Choosing a plan that fits: the options, their predicted memory and speed, and the choice."""
