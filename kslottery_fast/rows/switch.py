"""Rows follow the switch of adapters beside them: inside ``disable_adapter()`` of PEFT the model is the base model.

PEFT keeps its switch in every layer that it changed, and nothing tells the rows about it. So the rows look, in every
forward, at what such a layer says. Without this, the reference of TRL's DPOTrainer would not be the base model.
"""

import weakref
from typing import Any

import torch
from torch import nn

_NOT_LOOKED = object()


class AdapterSwitch:
    """Tells whether the adapters in a model are switched off.

    Parameters
    ----------
    owner : nn.Module, optional
        The model that rows are attached to. Only a weak reference is kept, since the rows are a part of it. Without a
        model the adapters are never off.

    Notes
    -----
    PEFT puts ``peft_config`` on a model that gets its layers, and removes it with them. The layers are therefore only
    looked for when another ``peft_config`` is found, and never in compiled code.

    Examples
    --------
    >>> AdapterSwitch(nn.Embedding(10, 4)).off()
    False
    """

    def __init__(self, owner: nn.Module | None = None) -> None:
        self._owner = None if owner is None else weakref.ref(owner)
        self._layers: tuple[Any, ...] = ()
        self._config: Any = None
        if owner is not None:
            self._look(owner)

    def look(self) -> None:
        """Look for adapters now, which compiled code does not do."""
        owner = None if self._owner is None else self._owner()
        if owner is not None:
            self._look(owner)

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
        for layer in self._layers:  # the first layer answers if the adapters are on
            if not layer.disable_adapters:
                return False
        return len(self._layers) > 0

    def __deepcopy__(self, memo: dict[int, Any]) -> "AdapterSwitch":
        owner = None if self._owner is None else self._owner()
        return AdapterSwitch._of(memo.get(id(owner)))

    def __reduce__(self) -> tuple[Any, ...]:
        return AdapterSwitch._of, (None if self._owner is None else self._owner(),)

    @classmethod
    def _of(cls, owner: nn.Module | None) -> "AdapterSwitch":
        """A switch for a model that is still being copied or read from a pickle: it looks in its first forward."""
        made = cls()
        made._owner, made._config = None if owner is None else weakref.ref(owner), _NOT_LOOKED
        return made


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
