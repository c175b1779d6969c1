from __future__ import annotations

from types import SimpleNamespace

import jax
import pytest

from unihetero_jax.parallel.compiler_flags import FLAGS, compiler_options


def _chips(kind: str, platform: str = "tpu", slices: int = 1):
    return [SimpleNamespace(platform=platform, device_kind=kind, slice_index=index) for index in range(slices)]


def test_a_slice_alone_has_no_flags_of_several():
    alone, several = compiler_options(_chips("TPU v5")), compiler_options(_chips("TPU v5", slices=2))
    assert "xla_tpu_enable_data_parallel_all_reduce_opt" not in alone
    assert several["xla_tpu_enable_data_parallel_all_reduce_opt"] is True
    assert "xla_tpu_scoped_vmem_limit_kib" in compiler_options(_chips("TPU v6 lite"))


def test_an_unknown_generation_is_left_to_the_compiler():
    assert compiler_options(_chips("TPU v99")) == {}
    assert compiler_options(jax.devices()) == {}


@pytest.mark.parametrize("flag", FLAGS["gpu"], ids=lambda flag: flag.name)
def test_the_compiler_knows_the_flags_of_gpus(flag):
    assert _with({flag.name: flag.value})(1.0) == 2.0


def test_the_compiler_refuses_a_flag_that_it_does_not_know():
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_gpu_no_such_flag"):
        _with({"xla_gpu_no_such_flag": True})


def _with(options: dict):
    return jax.jit(lambda x: x + 1, compiler_options=options).lower(1.0).compile()


def test_every_flag_has_its_reason():
    assert all(len(flag.reason.split()) > 5 for flags in FLAGS.values() for flag in flags)
