"""Checkpoints of other formats: read, written, compared."""
