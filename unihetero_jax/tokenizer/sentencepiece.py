"""Tokenizer: a SentencePiece model with the markers of a multimodal sequence.

In models trained here, the markers are SentencePiece *control* symbols; a published model, which has none of them, is
used as it is, and they get ids after its vocabulary. Encoding a text never produces a marker, so a caption with the
characters ``<image_start>`` stays ordinary text: only code that uses ``image_start_id`` can place one.
"""

from __future__ import annotations

import functools
import importlib
import io
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import sentencepiece

from unihetero_jax.errors import UsageError
from unihetero_jax.files import write_atomic

IMAGE_START = "<image_start>"
IMAGE_END = "<image_end>"
IMAGE_PAD = "<image_pad>"
USER = "<user>"
ASSISTANT = "<assistant>"
MARKERS = (IMAGE_START, IMAGE_END, IMAGE_PAD, USER, ASSISTANT)

_PAD_ID, _UNKNOWN_ID, _BEGIN_ID, _END_ID = range(4)
_BYTE_PIECES = 256
# Questions and phrases recur: the ids of so many texts with at most so many characters are cached.
_CACHED_TEXTS, _SHORT = 8192, 80
# So do words: the ids of so many are cached, where a text may be encoded word by word.
_CACHED_WORDS = 32768
_WORD = re.compile(" *[^ ]+")
_LONG_WORD = 64
_SPACE_SIGN = "\u2581"
_WORD_LENGTH, _PHRASE_LENGTH = 16, 48
_TRAINING: dict[str, Any] = {
    # Unigram's seed pieces run out on a small corpus, and it then spells whole words; BPE's merges do not.
    "model_type": "bpe",
    # A small corpus may not contain as many pieces as were asked for, which is no error.
    "hard_vocab_limit": False,
    "pad_id": _PAD_ID,
    "unk_id": _UNKNOWN_ID,
    "bos_id": _BEGIN_ID,
    "eos_id": _END_ID,
    "pad_piece": "<pad>",
    "control_symbols": list(MARKERS),
    "split_digits": True,
    "split_by_unicode_script": False,
    "byte_fallback": True,
    "character_coverage": 1.0,
    # The three together make encoding lossless, leading and double spaces included.
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "add_dummy_prefix": False,
    # More threads would add the same counts in another order.
    "num_threads": 1,
    "max_sentence_length": 1 << 20,
    # Log levels: 0 information, 1 warning, 2 error. Errors also arrive as exceptions.
    "minloglevel": 3,
}


