"""Matrix FLOPs and collectives of a compiled program, from its HLO text; loop bodies count once per trip.

XLA's own ``cost_analysis`` counts the body of a loop once, so that a scanned decoder looks like one layer. Here every
computation has a count: the entry's is 1, that of a loop's body is its caller's times the trips of the loop.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2}
_BYTES |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "f8e4m3fn": 1, "f8e5m2": 1}
_SHAPE = re.compile(r"\b(" + "|".join(_BYTES) + r")\[([0-9,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"(?:^|[\s)}])([a-z][a-z0-9\-]*)\(")
# A fused computation of the TPU compiler: an all-reduce and a slice of it, with the traffic of a reduce-scatter.
_SCATTERING = "all-reduce-scatter"
_ACROSS = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
# A collective that runs beside other fusions appears in each of them, under one number; it starts in one.
_CHAINED, _BEGINS = re.compile(r'\bchain_id="'), 'custom_call_target="AsyncCollectiveStart"'
_PALLAS = "tpu_custom_call"
_KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute", "ragged-all-to-all")


@dataclass(frozen=True)
class Instruction:
    """One line of the text.

    Attributes:
      name: of the result.
      result: type of the result.
      opcode: the operation.
      rest: the text after the opcode.
    """

    name: str
    result: str
    opcode: str
    rest: str


@dataclass
class Module:
    """A parsed program.

    Attributes:
      entry: name of the entry computation.
      computations: instructions of each computation.
      counts: how often each computation runs.
    """

    entry: str
    computations: dict[str, list[Instruction]]
    counts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Collective:
    """Traffic of one kind of collective along one or more mesh axes.

    Attributes:
      kind: such as ``all-gather``.
      axis: mesh axes, joined by ``+``.
      count: per step.
      bytes: that a chip receives per step.
    """

    kind: str
    axis: str
    count: float
    bytes: float


@dataclass(frozen=True)
class Kernel:
    """One kind of kernel.

    Attributes:
      name: of the kernel.
      count: per step.
      bytes: of its arguments and results, per step.
    """

    name: str
    count: float
    bytes: float


def parse(text: str) -> Module:
    """Parse the text of an HLO module, and count how often each computation runs.

    Raises:
      ValueError: no entry computation.
    """
    computations: dict[str, list[Instruction]] = {}
    entry, name = "", ""
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            name = header[2]
            computations[name] = []
            entry = name if header[1] else entry
        elif name and (found := _INSTRUCTION.match(line)):
            if opcode := _OPCODE.search(found[2]):
                result, rest = found[2][: opcode.start()], found[2][opcode.end() :]
                computations[name].append(Instruction(found[1], result, opcode[1], rest))
        elif line.startswith("}") and not line.startswith("}}"):
            # The settings of a kernel span several lines, the last of which begins with two braces.
            name = ""
    if not entry:
        raise ValueError("no ENTRY computation: not the text of an HLO module")
    module = Module(entry, computations)
    counts: dict[str, float] = defaultdict(float)
    _count(module, entry, 1.0, counts)
    module.counts = dict(counts)
    return module


def _count(module: Module, name: str, times: float, counts: dict[str, float]) -> None:
    counts[name] += times
    for instruction in module.computations.get(name, ()):
        for called, often in _calls(module, instruction):
            _count(module, called, times * often, counts)


def _calls(module: Module, instruction: Instruction) -> Iterator[tuple[str, float]]:
    """Yield the computations that an instruction runs, and how often; a conditional runs its most expensive branch."""
    rest = instruction.rest
    if instruction.opcode == "while":
        if body := re.search(r"\bbody=%?([\w.\-]+)", rest):
            yield body[1], trips(module, instruction)
    elif instruction.opcode == "conditional":
        branches = re.search(r"branch_computations=\{([^}]*)\}", rest)
        names = branches[1].split(",") if branches else re.findall(r"(?:true|false)_computation=(%?[\w.\-]+)", rest)
        names = [name.strip().lstrip("%") for name in names]
        if names:
            yield max(names, key=lambda branch: _work(module, branch)), 1.0
    elif instruction.opcode in ("fusion", "call", "async-start") and (
        called := re.search(r"\b(?:calls|to_apply|called_computation)=%?([\w.\-]+)", rest)
    ):
        yield called[1], 1.0


def trips(module: Module, loop: Instruction) -> float:
    """Return the trips of a loop: as XLA annotates it, or the bound in its condition; else 1."""
    if known := re.search(r'known_trip_count"?:\s*\{"?n"?:"?(\d+)', loop.rest):
        return float(known[1])
    condition = re.search(r"\bcondition=%?([\w.\-]+)", loop.rest)
    found = [
        int(bound[1])
        for instruction in module.computations.get(condition[1] if condition else "", ())
        if instruction.opcode == "constant" and (bound := re.match(r"(\d+)\)", instruction.rest))
    ]
    return float(max(found, default=1))


def _work(module: Module, name: str) -> float:
    counts: dict[str, float] = defaultdict(float)
    _count(module, name, 1.0, counts)
    return sum(times * _flops_of(module, computation) for computation, times in counts.items())


def matrix_flops(module: Module, once: bool = False) -> float:
    """Count the FLOPs of matrix products and convolutions of one device's program.

    Args:
      module: the program.
      once: count a loop's body once, as ``cost_analysis`` does.
    """
    return sum((1.0 if once else times) * _flops_of(module, name) for name, times in module.counts.items())


def _flops_of(module: Module, name: str) -> float:
    instructions = module.computations.get(name, [])
    shapes = {instruction.name: instruction.result for instruction in instructions}
    total = 0.0
    for instruction in instructions:
        if instruction.opcode == "dot":
            total += _dot(instruction, shapes)
        elif instruction.opcode == "convolution":
            total += _convolution(instruction, shapes)
    return total


def _operands(instruction: Instruction, shapes: Mapping[str, str]) -> list[list[int]]:
    """Return the dimensions of the operands, looked up by name."""
    inside = instruction.rest.split(")", 1)[0]
    names = re.findall(r"%([\w.\-]+)", inside) or [part.split()[-1] for part in inside.split(",") if part.strip()]
    return [_dimensions(shapes.get(name, "")) for name in names]


def _dot(instruction: Instruction, shapes: Mapping[str, str]) -> float:
    contracted = re.search(r"lhs_contracting_dims=\{([0-9,]*)\}", instruction.rest)
    left = _operands(instruction, shapes)[0]
    inner = [left[int(axis)] for axis in contracted[1].split(",") if axis] if contracted and left else []
    return 2.0 * math.prod(_dimensions(instruction.result)) * math.prod(inner)


def _convolution(instruction: Instruction, shapes: Mapping[str, str]) -> float:
    """Return 2 · batch · features out · features per group · Π over spatial dimensions of kernel-input pairs."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.rest)
    operands = _operands(instruction, shapes)
    if labels is None or len(operands) < 2 or not operands[0] or not operands[1]:
        return 0.0
    left, right, out = operands[0], operands[1], _dimensions(instruction.result)
    window = re.search(r"window=\{([^}]*)\}", instruction.rest)
    given = dict(part.split("=") for part in window[1].split()) if window else {}
    pairs = 1.0
    for axis in (label for label in labels[1] if label.isdigit()):
        index = int(axis)
        sizes = left[labels[1].index(axis)], right[labels[2].index(axis)], out[labels[3].index(axis)]

        def setting(name: str, default: str, index: int = index) -> str:
            return given[name].split("x")[index] if name in given else default

        padding = setting("pad", "0_0").split("_")
        pairs *= _pairs(
            *sizes,
            int(setting("stride", "1")),
            int(padding[0]),
            int(setting("lhs_dilate", "1")),
            int(setting("rhs_dilate", "1")),
        )
    features = out[labels[3].index("f")] * right[labels[2].index("i")]
    return 2.0 * out[labels[3].index("b")] * features * pairs


