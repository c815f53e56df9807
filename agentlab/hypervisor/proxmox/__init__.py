"""Proxmox VE: one driver over two transports, its REST API and `pvesh`."""
