"""Helpers that every package may use: errors, argument checks, atomic files, sharded tensors."""
