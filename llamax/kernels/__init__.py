"""One signature per kernel, several backends behind it."""
