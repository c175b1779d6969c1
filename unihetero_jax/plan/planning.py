"""``unihetero plan``: what a run needs on hardware that is not here, and how fast it could be."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from unihetero_jax.config import Config, MeshConfig
from unihetero_jax.config.tree import names
from unihetero_jax.errors import UsageError, nearest
from unihetero_jax.files import write_atomic
from unihetero_jax.plan import search
from unihetero_jax.plan.compiling import MARK, Request, environment
from unihetero_jax.plan.format import ranking, summary
from unihetero_jax.plan.hardware import Hardware
from unihetero_jax.plan.roofline import TEXT_TOKENS, report
from unihetero_jax.tokenizer.loading import load_tokenizer

DOES_NOT_FIT = 3
# Llama 2's, with the five markers of a multimodal sequence: what is planned for until there is a tokenizer.
VOCABULARY = 32_005


@dataclasses.dataclass(frozen=True)
class Options:
    """What is asked of a plan besides config and hardware. ``compilations``: of a search, at most."""

    search: bool = False
    measure: bool = False
    out: Path | None = None
    vocabulary: int | None = None
    text_tokens: int = TEXT_TOKENS
    compilations: int = 3


def run(config: Config, hardware: Hardware, options: Options) -> int:
    """Plans a config's run, prints the plan and writes it.

    Args:
      config: of the run.
      hardware: to plan for.
      options: what else is asked.

    Returns:
      0, or 3 when the step does not fit.

    Raises:
      UsageError: the mesh, the topology or a missing libtpu.
    """
    vocabulary = options.vocabulary or vocabulary_size(config)
    by_formula = hardware.chip.platform == "gpu"
    if options.measure and hardware.chip.platform != "cpu":
        from unihetero_jax.plan.measure import check_devices

        check_devices(hardware)

    def planned(configs: Sequence[Config], estimate: bool) -> Iterator[dict[str, Any]]:
        requests = [Request(entry.to_dict(), vocabulary, hardware, estimate) for entry in configs]
        for entry, found in zip(configs, ask(requests), strict=True):
            if "error" in found and len(configs) == 1:
                raise UsageError(found["error"])
            yield found if "error" in found else report(entry, vocabulary, hardware, found, options.text_tokens)

    if options.search:
        plan = search.best(config, hardware, planned, 0 if by_formula else options.compilations)
        print(ranking(plan["candidates"]))
    else:
        plan = next(iter(planned([config], by_formula)))
    if options.measure:
        plan["measured_step_seconds"] = _measured(_as_planned(config, plan), vocabulary, hardware)
    print(summary(plan))
    if options.out is not None:
        write_atomic(options.out, json.dumps(plan, indent=2) + "\n")
    return 0 if plan["fits"] else DOES_NOT_FIT


def _as_planned(config: Config, plan: dict[str, Any]) -> Config:
    """The config with what a search may have chosen."""
    decoder = dataclasses.replace(config.model.decoder, remat=plan["remat"])
    return dataclasses.replace(
        config,
        mesh=MeshConfig(**plan["mesh"]),
        model=dataclasses.replace(config.model, decoder=decoder),
        train=dataclasses.replace(config.train, batch_size=plan["batch_size"]),
    )


def _measured(config: Config, vocabulary: int, hardware: Hardware) -> float:
    """Seconds of the step: of CPUs in a process of its own, which has as many of them as are asked for."""
    if hardware.chip.platform != "cpu":
        from unihetero_jax.plan.measure import measured_seconds

        return measured_seconds(config, vocabulary, hardware)
    found = next(ask([Request(config.to_dict(), vocabulary, hardware, measure=True)]))
    if "error" in found:
        raise UsageError(found["error"])
    return float(found["step_seconds"])


def ask(requests: Sequence[Request]) -> Iterator[dict[str, Any]]:
    """The answers to requests for the same hardware, from a process of their own.

    Raises:
      RuntimeError: the process ended without an answer; its last lines are in the message.
    """
    with tempfile.TemporaryDirectory(prefix="unihetero-plan-") as folder:
        path, log, dumped = (Path(folder) / name for name in ("requests.json", "log", "programs"))
        dumped.mkdir()
        asked = [{**dataclasses.asdict(request), "dumped": str(dumped)} for request in requests]
        path.write_text(json.dumps(asked), encoding="utf-8")
        command = [sys.executable, "-m", "unihetero_jax.plan.compiling", str(path)]
        count = 0
        with log.open("w", encoding="utf-8") as messages:
            process = subprocess.Popen(
                command,
                env=environment(requests[0].hardware, dumped),
                # Never written to: it closes when this process ends, however it does, and the other one with it.
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=messages,
                text=True,
            )
            assert process.stdout is not None
            assert process.stdin is not None
            try:
                for line in process.stdout:
                    if line.startswith(MARK):
                        count += 1
                        yield json.loads(line.removeprefix(MARK))
                process.wait()
            finally:
                process.kill()
                process.wait()
                process.stdout.close()
                process.stdin.close()
        if count < len(requests):
            last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:]
            raise RuntimeError("\n".join(["the process that compiles ended without an answer:", *last]))


def with_mesh(config: Config, text: str) -> Config:
    """The config on the mesh of ``--mesh=fsdp=64,tensor=4``; axes that are not named are 1, ``fsdp`` takes the rest.

    Raises:
      UsageError: an unknown axis, or no size.
    """
    sizes = {"fsdp": -1}
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if axis not in names(MeshConfig):
            raise UsageError(
                f"--mesh={text}: unknown axis {axis!r}: expected {', '.join(names(MeshConfig))}, as in "
                f"fsdp=64,tensor=4{nearest(axis, names(MeshConfig))}"
            )
        if not size.isdigit() or not 0 < int(size) < 10**6:
            raise UsageError(f"--mesh={text}: {part!r}: expected {axis}=N, a number of devices")
        sizes[axis] = int(size)
    return dataclasses.replace(config, mesh=MeshConfig(**sizes))


def vocabulary_size(config: Config) -> int:
    """That of the run's tokenizer where it is here, else of the dataset that would be built, or Llama 2's."""
    places = [Path(config.data.tokenizer)] if config.data.tokenizer else []
    roots = [config.data.root, config.init.path if config.init.tokenizer else ""]
    places += [Path(root) / name for root in roots if root for name in ("tokenizer.json", "tokenizer.model")]
    for place in places:
        if place.expanduser().is_file():
            return load_tokenizer(place.expanduser()).vocabulary_size
    own = config.model.decoder.width < 1024 and not config.data.sources and not config.data.root
    return config.data.smart_watch.vocabulary_size if own else VOCABULARY
