"""What each command's result looks like to a person: titled rows of text, laid out by the console."""
