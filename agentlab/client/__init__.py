"""The client: one daemon behind a Unix socket, as typed calls; standard library only."""
