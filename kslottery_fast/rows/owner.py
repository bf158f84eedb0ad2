"""Which part of a model names the token table: the model itself, or one inside a wrapper."""

from typing import Any

from torch import nn

from kslottery_fast.base.arguments import check_model, shown
from kslottery_fast.base.errors import InputError

_REPLICAS = (nn.DataParallel, nn.parallel.DistributedDataParallel)  # they do not learn of parameters that come later


def table_owner(model: nn.Module, name: str = "model") -> nn.Module:
    """Return the outermost part of a model that names the input embedding.

    This is nearly always the model itself. A CLIPModel or a SentenceTransformer names none, but holds a model that
    does. A model without any is returned as it is.

    Parameters
    ----------
    model : nn.Module
        A model, or an ``nn.Embedding``, which is its own owner.
    name : str
        What an error message calls ``model``.

    Returns
    -------
    nn.Module
        The model, or a module of it.

    Raises
    ------
    InputError
        The model holds several models with tables of their own. The message names them.
    TypeError
        ``model`` is not a model.

    Examples
    --------
    >>> from transformers import CLIPConfig, CLIPModel
    >>> small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> model = CLIPModel(CLIPConfig(text_config=small | {"vocab_size": 10}, vision_config=small))
    >>> table_owner(model) is model.text_model
    True
    """
    check_model(model, name)
    if named_embedding(model) is not None or isinstance(model, _REPLICAS):
        return model
    owners: dict[str, nn.Module] = {}
    for path, part in model.named_modules():  # a part comes before the parts that it has
        inside = any(path.startswith(f"{owner}.") for owner in owners)
        if not inside and not isinstance(part, nn.Embedding) and isinstance(named_embedding(part), nn.Embedding):
            owners[path] = part
    if len(owners) > 1:
        raise InputError(
            f"{name}, {shown(model)}, holds {len(owners)} models with an input embedding: {', '.join(owners)}; pass "
            "one of them"
        )
    return next(iter(owners.values()), model)


def named_embedding(model: nn.Module) -> nn.Module | None:
    """Return what a model names as its input embedding, if anything. It need not be an ``nn.Embedding``."""
    if isinstance(model, nn.Embedding):
        return model
    getter: Any = getattr(model, "get_input_embeddings", None)
    try:
        return getter() if getter is not None else None
    except NotImplementedError:
        return None
