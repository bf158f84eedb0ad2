"""KS-Lottery: train, swap or compare a few token-embedding rows of a language model.

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

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what a name is, for type checkers; when it is first used, for everybody else
    from .base.errors import InputError
    from .evaluation.certificate import Certificate
    from .evaluation.certify import certify
    from .evaluation.contribution import row_contributions
    from .evaluation.contribution_result import RowContributions
    from .evaluation.encoding import Example
    from .evaluation.evaluate import Evaluation, evaluate
    from .integrations.seq2seq_trainer import TicketSeq2SeqTrainer
    from .integrations.trainer import TicketTrainer
    from .integrations.trainer_adapter import attach_checkpoint, checkpoint_to_adapter
    from .ks.accumulator import KsAccumulator
    from .ks.frame_result import KsFrameResult
    from .ks.frames import ks_frames
    from .ks.stream import ks_stream
    from .ks.twosample import KsResult, ks_2samp
    from .ops import row_adamw_
    from .optim.row_adamw import RowAdamW
    from .rows.adapter_file import load_adapter, save_adapter
    from .rows.attach import attach_rows
    from .rows.attachment import get_output_rows, get_rows, has_rows
    from .rows.merge import detach_rows, merge_rows
    from .rows.new_tokens import add_tokens
    from .rows.sets import add_rows, mixed_rows, remove_rows, row_sets, use_rows
    from .rows.tables import embedding_table, is_tied
    from .rows.token_ids import active_token_ids
    from .rows.transfer import transfer_rows
    from .rows.untie import untie_output
    from .tickets.attached import ks_select_rows
    from .tickets.comparison import compare_checkpoints, compare_tables
    from .tickets.comparison_result import TableComparison
    from .tickets.select import ks_select
    from .tickets.stored import ks_select_checkpoints
    from .tickets.tables import ks_statistics
    from .tickets.tickets import Tickets

    __version__: str

__all__ = [
    "Certificate",
    "Evaluation",
    "Example",
    "InputError",
    "KsAccumulator",
    "KsFrameResult",
    "KsResult",
    "RowAdamW",
    "RowContributions",
    "TableComparison",
    "TicketSeq2SeqTrainer",
    "TicketTrainer",
    "Tickets",
    "active_token_ids",
    "add_rows",
    "add_tokens",
    "attach_checkpoint",
    "attach_rows",
    "certify",
    "checkpoint_to_adapter",
    "compare_checkpoints",
    "compare_tables",
    "detach_rows",
    "embedding_table",
    "evaluate",
    "get_output_rows",
    "get_rows",
    "has_rows",
    "is_tied",
    "ks_2samp",
    "ks_frames",
    "ks_select",
    "ks_select_checkpoints",
    "ks_select_rows",
    "ks_statistics",
    "ks_stream",
    "load_adapter",
    "merge_rows",
    "mixed_rows",
    "remove_rows",
    "row_adamw_",
    "row_contributions",
    "row_sets",
    "save_adapter",
    "transfer_rows",
    "untie_output",
    "use_rows",
]

_HOMES = {
    "Certificate": "evaluation.certificate",
    "Evaluation": "evaluation.evaluate",
    "Example": "evaluation.encoding",
    "InputError": "base.errors",
    "KsAccumulator": "ks.accumulator",
    "KsFrameResult": "ks.frame_result",
    "KsResult": "ks.twosample",
    "RowAdamW": "optim.row_adamw",
    "RowContributions": "evaluation.contribution_result",
    "TableComparison": "tickets.comparison_result",
    "TicketSeq2SeqTrainer": "integrations.seq2seq_trainer",
    "TicketTrainer": "integrations.trainer",
    "Tickets": "tickets.tickets",
    "active_token_ids": "rows.token_ids",
    "add_rows": "rows.sets",
    "add_tokens": "rows.new_tokens",
    "attach_checkpoint": "integrations.trainer_adapter",
    "attach_rows": "rows.attach",
    "certify": "evaluation.certify",
    "checkpoint_to_adapter": "integrations.trainer_adapter",
    "compare_checkpoints": "tickets.comparison",
    "compare_tables": "tickets.comparison",
    "detach_rows": "rows.merge",
    "embedding_table": "rows.tables",
    "evaluate": "evaluation.evaluate",
    "get_output_rows": "rows.attachment",
    "get_rows": "rows.attachment",
    "has_rows": "rows.attachment",
    "is_tied": "rows.tables",
    "ks_2samp": "ks.twosample",
    "ks_frames": "ks.frames",
    "ks_select": "tickets.select",
    "ks_select_checkpoints": "tickets.stored",
    "ks_select_rows": "tickets.attached",
    "ks_statistics": "tickets.tables",
    "ks_stream": "ks.stream",
    "load_adapter": "rows.adapter_file",
    "merge_rows": "rows.merge",
    "mixed_rows": "rows.sets",
    "remove_rows": "rows.sets",
    "row_adamw_": "ops",
    "row_contributions": "evaluation.contribution",
    "row_sets": "rows.sets",
    "save_adapter": "rows.adapter_file",
    "transfer_rows": "rows.transfer",
    "untie_output": "rows.untie",
    "use_rows": "rows.sets",
}
_ROOMS = ("base", "evaluation", "integrations", "ks", "lab", "ops", "optim", "rows", "tickets")
_OLD_NAMES = ("attachment", "errors", "files", "overlay", "rowset", "stats")


if not TYPE_CHECKING:  # else every name would exist for type checkers

    def __getattr__(name: str) -> Any:
        """Import what a name stands for when it is first used, so that importing the package does not import torch."""
        if name in _HOMES:
            value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        elif name in (*_ROOMS, *_OLD_NAMES):
            return importlib.import_module(f"{__name__}.{name}")
        elif name == "__version__":
            from .base.version import installed_version

            value = installed_version()
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
