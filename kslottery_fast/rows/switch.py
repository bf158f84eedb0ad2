"""Rows follow the switch of adapters beside them: inside ``disable_adapter()`` of PEFT the model is the base model.

PEFT keeps its switch in every layer that it changed, and nothing tells the rows about it. So the rows look, in every
forward, at what such a layer says. Without this, the reference of TRL's DPOTrainer would not be the base model.
"""

import weakref
from typing import Any

import torch
from torch import nn

from kslottery_fast.base.caller import warn_caller

from .peft_saving import tell_on_save

_NOT_LOOKED = object()


class AdapterSwitch:
    """Tells whether the adapters in a model are switched off.

    Parameters
    ----------
    owner : nn.Module, optional
        The model that rows are attached to. Only a weak reference is kept, since the rows are a part of it. Without a
        model the adapters are never off.
    head_reads : bool
        Whether the output head reads rows. If TRL has then given the model a forward that passes the head by, the first
        forward warns.

    Notes
    -----
    PEFT puts ``peft_config`` on a model that gets its layers, and removes it with them. The layers are therefore only
    looked for when another ``peft_config`` is found, and never in compiled code.

    Examples
    --------
    >>> AdapterSwitch(nn.Embedding(10, 4)).off()
    False
    """

    def __init__(self, owner: nn.Module | None = None, *, head_reads: bool = False) -> None:
        self._owner = None if owner is None else weakref.ref(owner)
        self._layers: tuple[Any, ...] = ()
        self._config: Any = None
        self._head_reads, self._forward = head_reads, id(None)
        if owner is not None:
            self._look(owner)

    def look(self) -> None:
        """Look for adapters now, which compiled code does not do."""
        owner = None if self._owner is None else self._owner()
        if owner is not None:
            self._look(owner)
            tell_on_save(owner)

    def _look(self, owner: nn.Module) -> None:
        self._config = vars(owner).get("peft_config")
        # A model of transformers has a method of the same name.
        self._layers = tuple(
            module for module in owner.modules() if isinstance(getattr(module, "disable_adapters", None), bool)
        )

    def off(self) -> bool:
        """Return whether all adapters are switched off. Without adapters it is False."""
        if not torch.compiler.is_compiling():
            owner = None if self._owner is None else self._owner()
            if owner is not None:
                held = vars(owner)
                if held.get("_adapters_disabled", False):
                    return True  # rows on a PeftModel itself, whose adapter may be a prompt, which changes no layer
                if held.get("peft_config") is not self._config:
                    self._look(owner)
                    tell_on_save(owner)  # get_peft_model came after the rows
                if self._head_reads and id(held.get("forward")) != self._forward:
                    self._forward = id(held.get("forward"))
                    _warn_fused(held.get("forward"))
        for layer in self._layers:  # the first layer answers if the adapters are on
            if not layer.disable_adapters:
                return False
        return len(self._layers) > 0

    def __deepcopy__(self, memo: dict[int, Any]) -> "AdapterSwitch":
        owner = None if self._owner is None else self._owner()
        return AdapterSwitch._of(memo.get(id(owner)), self._head_reads)

    def __reduce__(self) -> tuple[Any, ...]:
        return AdapterSwitch._of, (None if self._owner is None else self._owner(), self._head_reads)

    @classmethod
    def _of(cls, owner: nn.Module | None, head_reads: bool) -> "AdapterSwitch":
        """A switch for a model that is still being copied or read from a pickle: it looks in its first forward."""
        made = cls(head_reads=head_reads)
        made._owner, made._config = None if owner is None else weakref.ref(owner), _NOT_LOOKED
        return made


def passes_head_by(forward: Any) -> bool:
    """Tell whether a model's forward is the one of TRL that computes from the weight of the head.

    The autocast that accelerate puts around a forward is looked through.
    """
    while forward is not None:
        function = getattr(forward, "__func__", forward)
        if getattr(function, READS_ROWS, False):
            return False
        code = getattr(function, "__code__", None)
        if code is not None and FUSED in code.co_varnames:
            return True
        forward = getattr(function, "__wrapped__", None)
    return False


FUSED = "fused_lm_head"
"""The argument that asks the forward of TRL for log-probabilities."""

READS_ROWS = "_kslottery_reads_rows"
"""The attribute of a forward of TRL that was changed to read the rows of the head."""


def _warn_fused(forward: Any) -> None:
    if passes_head_by(forward):
        warn_caller(
            "this trainer of TRL computes its loss from the weight of the output head, so the rows that the head reads "
            "are neither used nor trained there; put kslottery_fast.integrations.trainer.TicketTrainerMixin in front "
            "of the trainer, class Mine(TicketTrainerMixin, SFTTrainer)"
        )


def follow_adapters(model: nn.Module) -> None:
    """Look for adapters that came after the rows, for code that is compiled before its first forward.

    Parameters
    ----------
    model : nn.Module
        A model with attached rows.
    """
    for module in model.modules():
        switch = getattr(getattr(module, "row_sets", None), "switch", None)
        if switch is not None:
            switch.look()
