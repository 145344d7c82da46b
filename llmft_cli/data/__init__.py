"""prepare: read rows, render them with the chat template, mask, tokenise, split and pack."""
