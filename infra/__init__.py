"""Machines, storage and records."""
