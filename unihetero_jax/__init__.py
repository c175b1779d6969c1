"""unihetero_jax: a pretraining stack for unified vision-language models, in JAX and Flax NNX.

    import unihetero_jax

    config = unihetero_jax.config.load("quickstart", {"train.steps": 100})
    unihetero_jax.run.train(config, "runs/watch")
    unihetero_jax.open_run("runs/watch").metrics()["loss"].plot()

Components of your own are registered by a decorator, in a file that ``config.imports`` names:

    @unihetero_jax.register_tower("stripes", config=StripesConfig)
    class Stripes(nnx.Module): ...

and so are losses, evaluators, data sources, importers, optimizers, attention implementations and decoder families.
Everything here is imported when it is first used: ``import unihetero_jax`` itself imports neither JAX nor NumPy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unihetero_jax import config as config
    from unihetero_jax import data as data
    from unihetero_jax import run as run
    from unihetero_jax import weights as weights
    from unihetero_jax.config.components import (
        ATTENTION,
        DECODER_FAMILIES,
        EVALUATORS,
        IMPORTERS,
        LOSSES,
        OPTIMIZERS,
        SOURCES,
        TOWERS,
    )
    from unihetero_jax.run.opened_run import open_run as open_run

    register_attention = ATTENTION.register
    register_decoder_family = DECODER_FAMILIES.register
    register_evaluator = EVALUATORS.register
    register_importer = IMPORTERS.register
    register_loss = LOSSES.register
    register_optimizer = OPTIMIZERS.register
    register_source = SOURCES.register
    register_tower = TOWERS.register

__version__ = "0.1.0"

_ROOMS = ("config", "data", "run", "weights")
_REGISTRIES = {
    "register_attention": "ATTENTION",
    "register_decoder_family": "DECODER_FAMILIES",
    "register_evaluator": "EVALUATORS",
    "register_importer": "IMPORTERS",
    "register_loss": "LOSSES",
    "register_optimizer": "OPTIMIZERS",
    "register_source": "SOURCES",
    "register_tower": "TOWERS",
}


def __getattr__(name: str) -> Any:
    if name == "open_run":
        return importlib.import_module("unihetero_jax.run.opened_run").open_run
    if name in _REGISTRIES:
        return getattr(importlib.import_module("unihetero_jax.config.components"), _REGISTRIES[name]).register
    if name in _ROOMS:
        return importlib.import_module(f"unihetero_jax.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
