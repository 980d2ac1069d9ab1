"""Checkpoints of a run: written, read back, compared with what the run is now."""
