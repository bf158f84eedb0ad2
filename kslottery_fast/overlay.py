"""Where pickles of version 0.1 look for what :mod:`kslottery_fast.rows.overlay` holds."""

from kslottery_fast.rows.overlay import RowEmbedding, RowHead, RowOutput, _new_overlay

__all__ = ["RowEmbedding", "RowHead", "RowOutput", "_new_overlay"]
