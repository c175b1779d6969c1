"""Meshes, remat policies and batch sizes, ranked: all by formula, the best of them compiled."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from unihetero_jax.config import Config, MeshConfig
from unihetero_jax.errors import UsageError
from unihetero_jax.plan.hardware import Hardware

Planned = Callable[[Sequence[Config], bool], Iterator[dict[str, Any]]]
_POLICIES: tuple[Literal["none", "dots", "full"], ...] = ("none", "dots", "full")
_BATCHES = (1.0, 0.5, 2.0)
# What a formula leaves out may still fill this share of a chip.
_MARGIN = 0.9


def candidates(config: Config, hardware: Hardware) -> list[Config]:
    """Variants of a config that its rows, heads and slots can be split for.

    The batch is the config's, half and twice it; a batch changes what is learned, so the others are suggestions.
    """
    decoder, found = config.model.decoder, []
    for tensor in (1, 2, 4, 8):
        for context in (1, 2, 4):
            shards, rest = divmod(hardware.chips, hardware.slices * tensor * context)
            if rest or decoder.heads % tensor or decoder.kv_heads % tensor or config.data.slots % context:
                continue
            mesh = MeshConfig(slice=hardware.slices, fsdp=shards, context=context, tensor=tensor)
            for factor in _BATCHES:
                rows = int(config.train.batch_size * factor)
                groups = hardware.slices * shards * config.train.accumulation
                if not rows or rows % groups or decoder.width % shards or decoder.mlp_width % tensor:
                    continue
                train = dataclasses.replace(config.train, batch_size=rows)
                for policy in _POLICIES:
                    model = dataclasses.replace(config.model, decoder=dataclasses.replace(decoder, remat=policy))
                    found.append(dataclasses.replace(config, mesh=mesh, train=train, model=model))
    return found


def best(config: Config, hardware: Hardware, planned: Planned, compilations: int) -> dict[str, Any]:
    """The fastest plan that fits, with all that were tried under ``candidates``.

    Args:
      config: to vary.
      hardware: to plan for.
      planned: plans of configs, by formula or compiled.
      compilations: how many of the most promising are compiled; 0: none, the formula decides.

    Raises:
      UsageError: no mesh divides the config.
    """
    tried = candidates(config, hardware)
    if not tried:
        raise UsageError(
            f"--search: no mesh of {hardware.chips} chips divides config.train.batch_size={config.train.batch_size}, "
            f"half or twice it; the nearest batch size that one divides is {hardware.chips * config.train.accumulation}"
        )
    plans = [(entry, plan) for entry, plan in zip(tried, planned(tried, True), strict=True) if "error" not in plan]
    plans.sort(key=lambda pair: (pair[1]["spare"] < 1 - _MARGIN, -pair[1]["tokens_per_second"]))
    ranked = [plan for _, plan in plans]
    if compilations and plans:
        chosen = [entry for entry, _ in plans[:compilations]]
        compiled = [plan for plan in planned(chosen, False) if "error" not in plan]
        ranked = sorted(compiled, key=_rank) + ranked[compilations:]
    if not ranked:
        raise UsageError("--search: no candidate could be planned")
    return {**ranked[0], "candidates": [dict(plan) for plan in ranked]}


def _rank(plan: dict[str, Any]) -> tuple[bool, float]:
    return not plan["fits"], -plan["tokens_per_second"]
