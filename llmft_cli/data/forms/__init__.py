"""The formats a row may have, and their conversion to conversations, documents or token ids."""
