"""The file of tickets: a JSON object that holds all their attributes."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from typing_extensions import Self

from kslottery_fast.base.arguments import check_path, shown
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import read_json, write_json
from kslottery_fast.base.hub import TICKETS_FILE, found_folder, is_repository
from kslottery_fast.base.ticket_ids import (
    COMPARISON,
    FORMAT,
    check_digest,
    check_format,
    digest_of,
    integers_of,
    is_int,
    texts_of,
)
from kslottery_fast.base.tokenizer import Tokenizer
from kslottery_fast.checkpoints.file_errors import exists

from .texts import TicketTexts
from .ticket_fields import SETTINGS

_ROWS = ("token_ids", "counts")
_LONGEST_EXACT = 1 << 20
"""An exact test needs a table of this many p-values, which a damaged file must not make any size it likes."""
_DERIVED = ("threshold", "statistic", "pvalue")
ATTRIBUTES = (*SETTINGS, "threshold", *_ROWS, "statistic", "pvalue")
"""The attributes that a file holds, in its order."""


def content_of(attributes: Mapping[str, Any], texts: tuple[str, ...] | None) -> dict[str, Any]:
    """Make the JSON object of all :data:`ATTRIBUTES`, without its digest."""
    content = {"format": FORMAT, **{name: _plain(attributes[name]) for name in ATTRIBUTES}}
    if content["table"] == "input":  # so that version 0.1, which knows no other table, can read the file
        del content["table"]
    if content["vocab_size_after"] is None:
        del content["vocab_size_after"]
    return content if texts is None else {**content, "tokens": list(texts)}


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor) else value


def fields_of(data: Any) -> dict[str, Any]:
    """Return the constructor's arguments from a parsed file, and check what the constructor cannot check."""
    check_format(data)
    data = {"table": "input", "vocab_size_after": None, **data}
    keys = ("format", *ATTRIBUTES, "digest")
    missing = [key for key in keys if key not in data]
    foreign = [key for key in data if key not in (*keys, "tokens", COMPARISON)]
    if missing or foreign:
        raise InputError(f"missing {', '.join(missing)}" if missing else f"unknown key {foreign[0]!r}")
    _check_table(data["method"], data["dimension"])
    rows, texts = {key: integers_of(data, key) for key in _ROWS}, texts_of(data)
    return {**{key: data[key] for key in SETTINGS}, **rows, "token_texts": texts}


def _check_table(method: Any, dimension: Any) -> None:
    """Refuse rows of which no file is written or read, since their table of exact p-values would be too large."""
    if method == "exact" and is_int(dimension) and dimension > _LONGEST_EXACT:
        raise InputError(
            f"dimension is {dimension}: expected at most {_LONGEST_EXACT} in a file with the method 'exact'; use "
            "method='asymp' for longer rows"
        )


