"""Meshes, remat policies and batch sizes, ranked: all by formula, the best of them compiled."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from unihetero_jax.config import Config, MeshConfig
from unihetero_jax.errors import UsageError
from unihetero_jax.plan.hardware import Hardware

Plans = Callable[[Sequence[Config], bool], Iterator[dict[str, Any]]]
_POLICIES: tuple[Literal["none", "dots", "full"], ...] = ("none", "dots", "full")
_BATCH_FACTORS = (1.0, 0.5, 2.0)
# Candidates that by formula leave less than this share of a chip's memory are ranked last: formulas leave things out.
_SPARE = 0.1
_COMPILED = 3


def candidates(config: Config, hardware: Hardware) -> list[Config]:
    """Return variants of a config whose mesh divides its rows, heads and slots.

    The batch size is the config's, half and twice it. It changes what is learned, so the others are suggestions.
    """
    decoder, found = config.model.decoder, []
    for tensor, context in itertools.product((1, 2, 4, 8), (1, 2, 4)):
        shards, rest = divmod(hardware.chips, hardware.slices * tensor * context)
        if rest or decoder.heads % tensor or decoder.kv_heads % tensor or config.data.seq_len % context:
            continue
        mesh = MeshConfig(slice=hardware.slices, fsdp=shards, context=context, tensor=tensor)
        for factor, policy in itertools.product(_BATCH_FACTORS, _POLICIES):
            rows = int(config.train.batch_size * factor)
            groups = hardware.slices * shards * config.train.accumulation
            if not rows or rows % groups or decoder.width % shards or decoder.mlp_width % tensor:
                continue
            train = dataclasses.replace(config.train, batch_size=rows)
            model = dataclasses.replace(config.model, decoder=dataclasses.replace(decoder, remat=policy))
            found.append(dataclasses.replace(config, mesh=mesh, train=train, model=model))
    return found


def search_plans(config: Config, hardware: Hardware, plans: Plans, by_formula: bool) -> dict[str, Any]:
    """Return the fastest plan that fits, with all that were tried under ``candidates``.

    Args:
      config: the config to vary.
      hardware: the hardware to plan for.
      plans: plans of configs: called with the configs, and whether to estimate them by formula.
      by_formula: rank by formula alone; otherwise the most promising candidates are compiled.

    Raises:
      UsageError: no mesh divides the config.
    """
    tried = candidates(config, hardware)
    if not tried:
        raise UsageError(
            f"--search: no mesh of {hardware.chips} chips divides config.train.batch_size={config.train.batch_size}, "
            f"half or twice it; the nearest batch size that one divides is {hardware.chips * config.train.accumulation}"
        )
    estimates = list(plans(tried, True))
    pairs = [(entry, plan) for entry, plan in zip(tried, estimates, strict=True) if "error" not in plan]
    pairs.sort(key=lambda pair: (pair[1]["spare"] < _SPARE, -pair[1]["tokens_per_second"]))
    ranked = [plan for _, plan in pairs]
    if pairs and not by_formula:
        chosen = [entry for entry, _ in pairs[:_COMPILED]]
        compiled = [plan for plan in plans(chosen, False) if "error" not in plan]
        ranked = sorted(compiled, key=lambda plan: (not plan["fits"], -plan["tokens_per_second"])) + ranked[_COMPILED:]
    if not ranked:
        raise UsageError(f"--search: no candidate could be planned: {estimates[0]['error']}")
    return {**ranked[0], "candidates": [dict(plan) for plan in ranked]}
