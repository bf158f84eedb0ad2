"""What overlaid modules share: the trained rows of each ticket set, and which set is in use.

All modules that read one table (input embedding, encoder, decoder, a tied head) hold the same :class:`RowSets`.
Switching to another set is therefore one assignment and copies nothing.
"""

from collections.abc import Callable, ItemsView, ValuesView
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from kslottery_fast.base.arguments import shown
from kslottery_fast.base.caller import warn_caller
from kslottery_fast.base.dtensors import whole_shape
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.options import HeadRole
from kslottery_fast.ops import row_embedding

from .mixture import Mixture
from .token_ids import check_token_ids

_ROLES = {"frozen": "keeps its own rows", "tied": "follows these rows", "own": "has trained rows of its own"}


class RowSet(nn.Module):
    """The trained rows of k tokens.

    Attributes
    ----------
    rows : Parameter
        [k, d], float32, or float64 over a float64 table. ``rows[i]`` replaces the row ``token_ids[i]`` of the table.
    token_ids : torch.Tensor
        int64 [k], distinct. The state dict has them as ``_extra_state``.
    slots : torch.Tensor
        int32 [V], the index into ``rows`` of each token, -1 for tokens that read the table. It follows from
        ``token_ids`` and is not in the state dict.
    output : RowSet or None
        Trained rows of the output head, if the head has some of its own. They may be of other tokens.
    bias : Parameter or None
        [k], the trained bias entries of these tokens. Only ``output`` has them, and only if the head has a bias.

    Notes
    -----
    ``token_ids`` and ``slots`` are not buffers, since DistributedDataParallel sends the buffers of rank 0 to all other
    processes in every forward. FSDP2 and DataParallel, which move parameters and buffers, leave them behind. They
    follow the rows when they are next read.

    Examples
    --------
    >>> from kslottery_fast import attach_rows
    >>> attach_rows(nn.Embedding(10, 4), [7, 3]).row_sets["default"]
    RowSet(k=2, d=4, V=10)
    """

    rows: nn.Parameter
    bias: nn.Parameter | None
    output: "RowSet | None"
    warned = False

    def __init__(
        self,
        rows: torch.Tensor,
        token_ids: torch.Tensor,
        vocab_size: int,
        padding_idx: int | None,
        *,
        bias: torch.Tensor | None = None,
        output: "RowSet | None" = None,
    ) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias))
        self.register_module("output", output)
        self.vocab_size, self.padding_idx = vocab_size, padding_idx
        self._index(token_ids)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._parameters.setdefault("bias", None)  # a pickle of version 0.1 has neither
        self._modules.setdefault("output", None)

    def _index(self, token_ids: torch.Tensor) -> None:
        slots = torch.full((self.vocab_size,), -1, dtype=torch.int32, device=token_ids.device)
        slots[token_ids] = torch.arange(len(token_ids), dtype=torch.int32, device=slots.device)
        self._token_ids, self._slots = token_ids, slots
        pad = self.padding_idx
        self._padding_slot = int(slots[pad]) if pad is not None else -1

    @property
    def token_ids(self) -> torch.Tensor:
        """int64 [k]."""
        return self._index_here()[0]

    @property
    def slots(self) -> torch.Tensor:
        """int32 [V]."""
        return self._index_here()[1]

    @property
    def k(self) -> int:
        """How many rows the set has, all processes together."""
        return len(self._token_ids)

    @property
    def d(self) -> int:
        """How many numbers a row has."""
        return whole_shape(self.rows)[1]

    @property
    def head(self) -> "RowSet":
        """What an output head reads: ``output`` if there is one, otherwise these rows."""
        return self if self.output is None else self.output

    def __repr__(self) -> str:
        output = "" if self.output is None else f", output={self.output!r}"
        return f"RowSet(k={self.k}, d={self.d}, V={self.vocab_size}{output})"

    def summary(self) -> str:
        """Return one line for a terminal: rows, dtype, and whether they train."""
        trains = "trainable" if self.rows.requires_grad else "frozen"
        dtype = str(self.rows.dtype).removeprefix("torch.")
        bias = "" if self.bias is None else " with bias entries"
        line = f"{self.k:,} of {self.vocab_size:,} rows{bias}, d={self.d}, {dtype}, {trains}"
        return line if self.output is None else f"{line}; head: {self.output.summary()}"

    def _index_here(self) -> tuple[torch.Tensor, torch.Tensor]:
        # Rows that accelerate offloads are on the meta device between forwards, but their ids have values.
        return self.index_on(self._slots.device if self.rows.is_meta else self.rows.device)

    def index_on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """(token_ids, slots) on the device that computes. They are moved once; later calls only compare devices."""
        if self._slots.device != device:
            moved = self._token_ids.to(device), self._slots.to(device)
            if device.type == "meta":  # a forward that only asks for shapes
                return moved
            self._token_ids, self._slots = moved
        return self._token_ids, self._slots

    def forward(self) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Return ``rows``, or ``rows`` and ``bias`` if there is one.

        Readers call the module, so that hooks on it run, such as those of DeepSpeed and accelerate, which gather or
        load what it returns.
        """
        rows = self.rows
        if self.training and not rows.requires_grad and torch.is_grad_enabled():
            self._warn_frozen()
        return rows if self.bias is None else (rows, self.bias)

    def read(self) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Rows [k, d], their bias entries [k] or None, and their token ids [k], on one device."""
        made = self()
        rows, bias = made if isinstance(made, tuple) else (made, None)
        return rows, bias, self.index_on(rows.device)[0]

    def _warn_frozen(self) -> None:
        if self.warned or torch.compiler.is_compiling():
            return
        self.warned = True
        warn_caller(
            "the attached rows are read in training but do not train: their requires_grad is False. get_peft_model "
            "freezes rows that it finds; call attach_rows(base_model, token_ids, freeze=False) after it, or "
            "get_rows(model).rows.requires_grad_(True). Ignore this if the rows are to stay as they are"
        )

    def input_rows(self) -> torch.Tensor:
        """``rows`` as an input embedding reads them: the padding row gets no gradient, as in ``nn.Embedding``.

        A head does give that row a gradient, as in a dense tied model.
        """
        rows: torch.Tensor = self()
        if self._padding_slot < 0:
            return rows
        is_padding = torch.arange(len(rows), device=rows.device) == self._padding_slot
        return torch.where(is_padding.unsqueeze(1), rows.detach(), rows)

    def look_up(self, table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Rows [*, d] of integer ids [*], in the dtype of the frozen ``table`` [V, d]."""
        rows = self.input_rows()
        return row_embedding(table, rows, self.index_on(rows.device)[1], ids)

    def replace(self, values: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """``values`` [*, d] that another module looked up for ids [*], with these rows in place of its own."""
        rows = self.input_rows()
        slots = self.index_on(rows.device)[1][ids]
        ours = F.embedding(slots.clamp(min=0), rows).to(values.dtype)
        return torch.where((slots >= 0).unsqueeze(-1), ours, values)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
        # half(), bfloat16() and to(dtype) come through here. In 16 bits small AdamW steps would vanish, so the rows
        # follow the model to another device but keep their dtype.
        own = [parameter for parameter in (self.rows, self.bias) if parameter is not None]
        kept = {id(tensor) for parameter in own for tensor in (parameter, parameter.grad) if tensor is not None}

        def move(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if id(tensor) in kept and moved.dtype != tensor.dtype else moved

        super()._apply(move, recurse)
        # The ids only change their device: type(dtype) would cast them, and to_empty() would drop their values.
        self._index_here()
        return self

    def get_extra_state(self) -> torch.Tensor:
        """Return ``token_ids``. As extra state, torch.distributed.checkpoint knows that a state dict has to hold them.

        There is no ``set_extra_state``: ``_load_from_state_dict`` reads the ids before it reads the rows.
        """
        return self.token_ids

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        key = f"{prefix}_extra_state"
        local_metadata, _, missing, unexpected, errors = args
        ids, found = None, len(errors)
        if key not in state_dict:
            missing.append(key)
            if f"{prefix}rows" in state_dict:  # an error even with strict=False: the rows may be of other tokens
                errors.append(f"{prefix}rows come without their token ids, {key}")
                return
        else:
            try:
                ids = check_token_ids(torch.as_tensor(state_dict[key]), self.vocab_size, key)
            except (InputError, TypeError) as error:
                errors.append(str(error))  # load_state_dict raises them all at the end
                return
            if len(ids) != len(self.token_ids):
                errors.append(f"{key} has {len(ids)} token ids, but the attached rows are {len(self.token_ids)}")
                return
        if local_metadata.get("assign_to_params_buffers"):
            # assign=True takes the very tensor, and rows of 16 bits would not train well. The dict is torch's own copy.
            for name in (f"{prefix}rows", f"{prefix}bias"):
                if torch.is_tensor(state_dict.get(name)):
                    state_dict[name] = state_dict[name].to(self.rows.dtype)
        super()._load_from_state_dict(state_dict, prefix, *args)
        if key in unexpected:
            unexpected.remove(key)
        if ids is not None and len(errors) == found and f"{prefix}rows" in state_dict:
            # Rows of another width are an error, missing rows are one if strict. Ids are only taken with their rows.
            self._index(ids.to(self._token_ids.device, copy=True))


class RowSets(nn.ModuleDict):
    """The ticket sets of one model by name, the one that is in use, and the mixture of the running batch."""

    active: str | None = None
    mixture: Mixture | None = None
    head_role: HeadRole | None = None  # None without a head

    def __init__(self, name: str, row_set: RowSet, head_role: HeadRole | None = None) -> None:
        super().__init__({name: row_set})
        self.active, self.head_role = name, head_role

    def __repr__(self) -> str:
        sizes = {name: row_set.k for name, row_set in self.items()}
        return f"RowSets({sizes}, in_use={self.active!r})"

    # As nn.ModuleDict does it, with the type of its modules.
    def __getitem__(self, key: str) -> RowSet:
        return super().__getitem__(key)  # type: ignore[return-value]

    def values(self) -> ValuesView[RowSet]:
        """The sets, in the order in which they came."""
        return super().values()  # type: ignore[return-value]

    def items(self) -> ItemsView[str, RowSet]:
        """The sets with their names, in the order in which they came."""
        return super().items()  # type: ignore[return-value]

    def summary(self) -> str:
        """Return one line for each set, and one for the role of the output head."""
        in_use = {self.active: " (in use)"}
        lines = [f"{name!r}{in_use.get(name, '')}: {row_set.summary()}" for name, row_set in self.items()]
        if self.head_role is not None:
            lines.append(f"output head: {_ROLES[self.head_role]} (output={self.head_role!r})")
        return "\n".join(lines)

    def current(self) -> RowSet:
        """The set in use. InputError if the base is in use."""
        if self.active is None:
            raise InputError("no rows are in use; call use_rows(model, name) first")
        return self[self.active]


def check_name(name: Any) -> None:
    """Refuse a name that cannot be part of a parameter's name."""
    # A ModuleDict keeps its modules next to its own attributes, of which "training" is one.
    if not isinstance(name, str) or not name or "." in name or hasattr(nn.ModuleDict(), name) or hasattr(RowSets, name):
        raise InputError(
            f"name is {shown(name)}: expected a string without dots that is not an attribute of a torch module, "
            "such as 'en-de'"
        )
