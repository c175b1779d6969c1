"""The sections that every training run has, whatever it trains."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

from unihetero_jax.config.constraints import FREE_ON_RESUME, NonNegativeFloat, NonNegativeInt, PositiveInt
from unihetero_jax.config.optimizer import OptimizerConfig
from unihetero_jax.errors import UsageError


@dataclass(frozen=True)
class TrainConfig:
    """Steps, batch and seed, and what happens after a bad update or a hang.

    An update is skipped when a loss or the gradient is not finite, or when it is a spike. Too many skipped updates stop
    the run or roll it back.

    Attributes:
      steps: optimizer steps.
      batch_size: packed rows of the global batch.
      accumulation: forward passes per step; divides ``batch_size``.
      seed: random seed of parameters, data order, dropout and noise.
      hang_timeout: seconds without a finished step after which a process writes its stacks and exits with code 75, to
        be started again; well above the slowest step with its checkpoint. 0: never.
      max_skipped_updates: skipped updates that are accepted within ``spike_window`` steps.
      spike_window: updates whose medians define a spike, and steps over which skipped updates are counted.
      spike_loss: skip an update whose loss is this many times the median; 0: never.
      spike_norm: skip an update whose gradient norm, before clipping, is this many times the median; 0: never.
      on_spike: after too many skipped updates: ``stop``, or ``rollback`` to the newest checkpoint before them and
        continue with the data after them.
      max_rollbacks: rollbacks before the run stops.
      gradient_cosines_every: steps between measurements of the angle between the losses' gradients on each layer of
        the decoder (``train.gradients``); each costs a backward pass per loss. 0: never.
    """

    steps: Annotated[PositiveInt, FREE_ON_RESUME] = 400
    batch_size: PositiveInt = 64
    accumulation: PositiveInt = 1
    seed: NonNegativeInt = 0
    hang_timeout: Annotated[NonNegativeFloat, FREE_ON_RESUME] = 0.0
    max_skipped_updates: Annotated[NonNegativeInt, FREE_ON_RESUME] = 3
    spike_window: PositiveInt = 100
    spike_loss: float = 0.0
    spike_norm: float = 0.0
    on_spike: Annotated[Literal["stop", "rollback"], FREE_ON_RESUME] = "stop"
    max_rollbacks: Annotated[NonNegativeInt, FREE_ON_RESUME] = 2
    gradient_cosines_every: Annotated[NonNegativeInt, FREE_ON_RESUME] = 0

    def check(self, key: str) -> None:
        """Refuse an accumulation that does not divide the batch, and spike factors that would skip every update."""
        if self.batch_size % self.accumulation:
            raise UsageError(
                f"{key}.accumulation={self.accumulation} does not divide {key}.batch_size={self.batch_size}"
            )
        for name in ("spike_loss", "spike_norm"):
            factor = getattr(self, name)
            if factor and factor <= 1:
                raise UsageError(f"{key}.{name}={factor}: expected a factor above 1, or 0 (off)")


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis, slowest link first; at most one size is -1, which takes the remaining devices.

    Attributes:
      slice: slices, connected by the data-center network; data parallel.
      fsdp: devices that share the batch and the parameters.
      context: devices that share the sequence.
      tensor: devices that share heads, MLPs and vocabulary.
    """

    slice: int = 1
    fsdp: int = -1
    context: int = 1
    tensor: int = 1

    def check(self, key: str) -> None:
        """Refuse invalid sizes, and more than one that is to be filled in."""
        sizes = dataclasses.asdict(self)
        if any(size < 1 and size != -1 for size in sizes.values()) or list(sizes.values()).count(-1) > 1:
            raise UsageError(f"{key}={sizes}: expected positive sizes, one of them at most -1 (what is left)")


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are saved, which are retained and how they are verified. The last step is always saved.

    Attributes:
      every_steps: steps between checkpoints.
      keep_latest: newest checkpoints that are retained.
      keep_every: also retain the checkpoints whose step is a multiple of this; 0: none.
      verify: how a checkpoint is checked before it is used: ``full`` compares the checksums of all files, ``sizes``
        compares file sizes, ``off`` does neither and writes no checksums.
      max_failures: consecutive failed saves that are accepted before the run stops.
      patience: seconds that a save waits for the one before it; then it is skipped.
    """

    every_steps: PositiveInt = 100
    keep_latest: PositiveInt = 2
    keep_every: NonNegativeInt = 0
    verify: Literal["full", "sizes", "off"] = "full"
    max_failures: NonNegativeInt = 3
    patience: NonNegativeFloat = 60.0


@dataclass(frozen=True)
class LoggingConfig:
    """Where metrics are written, and when a profile is taken.

    Attributes:
      every_steps: steps between two printed lines, where there is no terminal for a progress bar.
      tensorboard: also write TensorBoard events.
      wandb: Weights & Biases project to send the metrics to; empty: none.
      profile_steps: first and last step of a ``jax.profiler`` trace, such as ``10,12``; empty: none.
      signal_steps: steps that are traced after SIGUSR1.
      peak_flops: FLOP/s of a device, the denominator of MFU; 0: the published number, or a measurement where there is
        none.
    """

    every_steps: PositiveInt = 20
    tensorboard: bool = True
    wandb: str = ""
    profile_steps: tuple[int, ...] = ()
    signal_steps: PositiveInt = 3
    peak_flops: NonNegativeFloat = 0.0

    def check(self, key: str) -> None:
        """Refuse a range of traced steps that is not one."""
        steps = self.profile_steps
        if steps and not (len(steps) == 2 and 1 <= steps[0] <= steps[1]):
            raise UsageError(f"{key}.profile_steps={steps}: expected the first and the last step to trace, as in 10,12")


class RunConfig(Protocol):
    """What every training run's config has, whatever is trained."""

    @property
    def train(self) -> TrainConfig:
        """Steps, batch and seed."""

    @property
    def optimizer(self) -> OptimizerConfig:
        """The optimizer and its schedule."""

    @property
    def mesh(self) -> MeshConfig:
        """How devices are laid out."""

    @property
    def checkpoint(self) -> CheckpointConfig:
        """When a checkpoint is saved, and which stay."""

    @property
    def logging(self) -> LoggingConfig:
        """How a run is watched."""

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain dicts, ready for JSON."""
