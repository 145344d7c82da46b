"""prepare: read rows, render them with the chat template, tokenise, mask, split and pack them."""
