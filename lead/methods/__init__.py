"""The losses of the paper and of its baselines, and the selection of layers."""
