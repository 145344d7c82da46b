"""How a training is laid out so that it fits: options, their memory and speed predicted, and the choice."""
