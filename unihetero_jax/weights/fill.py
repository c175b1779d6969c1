"""Tensors from files into our parameters, one after another, each landing where it is sharded to."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from unihetero_jax.errors import UsageError
from unihetero_jax.parallel.definition import ModelDefinition
from unihetero_jax.parallel.mesh import evaluation_mesh
from unihetero_jax.weights.layouts import MoreEntries, Path_, Rule, Slot, slots
from unihetero_jax.weights.tensors import FLOATS, Stored

Module = TypeVar("Module", bound=nnx.Module)
Source = np.ndarray | MoreEntries


class Tensors(Protocol):
    """Theirs: ``TensorFiles``, or ``GivenTensors``."""

    @property
    def path(self) -> Path:
        """Where they are from."""

    @property
    def names(self) -> Mapping[str, Stored]:
        """What there is, in the order in which it is best read."""

    def read(self, name: str) -> np.ndarray:
        """One tensor."""


class Destination(Protocol):
    """What parameters are written into."""

    def put(self, path: Path_, layer: int | None, source: Source) -> None:
        """Takes one layer of a stacked parameter, or a whole one."""


class Arrays:
    """Parameters as JAX arrays, made one tensor at a time.

    Only the part of a tensor that this process's devices hold is copied, and it is gone when the next one comes: next
    to the parameters themselves, the host needs memory for one tensor.

    Args:
      shapes: nested dicts of shape structs.
      shardings: the same structure.
      dtype: of the arrays.
    """

    def __init__(self, shapes: Any, shardings: Any, dtype: Any):
        self._shapes, self._shardings, self._dtype = shapes, shardings, np.dtype(dtype)
        self._arrays: dict[Path_, jax.Array] = {}

    def put(self, path: Path_, layer: int | None, source: Source) -> None:
        """Takes one layer of a stacked parameter, or a whole one."""
        where = _at(self._shardings, path)
        if layer is None:
            self._arrays[path] = self._place(source, where)
            return
        shape = tuple(_at(self._shapes, path).shape)
        if path not in self._arrays:
            self._arrays[path] = jax.jit(lambda: jnp.zeros(shape, self._dtype), out_shardings=where)()
        spec = tuple(where.spec)[1:]
        piece = self._place(source, NamedSharding(where.mesh, PartitionSpec(*spec)))
        stack = _set_layer(where)(self._arrays[path], piece, layer)
        # Pieces that wait for their turn would pile up in memory.
        self._arrays[path] = stack.block_until_ready()

    def tree(self) -> dict[str, Any]:
        """The parameters, nested dicts."""
        tree: dict[Any, Any] = {}
        for path, array in self._arrays.items():
            node = tree
            for name in path[:-1]:
                node = node.setdefault(name, {})
            node[path[-1]] = array
        return tree

    def _place(self, source: Source, where: NamedSharding) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            # Always a copy: JAX may go on using the memory that it is given, and this is a map of a file.
            return np.array(source[index], self._dtype, order="C")

        return jax.make_array_from_callback(source.shape, where, part).block_until_ready()


@functools.cache
def _set_layer(where: NamedSharding) -> Callable[..., jax.Array]:
    def update(stack: jax.Array, piece: jax.Array, layer: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_index_in_dim(stack, piece, layer, 0)

    return jax.jit(update, donate_argnums=0, out_shardings=where)


def _at(tree: Any, path: Path_) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def fill(
    files: Tensors,
    places: Mapping[str, Slot],
    rename: Callable[[str], str | None],
    to: Destination,
    cut_vocabulary: bool = False,
) -> None:
    """Moves every tensor into its place, in the order of the files.

    Args:
      files: theirs, usually of files.
      places: by canonical name, as ``layouts.slots`` gives them.
      rename: their name → the canonical one; None for what is to be left (buffers).
      to: what is filled.
      cut_vocabulary: whether tables with more rows than ours lose the last ones (published tables are often longer than
        the tokenizer's vocabulary), instead of being refused.

    Raises:
      UsageError: names that are missing or not used (all of them, by name), a tensor of another shape or type.
    """
    names = {name: renamed for name in files.names if (renamed := rename(name)) is not None}
    _check_names(files.path, set(places), names)
    for name, renamed in names.items():
        _check_tensor(files, name, places[renamed], cut_vocabulary)
    for name, renamed in names.items():
        slot = places[renamed]
        theirs = files.read(name)
        to.put(slot.path, slot.layer, _ours(theirs, slot))


def fill_module(
    definition: ModelDefinition[Module],
    rules: list[Rule],
    files: Tensors,
    rename: Callable[[str], str | None],
    mesh: Mesh | None = None,
    dtype: Any = np.float32,
) -> Module:
    """The module with their parameters; each tensor lands sharded before the next one is read.

    Args:
      definition: of the module.
      rules: the name map.
      files: theirs.
      rename: as for ``fill``.
      mesh: over which the parameters are sharded; by default they go to one device.
      dtype: of the parameters.

    Raises:
      UsageError: as ``fill``.
    """
    shapes = definition.shapes()
    arrays = Arrays(shapes, definition.shardings(mesh or evaluation_mesh(1)), dtype)
    fill(files, slots(rules, shapes), rename, arrays)
    return definition.bind(arrays.tree())


def _ours(theirs: np.ndarray, slot: Slot) -> Source:
    ours = slot.rule.layout.to_ours(theirs, slot.shape)
    axis = slot.rule.vocabulary
    if axis is None or ours.shape[axis] == slot.shape[axis]:
        return ours
    if ours.shape[axis] > slot.shape[axis]:
        return np.moveaxis(np.moveaxis(ours, axis, 0)[: slot.shape[axis]], 0, axis)
    return MoreEntries(ours, axis, slot.shape[axis])


def _check_names(path: Path, wanted: set[str], names: Mapping[str, str]) -> None:
    missing = sorted(wanted - set(names.values()))
    unused = sorted(name for name, renamed in names.items() if renamed not in wanted)
    complaints = [
        f"{len(found)} parameters {what}: {', '.join(found)}"
        for what, found in (("are missing", missing), ("have no place in the model", unused))
        if found
    ]
    if complaints:
        raise UsageError(f"{path}: {'; '.join(complaints)}")


def _check_tensor(files: Tensors, name: str, slot: Slot, cut: bool) -> None:
    stored = files.names[name]
    expected = slot.rule.layout.shape(slot.shape)
    ours = ".".join(map(str, slot.path))
    fits = stored.shape == expected
    if slot.rule.vocabulary is not None and len(stored.shape) == 2:
        # Both tables of theirs are [V, D].
        fits = stored.shape[1:] == expected[1:] and (cut or stored.shape[0] <= expected[0])
        expected_text = f"[at most {expected[0]}, {expected[1]}]"
    else:
        expected_text = str(list(expected))
    if not fits:
        raise UsageError(
            f"{stored.file}: {name} (ours: {ours}) has shape {list(stored.shape)}, expected {expected_text}"
        )
    if stored.dtype not in FLOATS:
        raise UsageError(
            f"{stored.file}: {name} is {stored.kind}: expected F32, F16, BF16 or F64; quantized weights are not read"
        )
