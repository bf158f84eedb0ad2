"""The terms that reports and documents use, and links from a page to them.

``python -m kslottery_fast.lab.report.glossary`` prints the text of ``docs/glossary.md``.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass


@dataclass(frozen=True)
class Term:
    """One entry of the glossary.

    Attributes
    ----------
    name : str
        As the entry is headed.
    meaning : str
        Two sentences.
    pattern : str
        A regular expression for the uses of the term in a text, if the name alone does not find them.
    """

    name: str
    meaning: str
    pattern: str = ""

    @property
    def anchor(self) -> str:
        """The id of the entry, the same in a report and on GitHub."""
        return self.name.lower().replace(" ", "-")

    @property
    def uses(self) -> re.Pattern[str]:
        return re.compile(rf"(?<![\w-])(?:{self.pattern or re.escape(self.name)})(?![\w-])")


TERMS = (
    Term(
        "Active vocabulary",
        "The tokens that occur in the training examples and whose rows can receive a gradient. Embed Tuning trains the "
        "rows of these tokens (the active rows) and cannot move any other row.",
        "active vocabulary|active rows?",
    ),
    Term(
        "Alpha",
        "The significance level of the KS test: a row is selected if its p-value is below alpha. A larger alpha "
        "selects more rows.",
        "alpha",
    ),
    Term(
        "Arm",
        "One way to make a model in an experiment, such as Embed Tuning or LoRA with a given number of parameters. All "
        "arms start from the same model and are scored on the same held-out pairs.",
        "arms?",
    ),
    Term(
        "Certified by reading",
        "A position in a text at which no token up to there has a row that differs between the embed-tuned model and "
        "the model with the selected rows. Both compute the same function of the same rows, so they predict the same "
        "token for any selected rows, if the output head is the same.",
        "certified by reading",
    ),
    Term(
        "Certified position",
        "A position in a text at which half the margin between the two largest next-token probabilities of the "
        "embed-tuned model exceeds tau(alpha). This is the paper's criterion as this package reads it, and it is not a "
        "proof that a model with only the selected rows predicts the same token.",
        "certified positions?|certified(?! by reading)",
    ),
    Term(
        "Contribution",
        "The part of the loss's fall from the original to the tuned table that one row accounts for, in nats per "
        "target token, computed by integrated gradients along the straight path between the two tables. The "
        "contributions of all rows sum to the whole fall, and a negative one means that the change of the row raises "
        "the loss.",
        "[Cc]ontributions?",
    ),
    Term(
        "Control",
        "An arm that trains as many rows as there are tickets but chooses them in another way, for example by "
        "frequency or at random. If a control does as well as the tickets, selection by the KS test is not what makes "
        "the rows useful.",
        "controls?",
    ),
    Term(
        "Coverage",
        "The share of the tokens of the training examples, prompts included, whose rows an arm changes. A few rows can "
        "cover much of a text because some tokens are very frequent.",
        "[Cc]overage|covers?|[Cc]overs",
    ),
    Term(
        "D",
        "The two-sample Kolmogorov-Smirnov statistic of a row: the largest gap between the empirical distribution "
        "functions of its coordinates before and after fine-tuning. It lies between 0 (the same values) and 1 (no "
        "overlap).",
    ),
    Term(
        "Embed Tuning",
        "Fine-tuning that trains only rows of the token-embedding table, those of the active vocabulary. All other "
        "parameters stay frozen.",
    ),
    Term(
        "First line",
        "The text of an output up to its first line break. Scores on the first line do not penalize a model for text "
        "that follows the answer.",
        "[Ff]irst lines?",
    ),
    Term(
        "Frozen head",
        "An output head that keeps its original weights while rows of the input embedding change. In a model that "
        "shares one table between input and output, the changed rows then act on the input only.",
        "frozen heads?",
    ),
    Term(
        "Held-out",
        "Not used for training. The test pairs, on which the scores of a report are computed, were not used for any "
        "choice either.",
        "[Hh]eld-out",
    ),
    Term(
        "Jaccard overlap",
        "The number of rows that two sets share, divided by the number of rows in at least one of them. It is 1 for "
        "equal sets and 0 for sets without a common row.",
    ),
    Term(
        "Memory floor",
        "The time that a plain read of both embedding tables takes on the same machine. No test that looks at every "
        "number can be faster, so the documents give times as multiples of it.",
        "memory floor",
    ),
    Term(
        "NLL",
        "Negative log-likelihood: the mean of -ln p over the target tokens, in nats, where p is the probability that "
        "the model gives to the right token. Lower is better.",
    ),
    Term(
        "Partial Transfer",
        "The rows of the tickets are copied from the embed-tuned model into the original model. Nothing else changes, "
        "and nothing is trained.",
    ),
    Term(
        "Partial Tuning",
        "The rows of the tickets are trained, starting from the original model. All other parameters stay frozen.",
    ),
    Term(
        "Tau",
        "The threshold of the certification criterion: the asymptotic critical value of D at a given alpha. It depends "
        "on alpha and on the length of the rows only.",
        "tau",
    ),
    Term(
        "Ticket",
        "A row of the embedding table, and its token, that the KS test finds significantly shifted by fine-tuning. "
        "KS-Lottery trains or copies only these rows.",
        "[Tt]ickets?",
    ),
    Term(
        "Violation",
        "A certified position at which the certificate was wrong: the model with only the selected rows was run there "
        "and predicted another token than the embed-tuned model. A proof would exclude violations.",
        "[Vv]iolations?",
    ),
)
"""All terms, in the order of the alphabet."""

_LINKED = re.compile(r"<(p|li|figcaption)\b[^>]*>.*?</\1>", re.DOTALL)
_TAG = re.compile(r"(<(?:code|a|b)\b.*?</(?:code|a|b)>|<[^>]*>)", re.DOTALL)


def link_first_uses(body: str) -> str:
    """Link the first use of every term to its entry in the glossary of the page.

    Parameters
    ----------
    body : str
        HTML in which all data are escaped. Only text in paragraphs, list items and figure captions is linked; text in
        code, in bold and in other links is not.

    Returns
    -------
    str
        The same HTML with links.

    Examples
    --------
    >>> link_first_uses("<p>Two tickets. A ticket.</p>")
    '<p>Two <a class="term" href="#ticket">tickets</a>. A ticket.</p>'
    """
    left = list(TERMS)

    def link(match: re.Match[str]) -> str:
        parts = _TAG.split(match[0])
        for place in range(0, len(parts), 2):  # the texts between tags
            parts[place] = _linked(parts[place], left)
        return "".join(parts)

    return _LINKED.sub(link, body)


def _linked(text: str, left: list[Term]) -> str:
    """Link the first use of every term in ``left``, and remove those found from it."""
    found: list[tuple[int, int, Term]] = []
    for term in left:
        match = term.uses.search(text)
        if match and not any(match.start() < end and start < match.end() for start, end, _ in found):
            found.append((match.start(), match.end(), term))
    for start, end, term in sorted(found, key=lambda one: one[0], reverse=True):
        left.remove(term)
        text = f'{text[:start]}<a class="term" href="#{term.anchor}">{text[start:end]}</a>{text[end:]}'
    return text


def markdown() -> str:
    """Return the glossary as ``docs/glossary.md`` holds it.

    Returns
    -------
    str
        Markdown.

    Examples
    --------
    >>> print(markdown()[:10])
    # Glossary
    """
    lines = ["# Glossary", "", "These are the terms of the reports and of the documents.", ""]
    for term in TERMS:
        lines += [f"## {term.name}", "", *textwrap.wrap(term.meaning, 120, break_on_hyphens=False), ""]
    return "\n".join(lines[:-1]) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
