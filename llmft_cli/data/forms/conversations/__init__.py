"""The shapes that conversations have in public datasets, converted to OpenAI-style turns, and the order of turns."""
