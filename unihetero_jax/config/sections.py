"""The sections of an experiment's config, as plain data."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from unihetero_jax.config.components import (
    ATTENTION,
    EVALUATORS,
    LOSSES,
    OPTIMIZERS,
    TOWERS,
    EvaluatorConfig,
    LossConfig,
    TowerConfig,
)
from unihetero_jax.config.constraints import (
    FREE_ON_RESUME,
    SHAPES_STEP,
    FilePath,
    FractionBelowOne,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from unihetero_jax.config.data import GENERATION, UNDERSTANDING, DataConfig
from unihetero_jax.config.optimizer import GROUPS, OptimizerConfig, ParameterGroupConfig
from unihetero_jax.config.training import CheckpointConfig, LoggingConfig, MeshConfig, TrainConfig
from unihetero_jax.config.tree import Table, to_values
from unihetero_jax.errors import UsageError


@dataclass(frozen=True)
class RopeScalingConfig:
    """How rotary positions are extended beyond the lengths of pretraining (formulas in ``model.decoder``).

    Attributes:
      kind: ``none``; ``linear`` divides every frequency by ``factor``; ``llama3`` (Llama 3.1) divides the low
        frequencies, leaves the high ones and blends in between.
      factor: divisor of the frequencies.
      low_frequency_factor: for ``llama3``: frequencies that make fewer turns than this within ``original_positions``
        are divided.
      high_frequency_factor: for ``llama3``: frequencies that make more turns than this within ``original_positions``
        are unchanged; above ``low_frequency_factor``.
      original_positions: for ``llama3``: sequence length of pretraining.
    """

    kind: Literal["none", "linear", "llama3"] = "none"
    factor: PositiveFloat = 8.0
    low_frequency_factor: PositiveFloat = 1.0
    high_frequency_factor: float = 4.0
    original_positions: PositiveInt = 8192

    def check(self, key: str) -> None:
        """Refuse a band of frequencies that is empty."""
        if self.high_frequency_factor <= self.low_frequency_factor:
            raise UsageError(
                f"{key}.high_frequency_factor={self.high_frequency_factor}: expected a value above "
                f"low_frequency_factor={self.low_frequency_factor}"
            )


@dataclass(frozen=True)
class DecoderConfig:
    """The language model: pre-norm transformer with RoPE, grouped-query attention and SwiGLU.

    Attributes:
      width: width of the hidden states.
      layers: transformer blocks.
      heads: query heads.
      kv_heads: key/value heads; divides ``heads``.
      head_width: width of one head, even; 0: ``width / heads``.
      mlp_width: hidden width of the MLPs.
      qkv_bias: biases on queries, keys and values (Qwen2).
      qk_norm: RMSNorm over the head width of queries and keys, before RoPE (Qwen3).
      rope_theta: base of the rotary frequencies.
      rope_scaling: extension of rotary positions.
      norm_epsilon: epsilon of the RMSNorms.
      tie_embeddings: use the token embeddings as the output head.
      embedding_scale: standard deviation of the token embeddings at initialization.
      logit_scale: factor on the logits; 1 is Llama's. Less keeps initial logits small where large embeddings are
        tied.
      dropout: dropout rate of attention's and the MLP's outputs.
      attention: implementation of attention; ``auto``: ``splash`` on TPU, ``cudnn`` on GPU, ``cpu`` on one CPU device,
        ``xla`` elsewhere and where those cannot serve a row.
      remat: what the backward pass recomputes: ``none`` stores every activation, ``dots`` stores the matrix products,
        ``full`` stores only each block's input.
      dtype: type of activations and matrix products; parameters, norms, softmax and losses are float32 either way.
    """

    width: PositiveInt = 192
    layers: PositiveInt = 4
    heads: PositiveInt = 6
    kv_heads: PositiveInt = 6
    head_width: NonNegativeInt = 0
    mlp_width: PositiveInt = 512
    qkv_bias: bool = False
    qk_norm: bool = False
    rope_theta: PositiveFloat = 10_000.0
    rope_scaling: RopeScalingConfig = field(default_factory=RopeScalingConfig)
    norm_epsilon: PositiveFloat = 1e-6
    tie_embeddings: bool = True
    embedding_scale: PositiveFloat = 0.5
    logit_scale: PositiveFloat = 0.15
    dropout: FractionBelowOne = 0.0
    attention: Annotated[str, ATTENTION] = "auto"
    remat: Literal["none", "dots", "full"] = "none"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.head_width or self.width // self.heads

    def check(self, key: str) -> None:
        """Refuse heads that do not fit the width, and key/value heads that do not divide them."""
        if not self.head_width and self.width % self.heads:
            raise UsageError(
                f"{key}.width={self.width} is not a multiple of {key}.heads={self.heads}; set {key}.head_width or "
                "change one of them"
            )
        if self.head_dim % 2:
            raise UsageError(f"{key}: a head is {self.head_dim} wide; rotary positions need an even width")
        if self.heads % self.kv_heads:
            raise UsageError(f"{key}.kv_heads={self.kv_heads} does not divide {key}.heads={self.heads}")


@dataclass(frozen=True)
class AdapterConfig:
    """A projection of tower features to the decoder's input embeddings.

    Attributes:
      kind: ``linear``, or ``mlp`` with one hidden layer.
      normalize: scale each embedding to root mean square ``decoder.embedding_scale``, so that generation feeds back a
        predicted direction alone.
      normalize_input: scale each feature to root mean square 1 first; for features that are predicted themselves.
    """

    kind: Literal["linear", "mlp"] = "mlp"
    normalize: bool = True
    normalize_input: bool = False


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank updates of frozen linear layers (LoRA, arXiv 2106.09685). Decoder, embeddings and towers are frozen; the
    factors, adapters and heads are trained.

    The defaults are those of arXiv 2505.23043, except for the rank, which is 128 there.

    Attributes:
      rank: rank of the updates; 0: no LoRA.
      alpha: the update is scaled by ``alpha / rank``.
      dropout: dropout rate of the factors' input.
      targets: the linear layers that get factors: patterns separated by commas, in which ``*`` matches dots too.
    """

    rank: NonNegativeInt = 0
    alpha: PositiveFloat = 256.0
    dropout: FractionBelowOne = 0.05
    targets: str = "decoder.layers.*"


