"""Tokenizer of a published ``tokenizer.json``, through the ``tokenizers`` library, with our markers.

The markers are appended to its vocabulary as special tokens. Encoding a text never produces a special token, so a
caption with the characters ``<image_start>`` (or ``<|im_end|>``) stays ordinary text.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence

import tokenizers

from unihetero_jax.tokenizer.sentencepiece import MARKERS, Tokenizer

PAD, BEGIN, END = "<pad>", "<begin>", "<end>"
UNKNOWN = "<unk>"
# Ids per token and beside: published tokenizers leave out few.
_MOST_SPARSE, _MOST_UNUSED = 2, 10_000
# A regular expression that takes exponentially long does so on a run that almost matches.
_PROBES = tuple(run * 64 + end for run in ("a", "A", "0", " ", "\n", "aA", "a ", ".") for end in ("!", "\0"))
# Names in published families of the begin and end of a text and of padding; the first that exists is used.
_BEGINS = ("<|begin_of_text|>", "<s>", "<bos>")
_ENDS = ("<|im_end|>", "<|eot_id|>", "</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>")
_PADS = ("<|endoftext|>", "<|finetune_right_pad_id|>", "<unk>", "<|end_of_text|>")


class _EncodingError(ValueError):
    """A text has no encoding."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what Rust prints to standard error before its panic becomes an exception."""
    stored = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stored, 2)
        os.close(stored)


class JsonTokenizer(Tokenizer):
    """A ``tokenizer.json`` with the interface of ``Tokenizer``.

    Args:
        model: Content of the file.

    Raises:
        ValueError: It is not a tokenizer.
    """

    FILE = "tokenizer.json"
    _WHAT = "tokenizer.json"

    def __init__(self, model: bytes | str):
        text = model.decode() if isinstance(model, bytes) else model
        try:
            self._tokens = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises nothing more precise
            raise ValueError(" ".join(str(error).split())) from error
        self._tokens.no_padding()
        self._tokens.no_truncation()
        pad, begin, end = (
            next((name for name in names if self._tokens.token_to_id(name) is not None), ours)
            for names, ours in ((_PADS, PAD), (_BEGINS, BEGIN), (_ENDS, END))
        )
        # Existing tokens keep their ids; the others are appended to the vocabulary.
        names = [*MARKERS, pad, begin, end]
        self._tokens.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False) for name in names])
        self._tokens.encode_special_tokens = True
        self._marker_ids = {name: self._id(name) for name in MARKERS}
        self._pad_id, self._begin_id, self._end_id = map(self._id, (pad, begin, end))
        self._silent = {self._id(name) for name in names}
        special = {i: token.content for i, token in self._tokens.get_added_tokens_decoder().items() if token.special}
        self._special = special.keys() - {self._tokens.token_to_id(UNKNOWN)}
        self._spelled = re.compile("|".join(sorted(map(re.escape, special.values()), key=len, reverse=True)))
        vocabulary = self._tokens.get_vocab(with_added_tokens=True)
        self._size = max(vocabulary.values()) + 1
        # A model has a row of weights for every id.
        if self._size > _MOST_SPARSE * len(vocabulary) + _MOST_UNUSED:
            raise ValueError(f"ids up to {self._size - 1:,} for {len(vocabulary):,} tokens")
        with _quiet():
            for text in _PROBES:
                # Some vocabularies have no token for an unknown word, and raise.
                with contextlib.suppress(_EncodingError):
                    self._ids(text)

    def _ids(self, text: str) -> list[int]:
        try:
            ids: list[int] = self._tokens.encode(text, add_special_tokens=False).ids
        except Exception as error:  # the library raises nothing more precise
            raise _EncodingError(" ".join(str(error).split())) from error
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # of Rust
                raise
            raise ValueError(f"its regular expression takes too long on texts such as {text[:12]!r}…") from error
        return ids

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text``, without begin and end, and never a marker, whatever the text contains.

        Raises:
            ValueError: The text has no encoding, or the tokenizer's own regular expression takes too long on it.
        """
        ids = self._ids(text)
        if self._special.isdisjoint(ids):
            return ids
        # The vocabulary contains the special token as a word (Unigram, WordLevel, BPE that ignores its merges).
        broken = self._spelled.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)
        return [i for i in self._ids(broken) if i not in self._special]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids``; special tokens and ids beyond the vocabulary have none."""
        kept = [int(i) for i in ids if 0 <= i < self._size and int(i) not in self._silent]
        text: str = self._tokens.decode(kept, skip_special_tokens=True)
        return text

    def _id(self, name: str) -> int:
        number = self._tokens.token_to_id(name)
        assert number is not None
        return number

    @property
    def unknown_id(self) -> int:
        """Id of what cannot be spelled; byte-level vocabularies have none, and it is that of padding."""
        number = self._tokens.token_to_id(UNKNOWN)
        return self.pad_id if number is None else number
