"""Instruction templates, which make prompts of translation pairs."""

import string
from collections.abc import Iterable
from typing import TYPE_CHECKING

from kslottery_fast.base.errors import InputError
from kslottery_fast.evaluation.pairs import Pair

if TYPE_CHECKING:
    from kslottery_fast.evaluation.encoding import Example

DEFAULT_TEMPLATE = (
    "Translate this from {source_language} to {target_language}.\n{source_language}: {source}\n{target_language}:"
)
"""The instruction with which models are trained and evaluated."""

PARAPHRASED_TEMPLATE = (
    "How would one say the following {source_language} text in {target_language}?\n"
    "Text in {source_language}: {source}\nText in {target_language}:"
)
"""The same request in other words. A gain that disappears with it depends on the words of the template."""

_FIELDS = ("source_language", "target_language", "source")


def to_examples(
    pairs: Iterable[Pair], source_language: str, target_language: str, template: str = DEFAULT_TEMPLATE
) -> "list[Example]":
    """Make the prompt and the target of every pair.

    A target begins with the space that separates it from the prompt.

    Parameters
    ----------
    pairs : iterable of Pair
        The pairs.
    source_language, target_language : str
        The names of the languages in the prompt.
    template : str
        The prompt, see :func:`check_template`.

    Raises
    ------
    InputError
        A template that cannot be used.

    Examples
    --------
    >>> example = to_examples([Pair("Save", "Guardar")], "English", "Spanish")[0]
    >>> print(example.prompt + example.target)
    Translate this from English to Spanish.
    English: Save
    Spanish: Guardar
    """
    from kslottery_fast.evaluation.encoding import Example  # imports torch, which settings do not need

    check_template(template)
    pairs = list(pairs) if isinstance(pairs, Iterable) else [pairs]
    for pair in pairs:
        if not isinstance(pair, Pair):
            raise TypeError(f"pairs holds {pair!r}; expected Pair(source, target)")
    languages = {"source_language": source_language, "target_language": target_language}
    return [Example(template.format(source=pair.source, **languages), " " + pair.target) for pair in pairs]


def check_template(template: str) -> None:
    """Refuse a template without ``{source}``, or with fields other than the two language names.

    Raises
    ------
    InputError
        The message says which fields are allowed.
    TypeError
        Not a string.

    Examples
    --------
    >>> check_template("Translate: {text}")
    Traceback (most recent call last):
    kslottery_fast.base.errors.InputError: template 'Translate: {text}' must contain {source}, and may contain ...
    """
    if not isinstance(template, str):
        raise TypeError(f"template is {template!r}; expected a string with {{source}}")
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise InputError(f"template {template!r}: {error}; write a literal brace twice") from error
    # A conversion or a format spec would change the text, and an attribute would reach into Python.
    plain = all(
        name is None or (name in _FIELDS and not spec and not conversion) for _, name, spec, conversion in parts
    )
    if not plain or "source" not in [name for _, name, _, _ in parts]:
        raise InputError(
            f"template {template!r} must contain {{source}}, and may contain {{source_language}} and "
            "{target_language}; no other field, conversion or format is allowed"
        )
