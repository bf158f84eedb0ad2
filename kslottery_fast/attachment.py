"""Where pickles of version 0.1 look for what :mod:`kslottery_fast.rows.attachment` holds."""

from kslottery_fast.rows.attachment import Attachment, _refuse_resize, _refuse_save

__all__ = ["Attachment", "_refuse_resize", "_refuse_save"]