@dataclass(frozen=True)
class DistortionConfig:
    """A fixed affine map of features, x·A + b (paper B, arXiv 2505.23043): A = Q · diag(U[1 − s, 1 + s]).

    The defaults are otherwise what the paper's stored files hold: Q at every strength, and b = 0.

    Attributes:
      strength: s; 0: no distortion, not even Q.
      rotation: whether there is Q, from the QR decomposition of a uniform random matrix.
      translation: whether there is b, sampled from U[−s, s].
      seed: random seed of Q and b.
    """

    strength: FractionBelowOne = 0.0
    rotation: bool = True
    translation: bool = False
    seed: NonNegativeInt = 0


def _default_tower() -> TowerConfig:
    section: TowerConfig = TOWERS.config(TOWERS.default)()
    return section


def raw_patches() -> TowerConfig:
    """Return the section of a pixel tower that gives raw patches, one for each target token."""
    section: TowerConfig = TOWERS.config("pixels")(patch_size=0)
    return section


@dataclass(frozen=True)
class ModelConfig:
    """Towers, adapters, decoder and LoRA.

    Attributes:
      decoder: the language model.
      understanding_tower: encodes input images.
      generation_tower: encodes target images; absent: the understanding tower serves both sides.
      pixel_tower: gives the latents that a loss on latents predicts, where generation is not ``latents``; absent where
        no loss does. By default raw patches, one for each target token.
      share_adapter: with one tower, whether one adapter serves both sides too.
      generation: what a generated visual slot is: ``semantic``, a continuous embedding; ``codes``, an index into the
        codebook of the target images' tower; ``latents``, that tower's features, generated by the head of a loss on
        latents and fed back to the decoder.
      understanding_adapter: input features to the decoder's embeddings.
      generation_adapter: the same for target features; absent where one adapter serves both sides.
      understanding_distortion: of input features; absent: none.
      generation_distortion: of target features; absent: none.
      lora: low-rank updates of frozen linears.
      target_noise: in training, Gaussian noise on the decoder's inputs of a target image, of a standard deviation drawn
        for each image from 0 to this share of an embedding's own size. A model that generates reads its own predictions
        there; with noise it learns to rely on the request as well.
      visual_positions: ``learned`` adds an embedding of a token's place in its image, beside rotary positions.
    """

    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    understanding_tower: Annotated[TowerConfig, TOWERS] = field(default_factory=_default_tower)
    generation_tower: Annotated[TowerConfig, TOWERS] | None = None
    pixel_tower: Annotated[TowerConfig, TOWERS] | None = field(default_factory=raw_patches)
    share_adapter: bool = True
    generation: Literal["semantic", "codes", "latents"] = "semantic"
    understanding_adapter: AdapterConfig = field(default_factory=AdapterConfig)
    generation_adapter: AdapterConfig | None = None
    understanding_distortion: DistortionConfig | None = None
    generation_distortion: DistortionConfig | None = None
    lora: LoraConfig = field(default_factory=LoraConfig)
    target_noise: NonNegativeFloat = 0.0
    visual_positions: Literal["learned", "none"] = "learned"

    @property
    def same_tower(self) -> bool:
        """Whether one tower serves input and target images."""
        return self.generation_tower is None


