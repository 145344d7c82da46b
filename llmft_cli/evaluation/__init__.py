"""eval: compare base and tuned model on the same prompts."""
