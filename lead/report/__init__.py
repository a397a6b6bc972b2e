"""Results read back: comparisons on the terminal and the paper's tables."""
