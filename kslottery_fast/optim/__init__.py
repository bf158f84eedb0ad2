"""An optimizer for single rows: dense AdamW restricted to them, and nothing else read or written."""

from .row_adamw import RowAdamW

__all__ = ["RowAdamW"]
