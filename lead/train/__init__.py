"""Training: data order, the step, checkpoints with exact resume, and the two stages that train."""
