"""Checkpoints of a model, wherever they lie: which tensors they hold, and the rows of a tensor block by block."""
