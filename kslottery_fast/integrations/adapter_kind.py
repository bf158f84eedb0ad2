"""What the kinds of adapters share: their interface, checks, and the restoration of a model after a block."""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from kslottery_fast.base.arguments import check_model, check_path, shown
from kslottery_fast.base.errors import InputError


class AdapterKind:
    """One kind of adapter: how it is made within a budget, saved and loaded."""

    default_rate: float

    def attached(
        self, model: nn.Module, budget: int, prompt: Sequence[int]
    ) -> AbstractContextManager[tuple[nn.Module, dict[str, Any]]]:
        """Put a new, trainable adapter on a model for the length of a block.

        Parameters
        ----------
        model : transformers.PreTrainedModel
            After the block it is as it was before.
        budget : int
            About how many numbers the adapter may train.
        prompt : sequence of int
            Token ids of a prompt of the task, from which an adapter may start.

        Returns
        -------
        context manager
            Gives the adapter and its plan, a dict that can be written as JSON.

        Notes
        -----
        Random numbers are drawn from the global generator of torch.
        """
        raise NotImplementedError

    def loaded(self, model: nn.Module, folder: str | os.PathLike[str]) -> AbstractContextManager[nn.Module]:
        """Put a saved adapter on a model for the length of a block.

        Parameters
        ----------
        model : transformers.PreTrainedModel
            After the block it is as it was before.
        folder : str or path
            What :meth:`save` wrote.

        Returns
        -------
        context manager
            Gives the adapter.
        """
        raise NotImplementedError

    def save(self, adapter: nn.Module, folder: str | os.PathLike[str]) -> None:
        """Write the adapter as PEFT does, without a request to the Hugging Face Hub.

        Parameters
        ----------
        adapter : nn.Module
            What :meth:`attached` gave.
        folder : str or path
            The folder to write.

        Raises
        ------
        InputError
            ``adapter`` has no adapter of PEFT.
        TypeError
            ``adapter`` is not a model, or ``folder`` is not a str or path.
        """
        check_path(folder, "folder")
        checked: Any = check_model(adapter, "adapter")
        if not hasattr(checked, "peft_config"):
            raise InputError(f"adapter is {shown(adapter)}: expected the adapter that attached() gave")
        checked.save_pretrained(folder, save_embedding_layers=False)


@contextlib.contextmanager
def original_again(model: nn.Module, *, copy: bool = True) -> Iterator[None]:
    """Restore the parameters of a model after a block.

    Parameters
    ----------
    model : nn.Module
        Its parameters get back their ``requires_grad`` and lose their gradients.
    copy : bool
        True restores their values too, which takes a copy of all of them.

    Raises
    ------
    TypeError
        ``model`` is not a model.

    Examples
    --------
    >>> model = nn.Embedding(10, 4)
    >>> with original_again(model):
    ...     _ = model.requires_grad_(False)
    >>> model.weight.requires_grad
    True
    """
    check_model(model)
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    values = {name: parameter.detach().clone() for name, parameter in model.named_parameters()} if copy else {}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(flags[name])
                parameter.grad = None
                if copy:
                    parameter.copy_(values[name])


def check_pretrained(model: nn.Module) -> Any:
    """Return the config of a transformers model, or refuse another model."""
    config = getattr(check_model(model), "config", None)
    if config is None:
        raise InputError(f"model is {shown(model)} without a config: expected a model of transformers")
    return config


def quietly(make: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of PEFT without its warnings about names of transformers that will be removed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return make(*arguments)


def installed_peft() -> Any:
    """Return the module ``peft``, or say how to install it."""
    check_peft()
    import peft

    return peft


def check_peft(what: str = "LoRA and Prefix Tuning") -> None:
    """Check that PEFT is installed.

    Parameters
    ----------
    what : str
        The plural that needs it, for the error message.

    Raises
    ------
    InputError
        PEFT is not installed.
    """
    try:
        import peft  # noqa: F401
    except ImportError:
        raise InputError(f"{what} need the package peft: pip install 'kslottery-fast[peft]'") from None
