"""Loops: look, compare, start an operation or put things in order."""
