"""The command line: its commands, flags and output."""
