"""The adapter files of version 0.1, kept for programs that import them; :mod:`kslottery_fast.rows` is their home."""

from kslottery_fast.rows.adapter_file import load_adapter, save_adapter, save_rows_adapter

__all__ = ["load_adapter", "save_adapter", "save_rows_adapter"]
