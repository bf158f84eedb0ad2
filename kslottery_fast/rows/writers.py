"""Functions of other libraries that write a model file which ``from_pretrained`` would read without the rows."""

import sys
from types import FrameType

from kslottery_fast.base.errors import InputError

_WRITERS = {("accelerate", "save_model"), ("huggingface_hub", "save_torch_model")}
"""They take a state dict, which a training may save too, so that only the caller tells them from it."""

_DEEPEST = 40


def refuse_writer() -> None:
    """Refuse to give the state of attached rows to a function that writes the file of an ordinary model.

    Raises
    ------
    InputError
        Such a function is among the callers.

    Examples
    --------
    >>> refuse_writer()
    """
    frame: FrameType | None = sys._getframe(1)
    for _ in range(_DEEPEST):
        if frame is None:
            return
        library, name = frame.f_globals.get("__name__", "").partition(".")[0], frame.f_code.co_name
        if (library, name) in _WRITERS:
            raise InputError(
                f"with rows attached, {name} of {library} would write a file whose rows from_pretrained ignores; call "
                "merge_rows(model) first, or save the rows alone with kslottery_fast.save_adapter"
            )
        frame = frame.f_back