def _pairs(size: int, kernel: int, out: int, stride: int, before: int, dilated: int, spread: int) -> int:
    """Count pairs (position of the result, of the kernel) that fall on the input, not on padding or holes."""
    place = np.arange(out)[:, None] * stride + np.arange(kernel)[None, :] * spread - before
    return int(np.sum((place >= 0) & (place % dilated == 0) & (place // dilated < size)))


def kernels(module: Module) -> list[Kernel]:
    """List the Pallas kernels for TPUs, by name, with the bytes of arguments and results: XLA sees nothing more."""
    found: dict[str, Kernel] = {}
    for name, times in module.counts.items():
        shapes = {instruction.name: instruction.result for instruction in module.computations.get(name, ())}
        for instruction in module.computations.get(name, ()):
            if instruction.opcode != "custom-call" or f'custom_call_target="{_PALLAS}"' not in instruction.rest:
                continue
            names = re.findall(r"%([\w.\-]+)", instruction.rest.split(")", 1)[0])
            moved = _size(instruction.result) + sum(_size(shapes.get(operand, "")) for operand in names)
            kind = re.sub(r"[.\d]+$", "", instruction.name)
            before = found.get(kind, Kernel(kind, 0.0, 0.0))
            found[kind] = Kernel(kind, before.count + times, before.bytes + times * moved)
    return sorted(found.values(), key=lambda entry: entry.name)


def collectives(module: Module, mesh: Mapping[str, int]) -> list[Collective]:
    """List the traffic between chips, by kind and mesh axes, largest first.

    All-gather: the result's other shards. Reduce-scatter: the operand's. All-reduce: both, one after the other.
    All-to-all: what belongs to others. Permute: everything.

    Args:
      module: the program.
      mesh: sizes of the axes, in the order of the device numbers.
    """
    counts: dict[tuple[str, str], float] = defaultdict(float)
    sizes: dict[tuple[str, str], float] = defaultdict(float)
    for name, times in module.counts.items():
        shapes = {instruction.name: instruction.result for instruction in module.computations.get(name, ())}
        begins = any(_BEGINS in instruction.rest for instruction in module.computations.get(name, ()))
        for instruction in module.computations.get(name, ()):
            kind = instruction.opcode.removesuffix("-start")
            names = re.findall(r"%([\w.\-]+)", instruction.rest.split(")", 1)[0])
            if kind == "send" and (across := _ACROSS.search(instruction.rest)):
                # A collective over the hosts' network between TPU slices: what is sent, followed by a token.
                kind, axis, members = across[1].lower().replace("_", "-"), "slice", mesh["slice"]
                operand = _size(shapes.get(names[0], ""))
            elif kind in _KINDS:
                if not begins and _CHAINED.search(instruction.rest):
                    continue
                first, members = _group(instruction.rest)
                if kind != "collective-permute" and members == 1:
                    continue
                if kind == "all-reduce" and name.startswith(_SCATTERING):
                    kind = "reduce-scatter"
                axis, members = axes_of(first, mesh), members or math.prod(mesh.values())
                operand = sum(_size(shapes.get(name, "")) for name in names)
            else:
                continue
            key = (kind, axis)
            counts[key] += times
            sizes[key] += times * _received(kind, operand, members)
    found = [Collective(kind, axis, counts[kind, axis], size) for (kind, axis), size in sizes.items()]
    return sorted(found, key=lambda entry: -entry.bytes)


def most_rows(module: Module, *columns: int) -> int:
    """Return the most rows of an array with a dimension of one of these sizes: the product of its other dimensions.

    With a vocabulary as columns, these are a table's width, or the slots whose logits exist at once on a device.
    """
    most = 0
    for name in module.counts:
        for instruction in module.computations.get(name, ()):
            for _, listed in _SHAPE.findall(instruction.result):
                sizes = [int(size) for size in listed.split(",") if size]
                for size in set(sizes).intersection(columns):
                    most = max(most, math.prod(sizes) // size)
    return most


def _received(kind: str, operand: float, members: int) -> float:
    others = (members - 1) / members
    return operand * {
        "all-gather": members - 1.0,
        "reduce-scatter": others,
        "all-reduce": 2 * others,
        "all-to-all": others,
        "ragged-all-to-all": others,
        "collective-permute": 1.0,
    }.get(kind, 1.0)


def _group(rest: str) -> tuple[list[int], int]:
    """Return the devices of one group (of a permute: one pair), and their number; 0: all."""
    if pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", rest):
        return [int(pairs[1]), int(pairs[2])], 2
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest):
        sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        wanted = [part.strip() for part in named[2].split(",")]
        # A part of an axis is written as 'axis':(first)size, and counted as the whole axis.
        moving = [axis for axis in sizes if any(part.startswith(f"'{axis}'") for part in wanted)]
        order = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
        group = order[tuple(slice(None) if axis in moving else 0 for axis in sizes)].ravel().tolist()
        return group, len(group)
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        shape, source = ([int(size) for size in iota[number].split(",")] for number in (1, 2))
        order = np.arange(math.prod(source)).reshape(source)
        if iota[3]:
            order = order.transpose([int(axis) for axis in iota[3].split(",")])
        return order.reshape(shape)[0].ravel().tolist(), shape[-1]
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        group = [int(device) for device in listed[1].split(",")]
        return group, len(group)
    return [], 0


def axes_of(group: list[int], mesh: Mapping[str, int]) -> str:
    """Return the mesh axes along which the devices of a group differ, joined by ``+``."""
    names = [name for name, size in mesh.items() if size > 1]
    if not group:
        return "+".join(names)
    places = np.unravel_index(np.asarray(group), tuple(mesh.values()))
    varying = [name for name, place in zip(mesh, places, strict=True) if len(set(place.tolist())) > 1]
    return "+".join(varying) or "none"


def _dimensions(text: str) -> list[int]:
    found = _SHAPE.search(text)
    return [int(size) for size in found[2].split(",") if size] if found else []


def _size(text: str) -> float:
    return sum(
        _BYTES[kind] * math.prod(int(size) for size in sizes.split(",") if size) for kind, sizes in _SHAPE.findall(text)
    )
