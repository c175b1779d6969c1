from __future__ import annotations

from dataclasses import dataclass

import pytest

from unihetero_jax.config import MeshConfig
from unihetero_jax.errors import UsageError
from unihetero_jax.parallel.mesh import make_mesh


@dataclass(frozen=True)
class _Chip:
    id: int
    process_index: int
    slice_index: int
    coords: tuple[int, int, int]
    core_on_chip: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v6 lite"


def _chips(slices: int, each: int):
    """Chips of v6e slices, each a row."""
    return [
        _Chip(number * each + index, number, number, (index, 0, 0)) for number in range(slices) for index in range(each)
    ]


def test_only_the_data_parallel_axis_lies_between_slices():
    with pytest.raises(UsageError, match=r"expected config\.mesh\.slice=2 or a multiple"):
        make_mesh(MeshConfig(), _chips(2, 4))


def test_neighbours_along_other_axes_are_in_one_slice():
    mesh = make_mesh(MeshConfig(slice=2, fsdp=2, tensor=2), _chips(2, 4))
    assert dict(mesh.shape) == {"slice": 2, "fsdp": 2, "context": 1, "tensor": 2}
    for number, devices in enumerate(mesh.devices):
        assert {device.slice_index for device in devices.ravel()} == {number}


def test_an_axis_may_take_a_part_of_a_dimension():
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2), _chips(1, 4))
    assert len({device.id for device in mesh.devices.ravel()}) == 4
