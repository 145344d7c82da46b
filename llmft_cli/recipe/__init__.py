"""Settings that are chosen by what is known of the model and the rows before the first step."""
