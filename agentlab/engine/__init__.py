"""Runs any operation as a crash-resumable sequence of steps; knows the store and no sandbox."""
