"""Types of options that several packages share. Importing them imports nothing else."""

from typing import Literal, TypeAlias

Method: TypeAlias = Literal["auto", "exact", "asymp", "paper"]
"""How p-values come from counts, as :func:`kslottery_fast.ks.pvalues` explains."""

ResolvedMethod: TypeAlias = Literal["exact", "asymp", "paper"]
"""A method with "auto" resolved."""

Correction: TypeAlias = Literal["bonferroni", "bh"]
"""For many tests at once, as :func:`kslottery_fast.ks.adjust` explains."""

SelectedBy: TypeAlias = Literal["alpha", "top_k"]
"""What decided which rows are tickets."""

Selector: TypeAlias = Literal["ks", "l2", "gradient", "frequency", "contribution"]
"""What rows are ranked by, as :func:`kslottery_fast.tickets.select_rows` explains."""

TableName: TypeAlias = Literal["input", "output"]
"""One of the two tables of a model: the input embedding, or the weight of the output head."""

TicketTable: TypeAlias = Literal["input", "output", "shared"]
"""Which table tickets are of. "shared" is the one table of a tied model, where the output head was asked for."""

ComparedRows: TypeAlias = Literal["all", "shared"]
"""Which rows of two tables are compared. "all" refuses tables of different heights, "shared" takes what both have."""

OutputRole: TypeAlias = Literal["auto", "frozen", "tied", "own"]
"""What the output head does about attached rows, as :func:`kslottery_fast.attach_rows` explains."""

HeadRole: TypeAlias = Literal["frozen", "tied", "own"]
"""An OutputRole with "auto" resolved."""

SharedRole: TypeAlias = Literal["auto", "frozen", "tied"]
"""What the head of a tied model does where there are rows of the input table alone."""

BleuTokenizer: TypeAlias = Literal["13a", "intl", "char", "zh", "none", "flores101", "flores200"]
"""The tokenizers of sacrebleu that need no further package, and the two of spBLEU, which need a SentencePiece model."""
