"""The forms that a row of data may have, and the conversation that each one means."""
