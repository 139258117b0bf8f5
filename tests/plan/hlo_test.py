"""A small program's text, taken apart."""

import pytest

from seed_jax.plan import hlo

TEXT = """HloModule jit_step, is_scheduled=true

%fused (param_0: bf16[8,64]) -> bf16[64,64] {
  %param_0 = bf16[8,64]{1,0} parameter(0)
  ROOT %all-gather.1 = bf16[64,64]{1,0:T(8,128)(2,1)} all-gather(%param_0), channel_id=3, replica_groups=[2,4]<=[8], dimensions={0}, frontend_attributes={chain_id="1"}
}

%body (state: (s32[], bf16[8,64])) -> (s32[], bf16[8,64]) {
  %state = (s32[]{:T(128)}, bf16[8,64]{1,0}) parameter(0)
  %kernel = (f32[8,64]{1,0}, /*index=1*/f32[8]{0}) custom-call(%state), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"block": 512
}}, metadata={op_name="x"}
  %fusion.1 = bf16[64,64]{1,0} fusion(%kernel), kind=kOutput, calls=%fused, backend_config={"window_config":{"estimated_cycles":"100"}}
  %fusion.2 = bf16[64,64]{1,0} fusion(%kernel), kind=kOutput, calls=%fused
  %all-reduce.2 = (f32[16]{0}, bf16[4,4]{1,0}) all-reduce(%fusion.1, %fusion.2), channel_id=4, replica_groups=mesh['a'=2,'b'=4] {'a'}, to_apply=%add
  ROOT %tuple = (s32[]{:T(128)}, bf16[8,64]{1,0}) tuple(%state)
}

%condition (state: (s32[], bf16[8,64])) -> pred[] {
  %state.1 = (s32[]{:T(128)}, bf16[8,64]{1,0}) parameter(0)
  %bound = s32[]{:T(128)} constant(32)
  %counter = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%counter, %bound), direction=LT
}

%all-reduce-scatter.1 (input: bf16[64,64]) -> bf16[8,64] {
  %input = bf16[64,64]{1,0} parameter(0)
  %all-reduce.9 = bf16[64,64]{1,0} all-reduce(%input), channel_id=9, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %other = bf16[64]{0} all-to-all(%input), channel_id=9, replica_groups={{0,1}}
  %another = bf16[64]{0} all-to-all(%input), channel_id=9, replica_groups={{0,1}}
  ROOT %slice = bf16[8,64]{1,0} dynamic-slice(%all-reduce.9)
}

ENTRY %main (p: bf16[8,64]) -> bf16[8,64] {
  %p = bf16[8,64]{1,0} parameter(0)
  %while.1 = (s32[]{:T(128)}, bf16[8,64]{1,0}) while(%p), condition=%condition, body=%body
  %scattered = bf16[8,64]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1
  %copy.1 = bf16[8,64]{1,0} copy(%p), backend_config={"window_config":{"estimated_cycles":"7"}}
  %copy.2 = bf16[8,64]{1,0} copy(%p), backend_config={"window_config":{"estimated_cycles":"9223372036854775807"}}
  ROOT %collective-permute-start.1 = (bf16[8,64]{1,0}, bf16[8,64]{1,0}, u32[], u32[]) collective-permute-start(%copy.1), channel_id=5, source_target_pairs={{0,1},{1,2}}
}
"""  # noqa: E501


def test_loops_count_as_often_as_they_run():
    module = hlo.parse(TEXT)
    assert module.entry == "main"
    assert {name: module.times[name] for name in ("main", "body", "fused")} == {"main": 1, "body": 32, "fused": 64}
    assert hlo.cycles(module) == 32 * 100 + 7
    assert hlo.kernels(module) == 32


def test_a_gather_that_fusions_share_is_one_exchange_and_others_count_each():
    found = {each.kind: each for each in hlo.collectives(hlo.parse(TEXT))}
    gather = found["all-gather"]
    # Reached by two fusions of the same computation; 64 x 64 in 16 bits each of 32 times, twice.
    assert (gather.payload, gather.times, gather.group, gather.overlaps) == (8192, 64, (0, 1, 2, 3), True)
    reduce = found["all-reduce"]
    assert (reduce.payload, reduce.times, reduce.group, reduce.overlaps) == (16 * 4 + 16 * 2, 32, (0, 4), False)
    scatter = found["reduce-scatter"]  # written as a sum of which each device takes its slice
    assert (scatter.payload, scatter.times, len(scatter.group)) == (8192, 1, 8)
    assert sum(each.kind == "all-to-all" for each in hlo.collectives(hlo.parse(TEXT))) == 2  # of one channel
    permute = found["collective-permute"]
    assert (permute.payload, permute.group, permute.overlaps) == (1024, (0, 1), True)


@pytest.mark.parametrize(
    ("written", "group"),
    [
        ("replica_groups={{0,2},{1,3}}", (0, 2)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("replica_groups=[1,8]<=[8]", tuple(range(8))),
        ("replica_groups=mesh['x'=2,'y'=4] {'y'}", (0, 1, 2, 3)),
        ("replica_groups=mesh['x'=2,'y'=4] {'x','y'}", tuple(range(8))),
        ("replica_groups=mesh['x'=8] {'x':(2)2}", (0, 2)),
        ("channel_id=1", ()),
    ],
)
def test_groups_are_read_however_they_are_written(written, group):
    assert hlo.first_group(written) == group


def test_what_did_not_fit_says_how_much_it_needs():
    message = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory. Used 56.5G of 15.75G hbm."
    assert hlo.memory_needed(message) == int(56.5 * 2**30)
    message = (
        "RESOURCE_EXHAUSTED: the total memory required for HLO temporaries (20.52G) exceeds available HBM (15.75G)."
    )
    assert hlo.memory_needed(message) == int(20.52 * 2**30)
    assert hlo.memory_needed("INTERNAL: other") is None
