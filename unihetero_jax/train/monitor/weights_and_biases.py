"""A run's numbers at Weights & Biases (wandb.ai), with the same interface as TensorBoard's."""

from __future__ import annotations

import io
import uuid
from pathlib import Path
from typing import Any

from PIL import Image

from unihetero_jax.config import RunConfig
from unihetero_jax.errors import UsageError
from unihetero_jax.files import write_atomic
from unihetero_jax.train.hooks import Evaluated
from unihetero_jax.train.monitor.telemetry import scalars

# File of the workdir with the id of its wandb run.
RUN_ID = "wandb_run"


class WeightsAndBiases:
    """One wandb run; a continued run uses the same one.

    Steps that are done again after a crash are sent again: their numbers are the same, and charts use ``step``.
    """

    def __init__(self, workdir: Path, config: RunConfig):
        """Start or continue the wandb run.

        Args:
          workdir: gives the run's name, and stores its id and files.
          config: the run's configuration; ``logging.wandb`` is the project.

        Raises:
          UsageError: the package is missing, or cannot start (for example without a login).
        """
        project = config.logging.wandb
        try:
            import wandb  # optional
        except ImportError:
            raise UsageError(
                f"config.logging.wandb={project!r}: the package wandb is not installed: pip install "
                "'unihetero_jax[wandb]', or set logging.wandb=''"
            ) from None
        path = workdir / RUN_ID
        if not path.exists():
            write_atomic(path, uuid.uuid4().hex[:8] + "\n")
        try:
            self._run = wandb.init(
                project=project,
                id=path.read_text(encoding="utf-8").strip(),
                resume="allow",
                name=workdir.absolute().name,
                dir=str(workdir),
                config=config.to_dict(),
            )
        except Exception as error:  # its own types, and those of the network
            reason = " ".join(str(error).split())
            raise UsageError(
                f"config.logging.wandb={project!r}: wandb cannot start: {reason}; log in, or set WANDB_MODE=offline"
            ) from error
        # wandb's own counter only increases, and a continued run may start before the last step that was sent.
        self._run.define_metric("*", step_metric="step")

    def write(self, row: dict[str, Any]) -> None:
        """Send a row's scalars."""
        self._run.log({"step": row["step"], **dict(scalars(row))})

    def write_evaluation(self, step: int, found: Evaluated) -> None:
        """Send an evaluation's numbers and pictures, below ``eval/``."""
        import wandb  # optional; it is there, or this run would not be

        pictures = {name: wandb.Image(Image.open(io.BytesIO(png))) for name, png in found.pictures.items()}
        rows = {f"eval/{name}": value for name, value in {**found.scalars, **pictures}.items()}
        self._run.log({"step": step, **rows})

    def close(self) -> None:
        """Wait until everything is sent."""
        self._run.finish()
