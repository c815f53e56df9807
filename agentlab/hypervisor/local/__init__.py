"""The driver for this host: QEMU processes with the semantics of Proxmox, one directory a machine."""