def _default_losses() -> Table:
    return Table({name: LOSSES.config(name)() for name in ("text", "semantic", "pixel")})


@dataclass(frozen=True)
class EvaluateConfig:
    """What the evaluators share, at the end of training and in ``unihetero eval``.

    Attributes:
      at_end: run all evaluators when training ends.
      every_steps: run them as well after every so many steps, on a checkpoint of that step (0: not), for
        ``evals.jsonl``, TensorBoard and ``evaluations/STEP``. The other hosts wait; the steps stay the same.
      questions: questions of each kind, or of each dataset's task, at most.
      images: held-out images for generation, and samples of each side (understanding, generation) for the losses.
      pictures: images in each grid of pictures (0: no grids).
      batch_size: requests or rows that go through the model at a time.
      merge_lora: add LoRA's updates to their kernels first, which is faster and the same to rounding.
    """

    at_end: bool = True
    every_steps: NonNegativeInt = 0
    questions: PositiveInt = 500
    images: PositiveInt = 200
    pictures: NonNegativeInt = 6
    batch_size: PositiveInt = 100
    merge_lora: bool = True


def _default_evaluators() -> Table:
    return Table({kind: EVALUATORS.config(kind)() for kind in ("vqa", "answers", "losses", "generation")})


@dataclass(frozen=True)
class InitConfig:
    """Weights that a new run starts from; everything else is initialized from the seed.

    Relative paths are recorded as absolute: with LoRA they are read again on resume and evaluation.

    Attributes:
      path: a published folder, an imported one or a run's workdir; empty: none.
      parts: what is taken from ``path``.
      tokenizer: use the tokenizer of ``path`` (``tokenizer.json``, else ``tokenizer.model``), with the image markers
        appended, instead of the dataset's.
      understanding_tower: weights of this tower: a published folder, an imported one, a file of ``vq16`` or ``kl16``
        tensors, or a workdir of ``unihetero towers train``; empty: those of ``path``, if it has any.
      generation_tower: weights of the generation tower, likewise.
      pixel_tower: weights of the pixel tower, likewise.
    """

    path: FilePath = ""
    parts: Literal["all", "towers", "decoder"] = "all"
    tokenizer: bool = False
    understanding_tower: FilePath = ""
    generation_tower: FilePath = ""
    pixel_tower: FilePath = ""

    def check(self, key: str) -> None:
        """Refuse settings about weights that are not there."""
        if not self.path and (self.tokenizer or self.parts != "all"):
            what = "tokenizer=True" if self.tokenizer else f"parts={self.parts!r}"
            raise UsageError(f"{key}.{what} without {key}.path: expected the path of the weights that it is about")


def _default_optimizer() -> OptimizerConfig:
    """Return AdamW, with an entry for each group of parameters."""
    section: type[OptimizerConfig] = OPTIMIZERS.config("adamw")
    return section(groups=Table({name: ParameterGroupConfig() for name in GROUPS}))