def check_derived(data: Mapping[str, Any], attributes: Mapping[str, Any]) -> None:
    """Check the digest of a file, and the numbers that follow from others, against the computed ``attributes``."""
    check_digest(data)
    for key in _DERIVED:
        stored = [data[key]] if key == "threshold" else data[key]
        if not isinstance(stored, list) or not all(_is_number(v) for v in stored):
            raise InputError(f"{key} must be {'a number' if key == 'threshold' else 'a list of numbers'}")
        expected = [attributes[key]] if key == "threshold" else attributes[key].tolist()
        # p-values may come from another version of scipy, so their last digits may differ. Nothing else may.
        tolerance = 1e-6 if key == "pvalue" else 0.0
        if len(stored) != len(expected) or not all(
            abs(a - b) <= tolerance * b for a, b in zip(stored, expected, strict=True)
        ):
            raise InputError(f"{key} does not follow from counts, dimension and method")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class TicketFiles(TicketTexts):
    """Tickets as a dict and as a file."""

    def _attributes(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ATTRIBUTES}

    def to_dict(self) -> dict[str, Any]:
        """Return the content of a ticket file as a dict, which JSON can hold.

        Returns
        -------
        dict
            ``format`` is ``"kslottery-tickets/1"``. The attributes have their names, except ``token_texts``, which is
            ``tokens`` and only there if known, and ``log_pvalue``, which is left out. ``table`` is left out if it is
            "input", and ``vocab_size_after`` if it is None. ``digest`` is "sha256:" and the SHA-256 of the dict without
            ``digest``, written as UTF-8 JSON with sorted keys, without spaces, and with characters beyond ASCII
            escaped.

        Examples
        --------
        >>> from kslottery_fast import Tickets
        >>> settings = {"vocab_size": 10, "dimension": 4, "threshold_count": 4, "alpha": 0.05}
        >>> tickets = Tickets.from_counts([3], [4], **settings)
        >>> tickets.to_dict()["token_ids"], tickets.to_dict()["threshold"]
        ([3], 1.0)
        """
        _check_table(self.method, self.dimension)
        content = content_of(self._attributes(), self.token_texts)
        return {**content, "digest": digest_of(content)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Make tickets from what :meth:`to_dict` returned, and check all of it.

        Parameters
        ----------
        data : dict

        Returns
        -------
        Tickets

        Raises
        ------
        InputError
            A key is missing, has a wrong type or a value out of range; values contradict each other or the digest.
        TypeError
            ``data`` is not a dict.

        Examples
        --------
        >>> from kslottery_fast import Tickets
        >>> settings = {"vocab_size": 10, "dimension": 4, "threshold_count": 4, "alpha": 0.05}
        >>> tickets = Tickets.from_counts([3], [4], **settings)
        >>> Tickets.from_dict(tickets.to_dict()) == tickets
        True
        """
        if not isinstance(data, Mapping):
            raise TypeError(f"data is {shown(data)}: expected a dict that to_dict returned")
        try:
            return cls._of_content(dict(data))
        except InputError as error:
            raise InputError(f"data: {error}") from None

    @classmethod
    def _of_content(cls, data: Any) -> Self:
        tickets = cls(**fields_of(data))
        check_derived(data, tickets._attributes())
        return tickets

    def save(self, path: str | os.PathLike[str], tokenizer: Tokenizer | None = None) -> None:
        """Write the tickets to a JSON file. It is written whole or not at all.

        Parameters
        ----------
        path : str or path
            The file, in a folder that exists. A ticket file that is already there is replaced.
        tokenizer : transformers tokenizer, optional
            Writes the text of each token too, as :meth:`with_texts` does.

        Raises
        ------
        InputError
            The folder does not exist, ``path`` is a folder, or the tokenizer belongs to another model. The method is
            "exact", and the rows have over 1,048,576 numbers.
        TypeError
            An argument has the wrong type.

        Examples
        --------
        >>> import tempfile
        >>> from kslottery_fast import Tickets
        >>> settings = {"vocab_size": 10, "dimension": 4, "threshold_count": 4, "alpha": 0.05}
        >>> tickets = Tickets.from_counts([3], [4], **settings)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     tickets.save(f"{folder}/tickets.json")
        ...     Tickets.load(f"{folder}/tickets.json") == tickets
        True
        """
        target = _check_target(path)
        content = (self if tokenizer is None else self.with_texts(tokenizer)).to_dict()
        write_json(target, content)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, revision: str | None = None) -> Self:
        """Read what :meth:`save` or :meth:`push_to_hub` wrote, and check all of it.

        Parameters
        ----------
        path : str or path
            A ticket file. Or the id of a repository on the Hub, "org/name".
        revision : str, optional
            A branch, tag or commit of the repository.

        Returns
        -------
        Tickets

        Raises
        ------
        InputError
            There is no such file or repository, or it is not a ticket file. A field is missing, has a wrong type or a
            value out of range. Fields contradict each other. The digest says that the file was changed. The message
            names the file and the field.
        TypeError
            ``path`` is not a path.

        Examples
        --------
        >>> import tempfile
        >>> from kslottery_fast import Tickets
        >>> settings = {"vocab_size": 10, "dimension": 4, "threshold_count": 4, "alpha": 0.05}
        >>> tickets = Tickets.from_counts([3], [4], **settings)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     tickets.save(f"{folder}/tickets.json")
        ...     Tickets.load(f"{folder}/tickets.json") == tickets
        True
        """
        source = found_folder(path, (TICKETS_FILE,), revision)
        if is_repository(path):
            source /= TICKETS_FILE
        if exists(source) and source.is_dir():
            raise InputError(f"path {source} is a folder: name a ticket file, such as {source / 'tickets.json'}")
        data = read_json(source)
        try:
            return cls._of_content(data)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None


def _check_target(path: Any) -> Path:
    """Refuse a path to which no file can be written, before anything is computed."""
    target = check_path(path)
    if exists(target) and target.is_dir():
        raise InputError(f"path {target} is a folder: name a file, such as {target / 'tickets.json'}")
    if not target.parent.is_dir():
        raise InputError(f"path {target} is in the folder {target.parent}, which does not exist; make it first")
    return target
