"""Optimizers with their schedules."""
