"""The type of tokenizers, with the methods that the package needs."""

from typing import Any, Protocol


class Tokenizer(Protocol):
    """A transformers tokenizer, or anything with the same methods."""

    def __len__(self) -> int:
        """The number of tokens, added ones included."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Encode text. ``["input_ids"]`` of the result are the token ids."""

    def convert_ids_to_tokens(self, ids: Any, /) -> Any:
        """The tokenizer's own spelling of a token id, or of several."""

    def convert_tokens_to_ids(self, tokens: Any, /) -> Any:
        """The token id of a piece in the tokenizer's own spelling, or of several."""

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """The text of token ids."""
