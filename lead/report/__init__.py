"""Tables of results: comparisons on the terminal, and the paper's tables."""
