"""eval: base against tuned on the same prompts."""
