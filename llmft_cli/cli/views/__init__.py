"""Each command's result as sections of text, for the console to print."""
