"""Tickets of tables that are sharded over processes: ``ks_select`` on DTensors."""

from typing import Any, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from kslottery_fast.base.arguments import check_choice, check_tokenizer, shown
from kslottery_fast.base.dtensors import is_dtensor, local
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.options import Correction, Method, TableName
from kslottery_fast.base.tokenizer import Tokenizer
from kslottery_fast.ks.decision import check_options
from kslottery_fast.ks.order import reordered_rows
from kslottery_fast.ks.tables import counts_and_largest

from .select import select_tickets
from .tickets import Tickets


def ks_select_sharded(
    emb_before: Tensor,
    emb_after: Tensor,
    alpha: float | None = 0.05,
    *,
    method: Method = "auto",
    correction: Correction | None = None,
    top_k: int | None = None,
    tokenizer: Tokenizer | None = None,
    table: TableName = "input",
) -> Tickets:
    """Select the tickets of sharded tables: :func:`kslottery_fast.ks_select` on DTensors.

    No process ever holds a whole table. Each tests the rows of its own shard. Then 16 bytes are gathered for each row
    that reaches the threshold, or, with "bh" or ``top_k``, for each row that moved. All processes get equal tickets.

    Parameters
    ----------
    emb_before, emb_after : DTensor
        [V, d] on one device mesh, both ``Shard(0)`` along one mesh dimension and replicated along the others. This is
        what ``fully_shard`` makes of an embedding.
    alpha, method, correction, top_k, tokenizer, table
        As for :func:`kslottery_fast.ks_select`.

    Returns
    -------
    Tickets

    Raises
    ------
    InputError
        The tables are not DTensors that are sharded by rows over one mesh, or their shapes differ. A table has NaN or
        Inf; all processes raise the same error, which gives token ids. An option is unknown.
    TypeError
        An argument has the wrong type.

    Warns
    -----
    RuntimeWarning
        No row is selected, or fewer than ``top_k``. The message says why.

    Examples
    --------
    Usually there are several processes. Here there is one:

    >>> from torch.distributed.tensor import Shard, distribute_tensor
    >>> dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    >>> mesh = dist.init_device_mesh("cpu", (1,))
    >>> before = torch.randn(1000, 64, generator=torch.Generator().manual_seed(0))
    >>> after = before.clone()
    >>> after[[5, 17]] += 3.0
    >>> sorted(ks_select_sharded(*(distribute_tensor(table, mesh, [Shard(0)]) for table in (before, after))))
    [5, 17]
    >>> dist.destroy_process_group()
    """
    if tokenizer is not None:
        check_tokenizer(tokenizer)
    check_options(alpha, correction, top_k)
    check_choice(table, get_args(TableName), "table")
    return select_tickets(_ShardedTables(emb_before, emb_after), alpha, method, correction, top_k, tokenizer, table)


class _ShardedTables:
    """Two DTensors that are sharded by rows in the same way."""

    names = ("emb_before", "emb_after")

    def __init__(self, before: Any, after: Any) -> None:
        for name, table in zip(self.names, (before, after), strict=True):
            if not is_dtensor(table):
                raise InputError(f"{name} is {shown(table)}: expected a DTensor; ks_select takes other tables")
        if before.shape != after.shape or before.dim() != 2 or before.shape[1] == 0:
            shapes = f"{list(before.shape)} and {list(after.shape)}"
            raise InputError(f"emb_before and emb_after are {shapes}; expected one shape [V, d]")
        alike = before.device_mesh == after.device_mesh and before.placements == after.placements
        by_rows = [dim for dim, placement in enumerate(before.placements) if placement.is_shard(0)]
        others = [placement for placement in before.placements if not placement.is_shard(0)]
        if not alike or len(by_rows) != 1 or not all(placement.is_replicate() for placement in others):
            raise InputError(
                f"emb_before is placed {before.placements}, emb_after {after.placements}; expected both Shard(0) along "
                "one dimension of one mesh and Replicate() along the others: use table.redistribute"
            )
        self.shape = (before.shape[0], before.shape[1])
        self.group: dist.ProcessGroup = before.device_mesh.get_group(by_rows[0])
        self.before, self.after = local(before.detach()), local(after.detach())
        self._identical: Tensor | None = None

    def counts(self, threshold: int = 0) -> Tensor:
        """See :class:`kslottery_fast.ks.decision.Tables`. The result is the same on all processes."""
        h, flags, self._identical = counts_and_largest(self.before, self.after, threshold)
        rows = torch.nonzero((h != 0) | (flags != 0))[:, 0]
        # A row that is not finite travels as -1, so that all processes raise the same error.
        ids, h = self._of_all(rows, torch.where(flags[rows] != 0, -1, h[rows]))
        bad = ids[h < 0].tolist()
        if bad:
            first = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
            raise InputError(
                f"emb_before or emb_after has NaN or Inf in {len(bad)} rows (token ids {first}): training diverged, or "
                "a checkpoint is damaged"
            )
        return torch.zeros(self.shape[0], dtype=torch.int64, device=h.device).index_put_((ids,), h)

    def reordered(self) -> Tensor:
        """See :class:`kslottery_fast.ks.decision.Tables`. The result is the same on all processes."""
        rows = reordered_rows(self.before, self.after, identical=self._identical).to(self.before.device)
        return self._of_all(rows, rows)[0].cpu()

    def _of_all(self, rows: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of all shards, as rows of the whole table, and an int64 value of each."""
        sizes = self._gather(torch.tensor([len(self.before), len(rows)], device=rows.device))
        offset = sum(int(size[0]) for size in sizes[: dist.get_rank(self.group)])
        found = torch.stack([rows + offset, values], dim=1)
        longest = max(int(size[1]) for size in sizes)
        padded = torch.nn.functional.pad(found, (0, 0, 0, longest - len(found)))
        gathered = self._gather(padded)
        every = torch.cat([part[: int(size[1])] for part, size in zip(gathered, sizes, strict=True)])
        return every[:, 0], every[:, 1]

    def _gather(self, part: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(part) for _ in range(dist.get_world_size(self.group))]
        dist.all_gather(parts, part.contiguous(), group=self.group)
        return parts
