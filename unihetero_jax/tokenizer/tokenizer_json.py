"""Text ↔ ids with a published ``tokenizer.json``, through the ``tokenizers`` library, and the project's markers.

The markers are appended to its vocabulary as special tokens. Special tokens are never read out of a text here, so a
caption that contains the characters ``<image_start>`` (or ``<|im_end|>``) stays ordinary text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import tokenizers

from unihetero_jax.errors import UsageError
from unihetero_jax.tokenizer.sentencepiece import MARKERS, Tokenizer

FILE = "tokenizer.json"
PAD, BEGIN, END = "<pad>", "<begin>", "<end>"
UNKNOWN = "<unk>"
# What families call what begins and ends a text, the first that is there counts.
_BEGINS = ("<|begin_of_text|>", "<s>", "<bos>")
_ENDS = ("<|im_end|>", "<|eot_id|>", "</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>")
_PADS = ("<|endoftext|>", "<|finetune_right_pad_id|>", "<unk>", "<|end_of_text|>")


class JsonTokenizer(Tokenizer):
    """A ``tokenizer.json`` with the interface of ``Tokenizer``.

    Args:
      model: the file's content.

    Raises:
      ValueError: it is no tokenizer.
    """

    def __init__(self, model: str):
        try:
            self._tokens = tokenizers.Tokenizer.from_str(model)
        except Exception as error:  # the library raises nothing more precise
            raise ValueError(" ".join(str(error).split())) from error
        self._tokens.no_padding()
        self._tokens.no_truncation()
        self._pad, self._begin, self._end = (
            next((name for name in names if self._tokens.token_to_id(name) is not None), ours)
            for names, ours in ((_PADS, PAD), (_BEGINS, BEGIN), (_ENDS, END))
        )
        # What there is already keeps its id; the rest goes behind the vocabulary.
        names = [*MARKERS, self._pad, self._begin, self._end]
        self._tokens.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False) for name in names])
        self._tokens.encode_special_tokens = True
        self._marker_ids = {name: self._id(name) for name in MARKERS}
        self._silent = {self._id(name) for name in names}
        special = {i: token.content for i, token in self._tokens.get_added_tokens_decoder().items() if token.special}
        self._special = special.keys() - {self._tokens.token_to_id(UNKNOWN)}
        self._spelled = re.compile("|".join(sorted(map(re.escape, special.values()), key=len, reverse=True)))
        self._size = max(self._tokens.get_vocab(with_added_tokens=True).values()) + 1

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> JsonTokenizer:
        """Reads a ``tokenizer.json``.

        Raises:
          UsageError: the file is missing, unreadable, or no tokenizer.
        """
        try:
            return cls(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"cannot read the tokenizer {os.fspath(path)}: {error.strerror}") from error
        except ValueError as error:
            raise UsageError(f"{os.fspath(path)} is no tokenizer.json: {error}") from error

    def encode(self, text: str) -> list[int]:
        """The ids of ``text``: no begin or end id, and never a marker, whatever the text says."""
        ids: list[int] = self._tokens.encode(text, add_special_tokens=False).ids
        if self._special.isdisjoint(ids):
            return ids
        # The vocabulary itself has the special token as a word (Unigram, WordLevel, BPE that ignores its merges).
        broken = self._spelled.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)
        return [i for i in self._tokens.encode(broken, add_special_tokens=False).ids if i not in self._special]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``; special tokens are silent, and so is an id beyond the vocabulary."""
        kept = [int(i) for i in ids if 0 <= i < self._size and int(i) not in self._silent]
        text: str = self._tokens.decode(kept, skip_special_tokens=True)
        return text

    def _id(self, name: str) -> int:
        number = self._tokens.token_to_id(name)
        assert number is not None
        return number

    @property
    def vocabulary_size(self) -> int:
        """One more than the largest id, markers included."""
        return self._size

    @property
    def pad_id(self) -> int:
        """Id of padding."""
        return self._id(self._pad)

    @property
    def unknown_id(self) -> int:
        """Id that stands for what cannot be spelled; byte-level vocabularies have none, and it is padding's."""
        number = self._tokens.token_to_id(UNKNOWN)
        return self.pad_id if number is None else number

    @property
    def begin_id(self) -> int:
        """Id that begins a sequence."""
        return self._id(self._begin)

    @property
    def end_id(self) -> int:
        """Id that ends an answer."""
        return self._id(self._end)
