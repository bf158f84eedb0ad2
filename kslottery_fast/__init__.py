"""KS-Lottery: find the few token embeddings that fine-tuning really needs, and train only those.

>>> import torch
>>> from kslottery_fast import ks_select
>>> before = torch.randn(100, 256, generator=torch.Generator().manual_seed(0))
>>> after = before.clone()
>>> after[[3, 14]] += 0.5
>>> sorted(ks_select(before, after, alpha=0.01).token_ids.tolist())
[3, 14]

Yuan, Ma, Yuan, Sun, Li: *KS-Lottery: Finding Certified Lottery Tickets for Multilingual Transfer in Large Language
Models*, NAACL 2025.
"""

from .adapters import add_rows, mixed_rows, remove_rows, row_sets, use_rows
from .certificate import Certificate
from .certify import certify
from .errors import InputError
from .evaluate import Evaluation, Example, evaluate
from .ks_twosample import KsResult, ks_2samp
from .ops import row_adamw_
from .ops.native import installed_version
from .optim import RowAdamW
from .row_selection import ks_select_rows
from .rows import attach_rows, detach_rows, get_rows, merge_rows, transfer_rows, untie_output
from .stats import ks_statistics
from .tables import active_token_ids, embedding_table, is_tied
from .tickets import Tickets, ks_select

__version__ = installed_version()

__all__ = [
    "Certificate",
    "Evaluation",
    "Example",
    "InputError",
    "KsResult",
    "RowAdamW",
    "Tickets",
    "active_token_ids",
    "add_rows",
    "attach_rows",
    "certify",
    "detach_rows",
    "embedding_table",
    "evaluate",
    "get_rows",
    "is_tied",
    "ks_2samp",
    "ks_select",
    "ks_select_rows",
    "ks_statistics",
    "merge_rows",
    "mixed_rows",
    "remove_rows",
    "row_adamw_",
    "row_sets",
    "transfer_rows",
    "untie_output",
    "use_rows",
]
