"""What a captured CUDA graph forbids: waiting for the device, and making state that every replay would make again."""

import torch

from kslottery_fast.base.errors import InputError


def capturing() -> bool:
    """Tell whether the current stream captures a CUDA graph."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def refuse_in_capture() -> None:
    """Refuse to make state during a capture, because every replay would make it again.

    Raises
    ------
    InputError
        A CUDA graph is being captured.
    """
    if capturing():
        raise InputError("make one step before capturing a CUDA graph: the first one makes the optimizer's state")
