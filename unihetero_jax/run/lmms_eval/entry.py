"""Tells lmms-eval, through its entry point, where our model is; light, because every run of lmms-eval reads it."""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """The ``ModelManifest`` of ``--model unihetero``."""
    # Optional; imports torch.
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="unihetero", simple_class_path="unihetero_jax.run.lmms_eval.model.UniHetero")
