"""From translation pairs to prompts: the instruction templates."""

from __future__ import annotations

import string
from collections.abc import Iterable
from typing import TYPE_CHECKING

from kslottery_fast.base.errors import InputError

from .pairs import Pair

if TYPE_CHECKING:
    from kslottery_fast.evaluation.encoding import Example

DEFAULT_TEMPLATE = (
    "Translate this from {source_language} to {target_language}.\n{source_language}: {source}\n{target_language}:"
)
"""The instruction that the models are tuned and evaluated with."""

PARAPHRASED_TEMPLATE = (
    "How would one say the following {source_language} text in {target_language}?\n"
    "Text in {source_language}: {source}\nText in {target_language}:"
)
"""The same request in other words. A gain that goes away with it was learned by the words of the template."""

_FIELDS = ("source_language", "target_language", "source")


def to_examples(
    pairs: Iterable[Pair], source_language: str, target_language: str, template: str = DEFAULT_TEMPLATE
) -> list[Example]:
    """Prompt and target of every pair; the target begins with the blank that separates it from the prompt.

    >>> example = to_examples([Pair("Save", "Guardar")], "English", "Spanish")[0]
    >>> print(example.prompt + example.target)
    Translate this from English to Spanish.
    English: Save
    Spanish: Guardar
    """
    from kslottery_fast.evaluation.encoding import Example  # imports torch, which reading settings does not need

    check_template(template)
    languages = {"source_language": source_language, "target_language": target_language}
    return [Example(template.format(source=pair.source, **languages), " " + pair.target) for pair in pairs]


def check_template(template: str) -> None:
    """Raise InputError unless ``template`` has ``{source}``, once or more, and no field but those of `_FIELDS`."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise InputError(f"template {template!r}: {error}; a literal brace is written twice") from error
    # A conversion or a format spec would change the text, an attribute would reach into Python.
    plain = all(
        name is None or (name in _FIELDS and not spec and not conversion) for _, name, spec, conversion in parts
    )
    if not plain or "source" not in [name for _, name, _, _ in parts]:
        fields = ", ".join("{" + name + "}" for name in _FIELDS)
        raise InputError(
            f"template {template!r} needs {{source}} and may use {fields}, as they are, and no other field"
        )
