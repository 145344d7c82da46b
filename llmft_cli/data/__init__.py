"""prepare: read rows, render them with the chat template, tokenise, mask and split them."""
