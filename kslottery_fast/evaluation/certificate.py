"""What a certificate holds, on disk and in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from kslottery_fast.base.errors import InputError

from .intervals import Interval


@dataclass(frozen=True)
class CertificateLevel:
    """The certificate at one alpha. Shares are of all positions.

    ``tau``: threshold. ``certified``: share of positions whose half margin exceeds tau.
    ``certified_accuracy``: share that is certified and predicts the right token. ``certified_positions``:
    their number. The rest is None unless the transfer model was run: ``violations``, certified positions at
    which the transfer model predicts another token; ``violating_sentences``, sentences with at least one;
    ``violating_sentences_upper``, one-sided Clopper-Pearson upper bound on the share of such sentences, sound
    because sentences, unlike positions, are drawn independently. ``transferred``: rows of the transfer model that this
    level was checked against, where that is known.
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


@dataclass(frozen=True)
class Agreement:
    """How often the two models predict the same token, certified or not.

    ``positions``: share of agreeing positions with a bootstrap interval that resamples whole sentences
    (approximate). ``sentences``: share of sentences at all of whose positions the models agree, with a
    one-sided exact Clopper-Pearson lower bound (``high`` is 1): holds for any way in which positions of a
    sentence depend on each other. ``share``: share of a sentence's positions at which the models agree, averaged over
    sentences, with the lower bound of :func:`~kslottery_fast.evaluation.intervals.mean_lower_bound`; sound in the
    same way, and None in files of older versions.
    """

    positions: Interval
    sentences: Interval
    share: Interval | None = None


@dataclass(frozen=True)
class Certificate:
    """Certification over a grid of alphas, and its check where a transfer model was run.

    ``dimension``: d of the rows. ``positions``, ``sentences``: how many were looked at. ``accuracy``: share
    of positions that the embed-tuned model predicts right. ``confidence``: of each bound, taken alone.
    ``levels``: one for each alpha, in the order asked for. ``agreement``: None unless the transfer model was
    run.
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

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it: the fields under their names, plus ``checked`` and ``text``."""
        return {
            **asdict(self),
            "levels": [asdict(level) for level in self.levels],
            "checked": self.checked,
            "text": str(self),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Certificate:
        """The inverse of :meth:`to_dict`; missing, unknown or malformed fields are an InputError."""
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
            raise InputError(f"not a certificate: {error}") from None

    def __str__(self) -> str:
        """What the numbers say, and what they do not say, in plain words."""
        lines = [
            f"Certification over {self.positions} positions of {self.sentences} sentences, "
            f"d = {self.dimension}; the embed-tuned model predicts {self.accuracy:.1%} of them right.",
            "A position is certified at alpha when (p_A - p_B) / 2 > tau(alpha). This is the paper's "
            "criterion; it is not a proof that the transfer model predicts the same token.",
            *map(self._level_text, self.levels),
        ]
        if self.agreement is None:
            unknown = "Not checked: the transfer model was not run. Nothing is known of its predictions."
            return "\n".join([*lines, unknown])
        positions, sentences, share = self.agreement.positions, self.agreement.sentences, self.agreement.share
        guarantee = (
            [
                f"Guarantee: with probability {self.confidence:.0%} over the draw of the sentences, the transfer model "
                f"predicts the same token as the embed-tuned model at {share.low:.1%} or more of a sentence's "
                f"positions on average (measured: {share.value:.1%}). It needs sentences drawn independently of each "
                "other and of the choice of the rows, and nothing else."
            ]
            if share
            else []
        )
        return "\n".join(
            [
                *lines,
                f"Checked: the transfer model predicts the same token at {positions.value:.1%} of the "
                f"positions ({positions.low:.1%} to {positions.high:.1%}, bootstrap over sentences), and "
                f"at every position of {sentences.value:.1%} of the sentences (at least {sentences.low:.1%} "
                f"with {self.confidence:.0%} confidence, Clopper-Pearson).",
                *guarantee,
                "The bounds hold for sentences drawn like these, each bound taken alone; they say "
                "nothing about other languages, templates or domains, nor about a continuation "
                "once its text differs.",
            ]
        )

    def _level_text(self, level: CertificateLevel) -> str:
        text = (
            f"alpha {level.alpha:g} (tau {level.tau:.4f}): {level.certified:.1%} certified, "
            f"{level.certified_accuracy:.1%} certified and right"
        )
        if level.violations is None:
            return text + "."
        by = "" if level.transferred is None else f", by the transfer model of {level.transferred} rows"
        return (
            f"{text}; {level.violations} violations, in {level.violating_sentences} sentences{by} (at most "
            f"{level.violating_sentences_upper:.1%} of sentences with {self.confidence:.0%} "
            "confidence)."
        )
