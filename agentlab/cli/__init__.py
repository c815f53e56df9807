"""The command line: one table of commands, and one place that prints."""