@dataclass(frozen=True)
class Config:
    """A whole experiment.

    Attributes:
      imports: modules (``my_lab.parts``) or Python files that register components of your own, imported first.
      data: datasets, and how samples are packed into rows.
      model: towers, adapters and decoder.
      losses: the losses, added by their weights; each is a mean over its own weighted slots of the global batch.
      optimizer: the optimizer and its schedule.
      train: steps, batch and seed.
      init: weights that a new run starts from.
      mesh: devices along each mesh axis.
      checkpoint: when checkpoints are saved and which are retained.
      logging: where metrics are written.
      evaluate: what the evaluators share.
      evaluators: what is evaluated, by names of your choice; ``None`` in the place of one leaves it out.
    """

    imports: tuple[str, ...] = ()
    data: DataConfig = field(default_factory=DataConfig)
    model: Annotated[ModelConfig, SHAPES_STEP] = field(default_factory=ModelConfig)
    losses: Annotated[dict[str, Annotated[LossConfig, LOSSES]], SHAPES_STEP] = field(default_factory=_default_losses)
    optimizer: Annotated[OptimizerConfig, OPTIMIZERS, SHAPES_STEP] = field(default_factory=_default_optimizer)
    train: Annotated[TrainConfig, SHAPES_STEP] = field(default_factory=TrainConfig)
    init: InitConfig = field(default_factory=InitConfig)
    mesh: Annotated[MeshConfig, FREE_ON_RESUME, SHAPES_STEP] = field(default_factory=MeshConfig)
    checkpoint: Annotated[CheckpointConfig, FREE_ON_RESUME] = field(default_factory=CheckpointConfig)
    logging: Annotated[LoggingConfig, FREE_ON_RESUME] = field(default_factory=LoggingConfig)
    evaluate: Annotated[EvaluateConfig, FREE_ON_RESUME] = field(default_factory=EvaluateConfig)
    evaluators: Annotated[dict[str, Annotated[EvaluatorConfig, EVALUATORS]], FREE_ON_RESUME] = field(
        default_factory=_default_evaluators
    )

    @property
    def modules(self) -> tuple[str, ...]:
        """The user's modules and files: ``imports``, and what the sources are made by."""
        made_by = (module for source in self.data.sources.values() for module in source.imports())
        return tuple(dict.fromkeys((*self.imports, *made_by)))

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain dicts, as they come back from JSON."""
        values: dict[str, Any] = json.loads(json.dumps(to_values(self)))
        # Without this, a default loss that is not used would be there again when the values are resolved.
        values["losses"] |= {name: None for name in _default_losses() if name not in self.losses}
        return values


TOWER_NAMES = ("understanding_tower", "generation_tower", "pixel_tower")


def frozen_towers(config: Config) -> frozenset[str]:
    """Return the names of the towers that are not trained; always the pixel tower, which only gives targets."""
    model, all_frozen = config.model, "towers" in frozen_groups(config)
    trained = {
        name
        for name in TOWER_NAMES[:2]
        if not all_frozen and (section := getattr(model, name)) is not None and not section.frozen
    }
    return frozenset(TOWER_NAMES) - trained


def target_tower(model: ModelConfig) -> str:
    """Return the name of the tower that encodes target images."""
    return "understanding_tower" if model.same_tower else "generation_tower"


def target_section(model: ModelConfig) -> TowerConfig:
    """Return the section of the tower that encodes target images."""
    return model.understanding_tower if model.generation_tower is None else model.generation_tower


def starts_from_weights(config: Config) -> bool:
    """Return whether some of a new run's parameters come from ``config.init``."""
    init = config.init
    return any((init.path, init.understanding_tower, init.generation_tower, init.pixel_tower))


def table_rows(vocabulary: int) -> int:
    """Return the rows of the decoder's tables, padded so that meshes divide them; the padding's logits are masked."""
    return -(-vocabulary // 128) * 128


def target_adapter(model: ModelConfig) -> str:
    """Return the name of the adapter of target images."""
    return "understanding_adapter" if model.same_tower and model.share_adapter else "generation_adapter"


def frozen_groups(config: Config) -> frozenset[str]:
    """Return the names in ``optimizer.groups`` that are not trained: frozen there, or the base of LoRA."""
    frozen = {name for name, group in config.optimizer.groups.items() if group.frozen}
    return frozenset(frozen | ({"decoder", "embeddings", "towers"} if config.model.lora.rank else set()))


def mode_weights(config: Config) -> dict[str, float]:
    """Return the weight of each task after ``data.mode`` (paper B: understanding is vqa and caption)."""
    tasks = {"understanding": UNDERSTANDING, "generation": GENERATION, "mixed": UNDERSTANDING + GENERATION}
    weights = dataclasses.asdict(config.data.task_weights)
    return {task: (weight if task in tasks[config.data.mode] else 0.0) for task, weight in weights.items()}


def generating_loss(config: Config, generates: str) -> Any:
    """Return the section of the loss that generates ``semantic``, ``codes`` or ``latents``; None without one."""
    found = (section for section in config.losses.values() if section.generates == generates and section.weight)
    return next(found, None)
