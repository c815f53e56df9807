"""Drivers that run machines.  They take and return values and never see the store."""
