"""The import path of version 0.1, kept for compatibility. Import from :mod:`kslottery_fast.rows` instead."""

from kslottery_fast.rows.adapter_file import load_adapter, save_adapter, save_rows_adapter

__all__ = ["load_adapter", "save_adapter", "save_rows_adapter"]
