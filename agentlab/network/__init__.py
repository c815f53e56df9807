"""The agent bridge: addresses, taps, and the packet filter that fences every sandbox in."""
