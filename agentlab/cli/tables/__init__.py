"""The rows of the command table, by their nouns."""
