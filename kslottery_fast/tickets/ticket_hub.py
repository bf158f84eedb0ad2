"""Tickets on the Hugging Face Hub. ``Tickets.load`` takes the id of the repository."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, cast

from kslottery_fast.base.arguments import check_path, check_tokenizer
from kslottery_fast.base.files import write_text
from kslottery_fast.base.hub import TICKETS_FILE, check_repository, front_matter, push_folder, table_cell
from kslottery_fast.base.tokenizer import Tokenizer

from .ticket_file import TicketFiles

if TYPE_CHECKING:
    from .tickets import Tickets

_SHOWN = 40  # tickets in the table of the page


class TicketHub(TicketFiles):
    """Tickets as a repository on the Hub."""

    def push_to_hub(
        self,
        repo_id: str,
        *,
        tokenizer: Tokenizer | None = None,
        revision: str | None = None,
        private: bool | None = None,
        commit_message: str | None = None,
        base_model_name_or_path: str | os.PathLike[str] | None = None,
    ) -> str:
        """Save the tickets in a repository on the Hugging Face Hub, which is made if it is missing.

        The repository gets ``tickets.json`` and a page that shows them. ``Tickets.load(repo_id)`` reads it. Endpoint,
        login and offline mode are those of huggingface_hub.

        Parameters
        ----------
        repo_id : str
            "org/name", or "name" for a repository of your own.
        tokenizer : transformers tokenizer, optional
            Writes the text of each token too, as :meth:`with_texts` does.
        revision : str, optional
            A branch, which is made if it is missing. By default it is the main one.
        private : bool, optional
            Whether a new repository is private. By default the Hub decides.
        commit_message : str, optional
            The message of the commit.
        base_model_name_or_path : str or path, optional
            The model that the tickets are of, for the page.

        Returns
        -------
        str
            The address of the commit.

        Raises
        ------
        InputError
            The tokenizer belongs to another model. The Hub refuses, or cannot be reached.
        TypeError
            An argument has the wrong type.

        Examples
        --------
        >>> from kslottery_fast import Tickets
        >>> settings = {"vocab_size": 10, "dimension": 4, "threshold_count": 4, "alpha": 0.05}
        >>> Tickets.from_counts([3], [4], **settings).push_to_hub("a/b/c")
        Traceback (most recent call last):
        kslottery_fast.base.errors.InputError: repo_id is 'a/b/c': expected the id of a repository, 'name' or 'org/name'
        """
        check_repository(repo_id, revision, private, commit_message)
        if tokenizer is not None:
            check_tokenizer(tokenizer)
        if base_model_name_or_path is not None:
            check_path(base_model_name_or_path, "base_model_name_or_path")
        tickets = cast("Tickets", self if tokenizer is None else self.with_texts(tokenizer))
        base = None if base_model_name_or_path is None else os.fspath(base_model_name_or_path)
        with tempfile.TemporaryDirectory() as temporary:
            tickets.save(Path(temporary, TICKETS_FILE))
            write_text(Path(temporary, "README.md"), _page(tickets, repo_id, base))
            message = commit_message or "Upload the tickets"
            return push_folder(Path(temporary), repo_id, revision=revision, private=private, commit_message=message)


def _page(tickets: Tickets, repo_id: str, base: str | None) -> str:
    texts = tickets.token_texts or [""] * len(tickets)
    shown = list(zip(tickets.token_ids.tolist(), texts, tickets.statistic.tolist(), strict=True))[:_SHOWN]
    rows = [f"| {token} | `{table_cell(text)}` | {d:.4f} |" for token, text, d in shown]
    of = f" of {base}" if base else ""
    rest = [f"\n{len(tickets) - len(rows)} more are in {TICKETS_FILE}."] if len(tickets) > len(rows) else []
    lines = [
        front_matter(base, "kslottery-fast", ["kslottery-fast", "token-embeddings"]),
        f"# {len(tickets)} tickets\n",
        f"These are rows of a token table{of} that fine-tuning moved, by a two-sample KS test of each row.\n",
        f"{tickets.summary()}\n",
        "```python\nfrom kslottery_fast import Tickets, attach_rows\n",
        f"tickets = Tickets.load({repo_id!r})",
        "model = attach_rows(model, tickets)  # trains these rows alone\n```\n",
        "| id | token | D |\n| --- | --- | --- |",
        *rows,
        *rest,
    ]
    return "\n".join(lines) + "\n"
