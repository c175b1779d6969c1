from __future__ import annotations

import pytest

from unihetero_jax.parallel import hlo as program

_LOOP = """\
HloModule step, num_partitions=8

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%body (arg: (s32[], f32[4,16])) -> (s32[], f32[4,16]) {
  %arg = (s32[], f32[4,16]{1,0}) parameter(0)
  %x.1 = f32[4,16]{1,0} get-tuple-element(%arg), index=1
  %shard = f32[2,16]{1,0} constant({...})
  %whole = f32[16,16]{1,0} all-gather(%shard), replica_groups=[1,8]<=[8], dimensions={0}, use_global_device_ids=true
  %dot = f32[4,16]{1,0} dot(%x.1, %whole), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %summed = f32[4,16]{1,0} all-reduce(%dot), replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
  ROOT %out = (s32[], f32[4,16]{1,0}) tuple(%arg, %summed)
}

%condition (arg.1: (s32[], f32[4,16])) -> pred[] {
  %arg.1 = (s32[], f32[4,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%arg.1), index=0
  %bound = s32[] constant(32)
  ROOT %less = pred[] compare(%i, %bound), direction=LT
}

ENTRY %main (p: f32[4,16]) -> f32[4,16] {
  %p = f32[4,16]{1,0} parameter(0)
  %start = (s32[], f32[4,16]{1,0}) tuple(%p, %p)
  %loop = (s32[], f32[4,16]{1,0}) while(%start), condition=%condition, body=%body
  %moved = f32[4,16]{1,0} collective-permute(%p), source_target_pairs={{0,2},{2,4},{4,6},{6,0}}
  ROOT %end = f32[4,16]{1,0} get-tuple-element(%loop), index=1
}
"""
_MESH = {"slice": 1, "fsdp": 4, "context": 1, "tensor": 2}


def test_a_loops_body_counts_as_often_as_it_runs():
    module = program.parse(_LOOP)
    once = 2 * 4 * 16 * 16
    assert program.matrix_flops(module, once=True) == once
    assert program.matrix_flops(module) == 32 * once
    known = _LOOP.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"5"}}')
    assert program.matrix_flops(program.parse(known)) == 5 * once


def test_collectives_by_kind_axis_and_bytes():
    found = {(entry.kind, entry.axis): entry for entry in program.collectives(program.parse(_LOOP), _MESH)}
    # Seven shards of 2·16·4 bytes from the others, 32 times.
    gathered = found["all-gather", "fsdp+tensor"]
    assert (gathered.count, gathered.bytes) == (32, 32 * 7 * 128)
    # Two chips along the last axis: 4·16·4 bytes, twice, the half of which is of the other.
    assert found["all-reduce", "tensor"].bytes == 32 * 256
    assert found["collective-permute", "fsdp"].bytes == 256


def test_rows_beside_so_many_columns():
    text = _LOOP.replace(
        "  %start = ", "  %logits = (f32[3,5,77]{2,1,0}, bf16[77,4]{1,0}) custom-call(%p)\n  %start = "
    )
    assert program.most_rows(program.parse(text), 77) == 15
    assert program.most_rows(program.parse(_LOOP), 77) == 0


def test_what_crosses_between_tpu_slices_is_written_as_a_send_to_the_host():
    across = """\
  %token = token[] after-all()
  %sent = (f32[4,16]{1,0}, u32[]{:S(2)}, token[]) send(%x.1, %token), channel_id=2, is_host_transfer=true, \
frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %other = (f32[4,16]{1,0}, u32[]{:S(2)}, token[]) send(%x.1, %token), channel_id=3, is_host_transfer=true
"""
    text = _LOOP.replace("  %shard = ", f"{across}  %shard = ")
    found = program.collectives(program.parse(text), {"slice": 2, "fsdp": 2, "context": 1, "tensor": 2})
    assert [(e.kind, e.count, e.bytes) for e in found if e.axis == "slice"] == [("all-reduce", 32, 32 * 4 * 16 * 4)]


def test_groups_that_are_written_as_a_transposed_count():
    text = _LOOP.replace("[1,8]<=[8]", "[2,4]<=[4,2]T(1,0)")
    kinds = {(entry.kind, entry.axis) for entry in program.collectives(program.parse(text), _MESH)}
    assert ("all-gather", "fsdp") in kinds


def test_groups_that_are_written_as_axes_of_a_mesh():
    text = _LOOP.replace("{{0,1},{2,3},{4,5},{6,7}}", "mesh['axis_0'=4,'axis_1'=2] {'axis_0'}")
    found = {(entry.kind, entry.axis): entry.bytes for entry in program.collectives(program.parse(text), _MESH)}
    assert found["all-reduce", "fsdp"] == 32 * 2 * 256 * 3 / 4


