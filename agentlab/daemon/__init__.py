"""The control plane's process: it builds all objects, and serves people and guests."""
