"""Pairs of checkpoints, made on the spot."""

from stored_tables import llamas, pair, tables

__all__ = ["llamas", "pair", "tables"]
