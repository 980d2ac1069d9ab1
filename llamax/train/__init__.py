"""Train state, step, loop."""
