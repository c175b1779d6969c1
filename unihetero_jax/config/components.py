"""The registries of components, and what the config sections of each sort have in common.

Built-in components are found by name in the registry's package; a user's own by the file that registers them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from unihetero_jax.config.constraints import Fraction, NonNegativeFloat, PositiveFloat, PositiveFraction
from unihetero_jax.config.registry import Registry
from unihetero_jax.errors import UsageError

TOWERS: Registry[Any] = Registry("tower", "unihetero_jax.towers", module="network", default="patch")
LOSSES: Registry[Any] = Registry("loss", "unihetero_jax.losses", module="loss")
EVALUATORS: Registry[Any] = Registry("evaluator", "unihetero_jax.evaluate", module="evaluator")
SOURCES: Registry[Any] = Registry("data source", "unihetero_jax.data.sources", module="source", default="shards")
IMPORTERS: Registry[Any] = Registry("importer", "unihetero_jax.data.importers", module="importer")
OPTIMIZERS: Registry[Any] = Registry("optimizer", "unihetero_jax.train.optimizers", module="optimizer")
ATTENTION: Registry[Any] = Registry("attention implementation", "unihetero_jax.model.attention", others=("auto",))
DECODER_FAMILIES: Registry[Any] = Registry("decoder family", "unihetero_jax.model.families")
# Published weights, of towers (by the tower's kind) and of heads.
TOWER_WEIGHTS: Registry[Any] = Registry("weights of a tower", "unihetero_jax.towers", module="weights")
HEAD_WEIGHTS: Registry[Any] = Registry("weights of a head", "unihetero_jax.model.head_weights")
# Networks that ``unihetero towers train`` stores.
TRAINED_NETWORKS: Registry[Any] = Registry("trained tower", "unihetero_jax.towers.common.trained")


@dataclass(frozen=True)
class Part:
    """FLOPs of one part of the model in a step's forward pass.

    Attributes:
      name: of the part.
      forward: FLOPs of the forward pass over the global batch.
      backward: FLOPs of the backward pass, as a multiple of ``forward``.
      again: forward passes that the backward pass repeats to save memory.
      dense: what the program computes for one FLOP that is counted: 2 for causal attention over full rows.
      kernel: whether a kernel does it, inside which the compiler counts nothing.
    """

    name: str
    forward: float
    backward: float
    again: float = 0.0
    dense: float = 1.0
    kernel: bool = False

    @property
    def model(self) -> float:
        """FLOPs that training needs."""
        return self.forward * (1 + self.backward)

    @property
    def executed(self) -> float:
        """FLOPs that the program does."""
        return self.forward * self.dense * (1 + self.backward + self.again)


@dataclass(frozen=True)
class TowerConfig(ABC):
    """What every tower has in common: pixels to features.

    Attributes:
      training: ``trained`` or ``frozen``; ``auto`` trains a ``patch`` tower and freezes the others.
      capacity: share of a batch's image places that the tower has a buffer for; with 1 only batches that need no image
        of it save anything.
      cached: features come with the batch, computed before (``unihetero towers features``); the tower itself is absent.
    """

    kind: ClassVar[str]
    # Whether ``training="auto"`` trains it.
    trained_by_default: ClassVar[bool] = False
    # Whether features may be computed before: not where that costs more than running the tower.
    cacheable: ClassVar[bool] = True
    # Whether it turns features or codes back into images, and is therefore needed where its features are cached.
    decodes: ClassVar[bool] = False
    # Whether its features are pixel latents, which a loss on latents may predict.
    gives_latents: ClassVar[bool] = False
    # model_type in the config.json of Hugging Face folders that TOWER_WEIGHTS reads for it.
    model_types: ClassVar[tuple[str, ...]] = ()
    # Whether TOWER_WEIGHTS reads a torch state dict for it.
    has_state_dict: ClassVar[bool] = False
    # FLOPs of a trained tower's backward pass, as a multiple of the forward pass.
    backward: ClassVar[float] = 2.0

    training: Literal["auto", "trained", "frozen"] = "auto"
    capacity: PositiveFraction = 1.0
    cached: bool = False

    @property
    def frozen(self) -> bool:
        """Whether training leaves the tower as it is."""
        return self.training == "frozen" or (self.training == "auto" and not self.trained_by_default)

    @abstractmethod
    def tokens(self, image_size: int, key: str) -> int:
        """Return the visual tokens per image.

        Args:
          image_size: pixels per side of the batch's images.
          key: where the section is, such as ``config.model.understanding_tower``.

        Raises:
          UsageError: the image size does not fit the tower.
        """

    @property
    @abstractmethod
    def features(self) -> int:
        """Width of a feature."""

    @abstractmethod
    def flops(self, image_size: int) -> float:
        """Return the FLOPs of the forward pass per image."""

    @property
    def stored_features(self) -> int:
        """Numbers per token that a batch brings where features are cached."""
        return self.features

    @property
    def stored_as_integers(self) -> bool:
        """Whether those are whole numbers, such as codes."""
        return False

    @property
    def codebook_size(self) -> int:
        """Entries of its codebook; 0 without one."""
        return 0

    def check(self, key: str) -> None:
        """Refuse cached features where there can be none."""
        if self.cached and not self.cacheable:
            raise UsageError(
                f"{key}.cached=True with kind={self.kind!r}: expected False; it costs less than reading its features"
            )
        if self.cached and self.training == "trained":
            raise UsageError(f"{key}.cached=True with training='trained': features computed before do not learn")


@dataclass(frozen=True)
class LossConfig:
    """What every loss has in common.

    Attributes:
      weight: factor on the loss; 0 leaves out the loss and its head.
    """

    kind: ClassVar[str]
    # What the loss's head can generate on a visual slot: one of config.model.generation, or nothing.
    generates: ClassVar[str] = ""

    weight: NonNegativeFloat = 1.0

    @property
    def reaches_decoder(self) -> bool:
        """Whether the decoder learns from the loss."""
        return True

    @property
    def teacher_decay(self) -> float | None:
        """Decay of the moving average of tower and adapter that gives the loss its targets; None without one."""
        return None

    @property
    def null_condition(self) -> bool:
        """Whether the head knows a null condition that generation can be guided away from."""
        return False

    def without_teacher(self) -> LossConfig:
        """Return the same loss with the model's own targets, for evaluations."""
        return self

    def check_with(self, config: Any, key: str) -> None:
        """Refuse values that contradict the rest of the config.

        Args:
          config: the whole config.
          key: where the section is.

        Raises:
          UsageError: naming the key and what would be right.
        """

    def work(self, config: Any, vocabulary: int, embeddings_trained: bool) -> list[Part]:
        """Count the FLOPs of the loss and its head over the global batch, for MFU.

        Args:
          config: the whole config.
          vocabulary: rows of the decoder's output table.
          embeddings_trained: whether the output table learns.
        """
        del config, vocabulary, embeddings_trained
        return []