def test_a_fused_sum_and_slice_is_a_reduce_scatter():
    text = """\
%all-reduce-scatter.1 (input: f32[16,8]) -> f32[4,8] {
  %input = f32[16,8]{1,0} parameter(0)
  %all-reduce = f32[16,8]{1,0} all-reduce(%input), replica_groups={{0,2,4,6},{1,3,5,7}}, to_apply=%add
  %zero = s32[] constant(0)
  ROOT %slice = f32[4,8]{1,0} dynamic-slice(%all-reduce, %zero, %zero), dynamic_slice_sizes={4,8}
}

ENTRY %main (p: f32[16,8]) -> f32[4,8] {
  %p = f32[16,8]{1,0} parameter(0)
  ROOT %fusion = f32[4,8]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1
}
"""
    found = program.collectives(program.parse(text), _MESH)
    assert [(entry.kind, entry.axis, entry.bytes) for entry in found] == [
        ("reduce-scatter", "fsdp", 16 * 8 * 4 * 3 / 4)
    ]


@pytest.mark.parametrize("pad", [0, 1])
def test_convolutions_count_where_kernel_and_input_meet(pad):
    size = 6 + 2 * pad
    text = f"""\
ENTRY %main (x: f32[2,8,3], k: f32[3,3,5]) -> f32[2,{size},5] {{
  %x = f32[2,8,3]{{2,1,0}} parameter(0)
  %k = f32[3,3,5]{{2,1,0}} parameter(1)
  ROOT %c = f32[2,{size},5]{{2,1,0}} convolution(%x, %k), window={{size=3 pad={pad}_{pad}}}, dim_labels=b0f_0io->b0f
}}
"""
    meetings = 3 * size - 2 * pad
    assert program.matrix_flops(program.parse(text)) == 2 * 2 * 3 * 5 * meetings


_KERNEL = """\
  %scores.2 = (f32[4,16]{1,0}, bf16[4,16]{1,0}) custom-call(%x.1, %x.1), custom_call_target="tpu_custom_call", \
frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512}"
}}, metadata={op_name="while/body/pallas_call"}
"""


def test_a_kernel_is_counted_with_its_loop_and_what_stands_behind_its_settings_too():
    text = _LOOP.replace("  %shard = ", f"{_KERNEL}  %shard = ")
    module = program.parse(text)
    # Two arguments of f32, results of f32 and bf16: 64 numbers each.
    assert program.kernels(module) == [program.Kernel("scores", 32, 32 * 64 * (4 + 4 + 4 + 2))]
    assert program.matrix_flops(module) == program.matrix_flops(program.parse(_LOOP)) > 0
    assert not program.kernels(program.parse(_LOOP))


def test_what_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        program.parse("nothing")


def test_a_gather_that_goes_on_beside_other_fusions_is_one():
    gather = (
        "  %gathered = f32[4,8]{1,0} all-gather(%p), channel_id=7, replica_groups={{0,2,4,6},{1,3,5,7}}, "
        'dimensions={0}, frontend_attributes={chain_id="0"}'
    )
    text = f"""\
%begin (p: f32[1,8]) -> f32[4,8] {{
  %p = f32[1,8]{{1,0}} parameter(0)
{gather}
  ROOT %started = f32[4,8]{{1,0}} custom-call(%gathered), custom_call_target="AsyncCollectiveStart"
}}

%beside (p: f32[1,8]) -> f32[4,8] {{
  %p = f32[1,8]{{1,0}} parameter(0)
{gather}
  ROOT %sum = f32[4,8]{{1,0}} add(%gathered, %gathered)
}}

%end (p: f32[1,8]) -> f32[4,8] {{
  %p = f32[1,8]{{1,0}} parameter(0)
{gather}
  ROOT %done = f32[4,8]{{1,0}} custom-call(%gathered), custom_call_target="AsyncCollectiveDone"
}}

ENTRY %main (p: f32[1,8]) -> f32[4,8] {{
  %p = f32[1,8]{{1,0}} parameter(0)
  %a = f32[4,8]{{1,0}} fusion(%p), kind=kCustom, calls=%begin
  %b = f32[4,8]{{1,0}} fusion(%p), kind=kCustom, calls=%beside
  ROOT %c = f32[4,8]{{1,0}} fusion(%p), kind=kCustom, calls=%end
}}
"""
    found = program.collectives(program.parse(text), _MESH)
    assert [(entry.kind, entry.axis, entry.count, entry.bytes) for entry in found] == [
        ("all-gather", "fsdp", 1, 3 * 8 * 4)
    ]
