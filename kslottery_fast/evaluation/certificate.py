"""What a certificate holds, on disk and in words."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from typing_extensions import Self

from kslottery_fast.base.errors import InputError

from .intervals import Interval
from .words import counted

SELDOM = 0.05
"""The share of violations up to which :class:`Certificate` calls the criterion seldom wrong."""


@dataclass(frozen=True, repr=False)
class CertificateLevel:
    """The certificate at one alpha.

    A violation is a certified position at which the transfer model predicts another token than the embed-tuned model.

    Attributes
    ----------
    alpha : float
        The significance level.
    tau : float
        The threshold of the half margin.
    certified_positions : int
        How many positions have a half margin above ``tau``.
    certified : float
        Their share of all positions.
    certified_accuracy : float
        Share of all positions that are certified and at which the embed-tuned model predicts the right token.
    violations : int or None
        Number of violations. This and the next two are None if the transfer model was not run.
    violating_sentences : int or None
        Number of sentences with at least one violation.
    violating_sentences_upper : float or None
        One-sided Clopper-Pearson upper bound on the share of such sentences. It is valid because sentences, unlike
        positions, are drawn independently.
    transferred : int or None
        Rows of the transfer model that this level was checked against, where that is known.
    read_positions : int or None
        Number of positions that are certified by reading: they read no row in which the two models differ, so both
        models must predict the same token. None if it is not known what the positions read.
    read_violations : int or None
        Number of these positions at which the predictions differ all the same. Only rounding can do that.
    """

    alpha: float
    tau: float
    certified_positions: int
    certified: float
    certified_accuracy: float
    violations: int | None
    violating_sentences: int | None
    violating_sentences_upper: float | None
    transferred: int | None = None
    read_positions: int | None = None
    read_violations: int | None = None

    @property
    def violation_rate(self) -> float | None:
        """The violations as a share of the certified positions. None if nothing is certified, or nothing was checked.

        >>> CertificateLevel(0.05, 0.08, 40, 0.8, 0.6, 10, 4, 0.6).violation_rate
        0.25
        """
        if self.violations is None or self.certified_positions == 0:
            return None
        return self.violations / self.certified_positions

    def __repr__(self) -> str:
        return f"CertificateLevel(alpha={self.alpha:g}, {self.certified:.1%} certified, {self._wrong()})"

    def summary(self) -> str:
        """Return one line: what is certified, and how often the transfer model contradicted it.

        >>> CertificateLevel(0.05, 0.08, 40, 0.8, 0.6, 10, 4, 0.6).summary()
        'alpha 0.05: 80.0% of the positions certified, wrong at 10 of 40 (25.0%)'
        """
        return f"alpha {self.alpha:g}: {self.certified:.1%} of the positions certified, {self._wrong()}"

    def _wrong(self) -> str:
        if self.violations is None:
            return "not checked"
        rate = "" if self.violation_rate is None else f" ({self.violation_rate:.1%})"
        return f"wrong at {self.violations:,} of {self.certified_positions:,}{rate}"


def reading_text(level: CertificateLevel, positions: int) -> str:
    """Say in a sentence how many positions are certified by reading. Empty if that is not known.

    >>> reading_text(CertificateLevel(0.05, 0.08, 40, 0.8, 0.6, 10, 4, 0.6, 18, 5, 0), 50)
    ' 5 positions (10.0%) read no row in which the models differ: there they must agree.'
    """
    if level.read_positions is None:
        return ""
    count, verb = level.read_positions, "reads" if level.read_positions == 1 else "read"
    text = f" {counted(count, 'position')} ({count / positions:.1%}) {verb} no row in which the models differ"
    if level.read_violations:
        return f"{text}. Rounding changed the prediction at {level.read_violations:,} of them."
    return f"{text}: there they must agree."


@dataclass(frozen=True, repr=False)
class Agreement:
    """How often the two models predict the same token, whether certified or not.

    Attributes
    ----------
    positions : Interval
        Share of positions at which they agree. The interval is an approximate bootstrap interval that resamples whole
        sentences.
    sentences : Interval
        Share of sentences in which they agree at every position, with a one-sided exact Clopper-Pearson lower bound;
        ``high`` is 1. The bound holds however the positions of a sentence depend on each other.
    share : Interval or None
        Share of a sentence's positions at which they agree, averaged over sentences, with the lower bound of
        :func:`~kslottery_fast.evaluation.intervals.mean_lower_bound`. That bound is valid under the same conditions.
        None in files of older versions.
    """

    positions: Interval
    sentences: Interval
    share: Interval | None = None

    def __repr__(self) -> str:
        share = "" if self.share is None else f", at least {self.share.low:.1%} of a sentence's positions on average"
        return f"Agreement(at {self.positions:.1%} of the positions{share})"


@dataclass(frozen=True, repr=False)
class Certificate:
    """Certification over a grid of alphas, and its check where a transfer model was run.

    Attributes
    ----------
    dimension : int
        d of the rows.
    positions, sentences : int
        How many were looked at.
    accuracy : float
        Share of positions that the embed-tuned model predicts correctly.
    confidence : float
        Confidence of each bound, taken alone.
    levels : tuple of CertificateLevel
        One for each alpha, in the order of the request.
    agreement : Agreement or None
        None if the transfer model was not run.

    Examples
    --------
    >>> import torch
    >>> from kslottery_fast.evaluation.certify import Predictions, certificate_from
    >>> sentence, target = torch.tensor([0, 0, 1, 1]), torch.tensor([5, 6, 7, 8])
    >>> margin = torch.tensor([0.9, 0.8, 0.7, 0.1], dtype=torch.float64)
    >>> tuned = Predictions(target, margin, target, sentence)
    >>> transfer = Predictions(torch.tensor([5, 6, 9, 8]), margin, target, sentence)
    >>> certificate = certificate_from(tuned, transfer, dimension=576, alphas=[0.05])
    >>> certificate
    Certificate(4 positions of 2 sentences; alpha 0.05: 75.0% of the positions certified, wrong at 1 of 3 (33.3%))
    >>> print(certificate.summary())
    4 positions of 2 sentences, d = 576. The embed-tuned model predicts 100.0% of them correctly.
    alpha 0.05: 75.0% of the positions certified, wrong at 1 of 3 (33.3%)
    The transfer model agrees at 75.0% (50.0% to 100.0%) of the positions. A certified position is wrong where it does
    not.
    Guarantee (95% confidence): agreement at ...% or more of a sentence's positions on average.
    >>> Certificate.from_dict(certificate.to_dict()) == certificate
    True
    """

    dimension: int
    positions: int
    sentences: int
    accuracy: float
    confidence: float
    levels: tuple[CertificateLevel, ...]
    agreement: Agreement | None

    @property
    def checked(self) -> bool:
        """Whether the transfer model was run."""
        return self.agreement is not None

    def __repr__(self) -> str:
        parts = [self._size()]
        parts += [level.summary() for level in self.levels[:1]]
        parts += [counted(len(self.levels) - 1, "more alpha")] if len(self.levels) > 1 else []
        return f"Certificate({'; '.join(parts)})"

    def summary(self) -> str:
        """Return a few lines: what is certified at each alpha, how often that was wrong, and what is guaranteed.

        ``str(certificate)`` says the same in full sentences, with the conditions of each bound.
        """
        lines = [
            f"{self._size()}, d = {self.dimension}. "
            f"The embed-tuned model predicts {self.accuracy:.1%} of them correctly.",
            *(level.summary() for level in self.levels),
        ]
        if self.agreement is None:
            return "\n".join([*lines, "Not checked: the transfer model was not run."])
        lines.append(
            f"The transfer model agrees at {self.agreement.positions:.1%} of the positions. A certified position is "
            "wrong where it does not."
        )
        if self.agreement.share:
            lines.append(
                f"Guarantee ({self.confidence:.0%} confidence): agreement at {self.agreement.share.low:.1%} or more of "
                "a sentence's positions on average."
            )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, for JSON, with ``checked`` and ``text`` added."""
        return {
            **asdict(self),
            "levels": [asdict(level) for level in self.levels],
            "checked": self.checked,
            "text": str(self),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the certificate that :meth:`to_dict` described.

        Raises
        ------
        InputError
            A field is missing, unknown or malformed.
        """
        try:
            values = {name: value for name, value in data.items() if name not in ("checked", "text")}
            agreement = values.pop("agreement")
            if agreement is not None:
                agreement = Agreement(
                    **{name: value and Interval.from_dict(value) for name, value in agreement.items()}
                )
            levels = tuple(CertificateLevel(**level) for level in values.pop("levels"))
            return cls(**values, levels=levels, agreement=agreement)
        except (AttributeError, KeyError, TypeError) as error:
            raise InputError(f"data is not a certificate: {error}") from None

    def __str__(self) -> str:
        """Say in plain words what the numbers mean, and what they do not mean."""
        lines = [
            f"Certification over {self._size()}, d = {self.dimension}. "
            f"The embed-tuned model predicts {self.accuracy:.1%} of them correctly.",
            "A position is certified at alpha when (p_A - p_B) / 2 > tau(alpha). This is the paper's criterion. It is "
            "not a proof that the transfer model predicts the same token.",
            *map(self._level_text, self.levels),
            *self._practice(),
        ]
        if self.agreement is None:
            unknown = "Not checked: the transfer model was not run. Nothing is known about its predictions."
            return "\n".join([*lines, unknown])
        return "\n".join([*lines, *self._agreement_text(self.agreement)])

    def _size(self) -> str:
        return f"{counted(self.positions, 'position')} of {counted(self.sentences, 'sentence')}"

    def _agreement_text(self, agreement: Agreement) -> list[str]:
        positions, sentences, share = agreement.positions, agreement.sentences, agreement.share
        lines = [
            f"Checked: the transfer model predicts the same token at {positions.value:.1%} of the positions "
            f"({positions.low:.1%} to {positions.high:.1%}, bootstrap over sentences). It does so at every position in "
            f"{sentences.value:.1%} of the sentences (at least {sentences.low:.1%} with {self.confidence:.0%} "
            "confidence, Clopper-Pearson)."
        ]
        if share:
            lines.append(
                f"Guarantee: with probability {self.confidence:.0%} over the draw of the sentences, the transfer model "
                f"predicts the same token as the embed-tuned model at {share.low:.1%} or more of a sentence's "
                f"positions on average (measured: {share.value:.1%}). The only condition is that the sentences were "
                "drawn independently of each other and of the choice of the rows."
            )
        return [
            *lines,
            "Each bound, taken alone, holds for sentences drawn like these. It says nothing about other languages, "
            "templates or domains, nor about a continuation whose text already differs.",
        ]

    def _level_text(self, level: CertificateLevel) -> str:
        text = (
            f"alpha {level.alpha:g} (tau {level.tau:.4f}): {level.certified:.1%} certified, "
            f"{level.certified_accuracy:.1%} certified and right"
        )
        if level.violations is None:
            return text + "."
        rows = "" if level.transferred is None else f" with {counted(level.transferred, 'row')}"
        sentences = counted(level.violating_sentences or 0, "sentence")
        text = (
            f"{text}. At {level.violations:,} of the {level.certified_positions:,} certified positions, in "
            f"{sentences}, the transfer model{rows} predicts another token (violations; at most "
            f"{level.violating_sentences_upper:.1%} of sentences have one, with {self.confidence:.0%} confidence)."
        )
        return text + reading_text(level, self.positions)

    def _practice(self) -> list[str]:
        """Where the criterion was wrong least and most often, and (of several levels) from where on seldom."""
        rated = sorted((level.alpha, rate) for level in self.levels if (rate := level.violation_rate) is not None)
        if not rated:
            return []
        best, worst = min(rated, key=lambda pair: (pair[1], pair[0])), max(rated, key=lambda pair: (pair[1], -pair[0]))
        text = f"In practice the criterion is wrong at {best[1]:.1%} of its positions at alpha {best[0]:g}"
        text += "." if best[1] == worst[1] else f" and at {worst[1]:.1%} at alpha {worst[0]:g}."
        if len(rated) == 1:
            return [text]
        often = max((alpha for alpha, rate in rated if rate > SELDOM), default=0.0)
        seldom = [alpha for alpha, _ in rated if alpha > often]
        if not seldom:
            return [f"{text} It is wrong at more than {SELDOM:.0%} of them at the largest alpha too."]
        return [f"{text} It is wrong at {SELDOM:.0%} of them or fewer from alpha {seldom[0]:g} on."]