class Tokenizer:
    """A SentencePiece model that knows the project's markers.

    With a model that `Tokenizer.train` made, any Unicode text survives ``decode(encode(text))`` unchanged: what the
    vocabulary lacks is spelled in UTF-8 bytes. The one exception is U+2581 (``▁``), SentencePiece's own sign for a
    space, which comes back as a space. A published model normalizes as its authors chose.

    Attributes:
        FILE: Usual name of the file.
    """

    FILE: ClassVar[str] = "tokenizer.model"
    _WHAT: ClassVar[str] = "tokenizer"

    def __init__(self, model: bytes):
        """Wrap a serialized SentencePiece model.

        Its pieces keep their ids. Markers, and the begin and end of a text, that are not among its control symbols are
        numbered from the end of its vocabulary, in this order.

        Args:
            model: The bytes of a ``tokenizer.model``, from `Tokenizer.train` or published.

        Raises:
            ValueError: The bytes are not a SentencePiece model.
        """
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except RuntimeError as error:
            raise ValueError("not a SentencePiece model") from error
        self._pieces = self._size = self._processor.GetPieceSize()
        if not self._pieces:
            raise ValueError("a SentencePiece model without pieces")
        self._words_alone, self._prefixed = _words_alone(model)
        self._remember()
        self._marker_ids = {name: self._control_id(name) for name in MARKERS}
        begin, end, pad = self._processor.bos_id(), self._processor.eos_id(), self._processor.pad_id()
        self._begin_id = self._new_id() if begin < 0 else begin
        self._end_id = self._new_id() if end < 0 else end
        # Nothing is read on padding, so any id that no text needs will do.
        self._pad_id = self._processor.unk_id() if pad < 0 else pad

    def _remember(self) -> None:
        self._encode_short = functools.lru_cache(_CACHED_TEXTS)(self._processor.EncodeAsIds)
        self._encode_word = functools.lru_cache(_CACHED_WORDS)(self._processor.EncodeAsIds)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_encode_short", "_encode_word")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if "_processor" in state:
            self._remember()

    def _control_id(self, name: str) -> int:
        known = self._processor.PieceToId(name)
        # A piece that is not a control symbol may occur in texts.
        return known if self._processor.IsControl(known) else self._new_id()

    def _new_id(self) -> int:
        self._size += 1
        return self._size - 1

    @classmethod
    def train(
        cls, texts: Iterable[str], path: str | os.PathLike[str], vocabulary_size: int, phrases: bool = False
    ) -> Tokenizer:
        """Train a byte-pair model and write it to ``path`` atomically.

        The same texts in the same order give the same bytes. Digits are single pieces, so that a number is read digit
        by digit; nothing is normalized.

        Args:
            texts: Training texts; newlines separate sentences.
            path: File to write; an existing one is replaced.
            vocabulary_size: Most pieces, markers and the 256 byte pieces included. The model has fewer when the texts
                do not contain that many.
            phrases: Whether a piece may span words. For texts made from templates: a recurring phrase becomes one
                piece, and rows get much shorter; other texts are spelled in smaller pieces.

        Returns:
            The trained tokenizer.

        Raises:
            UsageError: There is no text, or ``vocabulary_size`` does not hold the markers, the bytes and one piece for
                each character of the texts.
        """
        sentences = [line for text in texts for line in text.splitlines() if line]
        if not sentences:
            raise UsageError("cannot train a tokenizer: the texts are empty")
        characters = set().union(*map(set, sentences))
        needed = 4 + len(MARKERS) + _BYTE_PIECES + len(characters)
        if vocabulary_size < needed:
            raise UsageError(
                f"vocabulary_size={vocabulary_size} is too small: 256 bytes, {4 + len(MARKERS)} markers and "
                f"{len(characters)} characters need at least {needed}"
            )
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.Train(
                sentence_iterator=iter(sentences),
                model_writer=model,
                vocab_size=vocabulary_size,
                split_by_whitespace=not phrases,
                max_sentencepiece_length=_PHRASE_LENGTH if phrases else _WORD_LENGTH,
                **_TRAINING,
            )
        except RuntimeError as error:
            raise UsageError(f"cannot train a tokenizer with vocabulary_size={vocabulary_size}: {error}") from error
        write_atomic(Path(path), model.getvalue())
        return cls(model.getvalue())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read the tokenizer's file.

        Raises:
            UsageError: The file is missing, cannot be read, or is not a tokenizer of this kind.
        """
        try:
            return cls(Path(path).read_bytes())
        except OSError as error:
            raise UsageError(f"cannot read the tokenizer {os.fspath(path)}: {error.strerror}") from error
        except ValueError as error:
            raise UsageError(f"{os.fspath(path)} is no {cls._WHAT}: {error}") from error

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text``, without begin and end, and never a marker, whatever the text contains."""
        if len(text) <= _SHORT:
            return list(self._encode_short(text))
        # A space at the end would be a word of spaces only, which the model's own prefix cannot represent.
        if not self._words_alone or text[-1] == " " or _SPACE_SIGN in text:
            return self._processor.EncodeAsIds(text)
        # The model adds a space before the first word; that of each later word is removed, as the model adds it again.
        words = [word[1:] for word in _WORD.findall(" " + text)] if self._prefixed else _WORD.findall(text)
        if max(map(len, words)) > _LONG_WORD:
            return self._processor.EncodeAsIds(text)
        return [i for word in words for i in self._encode_word(word)]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids``; padding, begin, end and the markers have none.

        An id beyond the vocabulary (which a model may round up to a convenient multiple) becomes the unknown piece
        rather than stopping an evaluation.
        """
        spoken = [int(i) for i in ids if not self._pieces <= i < self._size]
        return self._processor.DecodeIds([i if 0 <= i < self._pieces else self._processor.unk_id() for i in spoken])

    @property
    def vocabulary_size(self) -> int:
        """Number of ids, those of markers and bytes included."""
        return self._size

    @property
    def pad_id(self) -> int:
        """Id of padding: 0 in models trained here; of a published one, its own or that of the unknown piece."""
        return self._pad_id

    @property
    def unknown_id(self) -> int:
        """Id of characters that the vocabulary lacks; unused where these are spelled in bytes."""
        return self._processor.unk_id()

    @property
    def begin_id(self) -> int:
        """Id that begins a sequence."""
        return self._begin_id

    @property
    def end_id(self) -> int:
        """Id that ends an answer."""
        return self._end_id

    @property
    def image_start_id(self) -> int:
        """Id of the slot before the first visual slot of an image."""
        return self._marker_ids[IMAGE_START]

    @property
    def image_end_id(self) -> int:
        """Id of the slot after the last visual slot of an image."""
        return self._marker_ids[IMAGE_END]

    @property
    def image_pad_id(self) -> int:
        """Id on the visual slots, whose embeddings are replaced by those of the image."""
        return self._marker_ids[IMAGE_PAD]

    @property
    def user_id(self) -> int:
        """Id that begins a user's turn."""
        return self._marker_ids[USER]

    @property
    def assistant_id(self) -> int:
        """Id that begins the model's turn."""
        return self._marker_ids[ASSISTANT]


def _words_alone(model: bytes) -> tuple[bool, bool]:
    """Return whether the words of a text may be encoded one by one, and whether the model adds a space before a text.

    They may where no piece extends beyond a word, no merge depends on the rest of the text (byte-pair models; the sums
    of Unigram round), and nothing is normalized except the space before the text.
    """
    # It refuses a protobuf older than its own with an error of its own.
    try:
        model_proto: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    except Exception:
        return False, False
    proto = model_proto.ModelProto.FromString(model)
    spec, trainer = proto.normalizer_spec, proto.trainer_spec
    inside = re.compile(f"[^{_SPACE_SIGN}]{_SPACE_SIGN}")
    alone = (
        trainer.model_type == model_proto.TrainerSpec.BPE
        and not (trainer.treat_whitespace_as_suffix or spec.precompiled_charsmap or spec.remove_extra_whitespaces)
        and spec.escape_whitespaces
        and any(piece.piece == _SPACE_SIGN for piece in proto.pieces)
        and not any(inside.search(piece.piece) for piece in proto.pieces)
    )
    return alone, spec.add_dummy_prefix
