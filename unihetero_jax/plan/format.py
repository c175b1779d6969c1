"""Plans as text for the screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_GIB = 2**30


def format_plan(plan: dict[str, Any]) -> str:
    """Format a plan."""
    mesh = " × ".join(f"{axis}={size}" for axis, size in plan["mesh"].items() if size > 1) or "one device"
    kind = "an estimate by formula, nothing was compiled" if plan["estimate"] else "the real step, compiled"
    lines = [
        f"{plan['topology']}: {plan['chips']} chips, {plan['hosts']} hosts, mesh {mesh} ({kind})",
        f"batch {plan['batch_size']}, remat {plan['remat']}, vocabulary {plan['vocabulary']:,}",
        "",
        f"memory per chip   {_gib(plan['hbm_bytes_per_chip'])} of {_gib(plan['hbm_limit_bytes'])}: "
        + (f"fits, {plan['spare']:.0%} to spare" if plan["fits"] else "DOES NOT FIT"),
        *(f"  {name.removesuffix('_bytes'):15} {_gib(size)}" for name, size in plan["hbm"].items() if size),
        "",
        f"FLOPs per step    {plan['flops_per_step']:.3e} ({plan['flops_formula']})",
        *(f"  {name:15} {flops:.3e}" for name, flops in plan["flops_parts"].items()),
        f"  the program     {plan['flops_executed']:.3e} by our count, with {plan['attention']} attention and "
        "recomputation",
    ]
    if plan.get("flops_xla"):
        inside = f", {plan['flops_in_kernels']:.3e} inside kernels excluded" if plan["flops_in_kernels"] else ""
        lines.append(
            f"  the program     {plan['flops_xla']:.3e} by XLA's count, loops as often as they run; ours{inside} "
            f"differs by {plan['flops_agreement']:+.1%}"
        )
    lines += [f"  kernel          {entry['name']}, {entry['count']:.0f} times" for entry in plan["kernels"]]
    lines += ["", f"through memory    {_gib(plan['hbm_traffic_bytes'])} per chip"]
    lines += [
        f"  {entry['kind']:18} {entry['axis']:12} {entry['count']:6.0f} times  {_gib(entry['bytes'])} per chip"
        for entry in plan["collectives"]
    ]
    if links := plan.get("links"):
        lines.append(
            f"  along fsdp       {_gib(links['fsdp_bytes'])}, {links['ratio_float32']:.2f} of the minimum (parameters "
            f"gathered twice, gradients scattered once in float32), {links['ratio_bfloat16']:.2f} with bfloat16"
        )
    if plan.get("logits_replicated"):
        lines.append(f"  each chip holds the logits of {plan['vocabulary_rows']:,} slots, more than its own")
    busy = ", ".join(f"{name} {seconds:.3g} s" for name, seconds in plan["seconds"].items())
    lines += [
        "",
        f"step time         {plan['step_seconds']:.3g} s at least, bound by {plan['bound_by']} ({busy})",
    ]
    if measured := plan.get("measured_step_seconds"):
        lines.append(f"  measured here   {measured:.3g} s; the plan is {plan['step_seconds'] / measured:.2f} of that")
    lines += [
        f"  model FLOPs     {plan['mfu_bound']:.0%} of the peak at most (MFU)",
        f"tokens            {plan['tokens_per_second']:,.0f}/s, about {plan['samples_per_second']:,.0f} samples/s",
        f"per host          {plan['images_per_second_per_host']:,.1f} images/s",
        f"the run           {plan['steps']:,} steps: {plan['days']:.2f} days, {plan['chip_hours']:,.0f} chip-hours",
    ]
    if plan["compile_seconds"]:
        lines.append(
            f"compiled in       {plan['compile_seconds']:.0f} s, with {_gib(plan['peak_host_bytes'])} of memory"
        )
    return "\n".join(lines)


def format_candidates(candidates: Sequence[dict[str, Any]]) -> str:
    """Format the candidates of a search, best first."""
    lines = [f"{'mesh':38} {'remat':6} {'batch':>6} {'memory':>10} {'tokens/s':>12}  bound by"]
    for plan in candidates:
        mesh = ",".join(f"{axis}={size}" for axis, size in plan["mesh"].items() if size > 1) or "one device"
        how = "" if plan["fits"] else "; does not fit"
        how += "; by formula" if plan["estimate"] else ""
        lines.append(
            f"{mesh:38} {plan['remat']:6} {plan['batch_size']:6} {_gib(plan['hbm_bytes_per_chip']):>10} "
            f"{plan['tokens_per_second']:12,.0f}  {plan['bound_by']}{how}"
        )
    return "\n".join(lines) + "\n"


def _gib(size: float) -> str:
    return f"{size / _GIB:.2f} GiB" if size >= 0.01 * _GIB else f"{size / 2**20:.2f} MiB"
