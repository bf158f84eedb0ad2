"""The texts of tokens, and a check that a tokenizer fits a table."""

from dataclasses import replace
from typing import Protocol

from torch import Tensor
from typing_extensions import Self

from kslottery_fast.base.arguments import check_tokenizer
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.options import TicketTable
from kslottery_fast.base.ticket_ids import check_texts, token_text
from kslottery_fast.base.tokenizer import Tokenizer

from .ticket_data import TicketData


class HasSizes(Protocol):
    """Selected rows that know their tables."""

    @property
    def vocab_size(self) -> int:
        """The number of rows of the original table."""

    @property
    def vocab_size_after(self) -> int | None:
        """The number of rows of the tuned table, if that is another one."""

    @property
    def table(self) -> TicketTable:
        """Which table it is."""


ROWS_OF: dict[TicketTable, str] = {
    "input": "rows",
    "output": "rows of the output head",
    "shared": "rows of the tied table",
}
"""What the rows of a table are called after their number."""


def tallest(vocab_size: int, vocab_size_after: int | None) -> int:
    """The number of rows of the taller of two tables: the tokenizer may be that of either model."""
    return vocab_size if vocab_size_after is None else max(vocab_size, vocab_size_after)


def of_rows(tickets: HasSizes) -> str:
    """Say which rows were compared, after their number.

    Their table has a name if it is not the input embedding.
    """
    return f"{'' if tickets.vocab_size_after is None else 'shared '}{ROWS_OF[tickets.table]}"


def left_out(tickets: HasSizes) -> str:
    """Say which rows were not compared, since only one of the two tables has them. Empty if there are none."""
    if tickets.vocab_size_after is None:
        return ""
    count = abs(tickets.vocab_size_after - tickets.vocab_size)
    rows = f"{count:,} row{'' if count == 1 else 's'}"
    return f"; {rows} {'new' if tickets.vocab_size_after > tickets.vocab_size else 'gone'} and not compared"


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Refuse a tokenizer that does not fit a table with ``vocab_size`` rows.

    Raises
    ------
    InputError
        It has more tokens than the table has rows.
    TypeError
        It is not a tokenizer.
    """
    size = len(check_tokenizer(tokenizer))
    # Tokens that were added without resizing the table lie beyond it, but the tokenizer is still that of the model.
    if getattr(tokenizer, "vocab_size", size) > vocab_size:
        raise InputError(
            f"the tokenizer has {size} tokens, but the table has {vocab_size} rows: they are of different models; load "
            "the tokenizer of this model"
        )


def token_texts(tokenizer: Tokenizer, token_ids: Tensor, vocab_size: int) -> list[str]:
    """The text of each token of a table with ``vocab_size`` rows, with a leading space kept.

    Raises
    ------
    InputError
        The tokenizer belongs to another model.
    TypeError
        It is not a tokenizer.
    """
    check_vocabulary(tokenizer, vocab_size)
    size, ids = len(tokenizer), token_ids.tolist()
    outside = [token for token in ids if token >= size]
    if outside:
        raise InputError(
            f"token id {outside[0]} is a ticket, but the tokenizer ends at {size - 1}: they are of different models; "
            "load the tokenizer of this model"
        )
    return [token_text(tokenizer, token) for token in ids]


class TicketTexts(TicketData):
    """The texts of the tokens of tickets."""

    def tokens(self, tokenizer: Tokenizer) -> list[str]:
        """Return the text of each ticket, in their order, with a leading space kept.

        A token that is not text by itself, such as a part of a UTF-8 character, has the tokenizer's own spelling.

        Parameters
        ----------
        tokenizer : transformers tokenizer
            The tokenizer of the model. The table may have more rows (padding) than the tokenizer has tokens, but not
            fewer.

        Returns
        -------
        list of str

        Raises
        ------
        InputError
            The tokenizer belongs to another model.
        TypeError
            It is not a tokenizer.

        Examples
        --------
        >>> from kslottery_fast import Tickets
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import PreTrainedTokenizerFast
        >>> vocabulary = models.WordLevel({"the": 0, "cat": 1, "sat": 2})
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(vocabulary))
        >>> settings = {"vocab_size": 3, "dimension": 4, "threshold_count": 4, "alpha": 0.05}
        >>> tickets = Tickets.from_counts([2, 1], [4, 4], **settings)
        >>> tickets.tokens(tokenizer)
        ['cat', 'sat']
        """
        return token_texts(tokenizer, self.token_ids, tallest(self.vocab_size, self.vocab_size_after))

    def with_texts(self, tokenizer: Tokenizer) -> Self:
        """Return equal tickets that keep the text of each token in ``token_texts``.

        Parameters
        ----------
        tokenizer : transformers tokenizer
            The tokenizer of the model, as for :meth:`tokens`.

        Returns
        -------
        Tickets

        Raises
        ------
        InputError
            The tokenizer belongs to another model.
        TypeError
            It is not a tokenizer.

        Examples
        --------
        >>> from kslottery_fast import Tickets
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import PreTrainedTokenizerFast
        >>> vocabulary = models.WordLevel({"the": 0, "cat": 1, "sat": 2})
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(vocabulary))
        >>> settings = {"vocab_size": 3, "dimension": 4, "threshold_count": 4, "alpha": 0.05}
        >>> tickets = Tickets.from_counts([2, 1], [4, 4], **settings)
        >>> tickets.with_texts(tokenizer).token_texts
        ('cat', 'sat')
        """
        return replace(self, token_texts=tuple(self.tokens(tokenizer)))

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Refuse a tokenizer whose tokens have other texts than those of the tickets.

        Tickets without texts refuse only what :meth:`tokens` refuses.

        Parameters
        ----------
        tokenizer : transformers tokenizer

        Raises
        ------
        InputError
            The tokenizer belongs to another model.
        TypeError
            It is not a tokenizer.

        Examples
        --------
        >>> from kslottery_fast import Tickets
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import PreTrainedTokenizerFast
        >>> vocabulary = models.WordLevel({"the": 0, "cat": 1, "sat": 2})
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(vocabulary))
        >>> settings = {"vocab_size": 3, "dimension": 4, "threshold_count": 4, "alpha": 0.05}
        >>> tickets = Tickets.from_counts([2, 1], [4, 4], **settings, token_texts=["dog", "the"])
        >>> tickets.check_tokenizer(tokenizer)
        Traceback (most recent call last):
        kslottery_fast.base.errors.InputError: the tickets are of another tokenizer: token 1 is 'the' in the tickets and
        'cat' in the tokenizer; select tickets for this model
        """
        if self.token_texts is None:
            self.tokens(tokenizer)
        else:
            check_vocabulary(tokenizer, tallest(self.vocab_size, self.vocab_size_after))
            check_texts(self.token_ids.tolist(), self.token_texts, tokenizer)
