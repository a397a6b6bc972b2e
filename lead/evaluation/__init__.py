"""How good a ranked list is, how surely, and whether two differ."""
