"""The command line: its commands, flags, and what a person sees."""
