"""The decoder: pure functions of arrays."""
