"""Text from a model: the cached decoder with its ways to draw a token."""