@dataclass(frozen=True)
class EvaluatorConfig:
    """What the config sections of all evaluators have in common."""

    kind: ClassVar[str] = ""

    def check_files(self, key: str) -> None:
        """Refuse files that are missing or hold something else, before a training that ends with the evaluation.

        Args:
          key: of the section, for error messages.

        Raises:
          UsageError: naming the key and what was expected.
        """


@dataclass(frozen=True)
class TaskWeights:
    """Factors on the share of each task's samples; ``data.mode`` sets those of the excluded tasks to 0.

    Attributes:
      vqa: questions about images.
      caption: descriptions of images.
      generation: requests for images.
      text: text without images.
      interleaved: documents of texts and images.
    """

    vqa: NonNegativeFloat = 1.0
    caption: NonNegativeFloat = 1.0
    generation: NonNegativeFloat = 1.0
    text: NonNegativeFloat = 1.0
    interleaved: NonNegativeFloat = 1.0


@dataclass(frozen=True)
class SourceConfig:
    """One source of training records; what all kinds of sources have in common.

    Attributes:
      weight: relative share of the samples; 0: by size (``data.temperature``).
      epochs: factor on its size, where shares go by size: with 3, as if it had three times the records.
      reverse: the share of its captions that are reversed into requests for their images.
      fit: how an image becomes square: ``stretch`` changes its aspect, ``crop`` cuts out a square, at a random place in
        training, ``pad`` adds gray.
      crop_share: the side of a crop, as a share of the image's shorter side; 0.875 cuts 224 pixels out of 256.
      flip: mirror half of the images; not where they contain text, or texts mention left and right.
      task_weights: factors as ``data.task_weights``, for this source.
    """

    weight: NonNegativeFloat = 0.0
    epochs: PositiveFloat = 1.0
    reverse: Fraction = 0.0
    fit: Literal["stretch", "crop", "pad"] = "stretch"
    crop_share: PositiveFraction = 1.0
    flip: bool = False
    task_weights: TaskWeights = field(default_factory=TaskWeights)

    def check(self, key: str) -> None:
        """Refuse a share of a crop where nothing is cropped."""
        if self.crop_share < 1 and self.fit != "crop":
            raise UsageError(f"{key}.crop_share={self.crop_share} with fit={self.fit!r}: set fit='crop'")

    def imports(self) -> tuple[str, ...]:
        """Return the user's modules that the source is made by; they belong to the run, as ``config.imports`` do."""
        return ()

    def location(self) -> str:
        """Return where the records are, for messages."""
        return str(getattr(self, "kind", ""))
