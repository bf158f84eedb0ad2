"""Models and tokenizers by name, from a folder, a file or the Hub.

>>> from kslottery_fast.lab.models import load_model
>>> loaded = load_model("smollm2-135m")  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .loading import LoadedModel, load_model

__all__ = ["LoadedModel", "load_model"]


if not TYPE_CHECKING:  # otherwise type checkers would accept every name

    def __getattr__(name: str) -> Any:
        """Import a name when it is first used, because :mod:`.loading` imports transformers, which takes seconds."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from . import loading

        return getattr(loading, name)


def __dir__() -> list[str]:
    return sorted(__all__)
