"""Collectives read from compiled programs."""

import pytest

from reporting import hlo

PROGRAM = """\
HloModule jit_f, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%add (x: s32[], y: s32[]) -> s32[] {
  ROOT %sum = s32[] add(%x, %y)
}

%body (p: (s32[], s32[1,4])) -> (s32[], s32[1,4]) {
  %ar = (s32[], s32[1,4]{1,0}) all-reduce(%a, %b), to_apply=%add
  ROOT %t = (s32[], s32[1,4]) tuple(%c, %d)
}

%condition (p: (s32[], s32[1,4])) -> pred[] {
  ROOT %lt = pred[] all-reduce(%x), to_apply=%add
}

%taken (p: bf16[8]) -> bf16[16] {
  ROOT %ag = bf16[16]{0} all-gather(%p), dimensions={0}
}

%skipped (p: bf16[8]) -> bf16[16] {
  ROOT %b = bf16[16]{0} broadcast(%p)
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %w = (s32[], s32[1,4]) while(%init), condition=%condition, body=%body
  %known = (s32[], s32[1,4]) while(%w), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  %c = bf16[16] conditional(%x), branch_computations={%taken, %skipped}
  ROOT %cp = f32[8]{0} collective-permute-start(%x), source_target_pairs={{0,1}}
}
"""


def test_collectives_are_counted_with_the_loops_around_them():
    found = hlo.collectives(PROGRAM, passes=16)
    sums = [(c.size, c.times) for c in found if c.kind == "all-reduce"]
    assert sorted(sums) == [(1, 3), (1, 16), (20, 3), (20, 16)]
    assert hlo.moved(found, hlo.SUMS) == 19 * 21
    assert hlo.moved(found, ("all-gather",)) == 32
    assert hlo.moved(found, hlo.MOVES) == 32 + 32


def test_other_text_is_refused():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        hlo.collectives("some text", passes=1)
