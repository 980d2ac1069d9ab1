"""Configuration, dimension letters, shared types, errors."""
