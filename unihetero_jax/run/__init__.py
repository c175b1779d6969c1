"""Runs: a workdir as a whole. What the command line does, as functions.

    from unihetero_jax import config, run

    run.train(config.load("quickstart", {"train.steps": 100}), "runs/watch")
    run.evaluate("runs/watch")["vqa"]
    run.generate("runs/watch", "What time does the watch show?", image="watch.png").text
    run.plan(config.load("unihetero_7b"), "v5p:8x8x4")["days"]
    run.open_run("runs/watch").metrics()

Each function is imported with its module, and JAX, when it is first used: the command line reads this package, and its
``--help`` must not wait for JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unihetero_jax.plan.planner import plan as plan
    from unihetero_jax.run.benchmark import bench as bench
    from unihetero_jax.run.benchmark_suite import bench_suite as bench_suite
    from unihetero_jax.run.convert_weights import export_weights as export_weights
    from unihetero_jax.run.convert_weights import import_weights as import_weights
    from unihetero_jax.run.convert_weights import inspect_weights as inspect_weights
    from unihetero_jax.run.features import compute_features as compute_features
    from unihetero_jax.run.load_model import define_model as define_model
    from unihetero_jax.run.mixture_report import inspect_mixture as inspect_mixture
    from unihetero_jax.run.opened_run import Run as Run
    from unihetero_jax.run.opened_run import open_run as open_run
    from unihetero_jax.run.progress import format_status as format_status
    from unihetero_jax.run.progress import status as status
    from unihetero_jax.run.verbs import evaluate as evaluate
    from unihetero_jax.run.verbs import generate as generate
    from unihetero_jax.run.verbs import train as train

_MODULES = {
    "Run": "run.opened_run",
    "bench": "run.benchmark",
    "bench_suite": "run.benchmark_suite",
    "compute_features": "run.features",
    "define_model": "run.load_model",
    "evaluate": "run.verbs",
    "export_weights": "run.convert_weights",
    "format_status": "run.progress",
    "generate": "run.verbs",
    "import_weights": "run.convert_weights",
    "inspect_mixture": "run.mixture_report",
    "inspect_weights": "run.convert_weights",
    "open_run": "run.opened_run",
    "plan": "plan.planner",
    "status": "run.progress",
    "train": "run.verbs",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"unihetero_jax.{_MODULES[name]}"), name)
