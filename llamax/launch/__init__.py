"""Puts a training command onto machines, each command shown before it runs."""
