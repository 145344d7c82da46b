"""What a training reports: its figures, whether it is better than what it began with, and advice from its losses."""
