"""An optimizer for single rows: dense AdamW restricted to them, and nothing else read or written."""

from .excursion import adam_excursion, adam_excursion_limit
from .row_adamw import RowAdamW

__all__ = ["RowAdamW", "adam_excursion", "adam_excursion_limit"]
