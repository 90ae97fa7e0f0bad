"""The text of compiled programs: what is read of it, and what is counted in it, against loops and formulas."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxcl import mesh as mesh_lib
from jaxcl.plan import hlo
from jaxcl.plan.cost import Collective, cost, valid_positions


def module(entry, *computations, devices=1):
    """The text of a program from the lines of its computations."""
    head = f"HloModule jit_step, is_scheduled=true, num_partitions={devices}\n\n"
    return head + "\n\n".join([*computations, f"ENTRY %main (p: f32[]) -> f32[] {{\n{entry}\n}}\n"])


def test_shapes_of_a_type():
    text = (
        "(f32[8,128]{1,0:T(8,128)S(1)}, /*index=1*/bf16[3]{0:T(256)(2,1)}, pred[], s4[3]{0}, u32[]{:S(2)}, f8e4m3fn[5],"
        " token[], f32[<=6,2])"
    )
    found = hlo.shapes(text)
    assert [str(s) for s in found[:3]] == ["f32[8,128]", "bf16[3]", "pred[]"]
    assert [s.bytes for s in found] == [4096, 6, 1, 2, 4, 5, 0, 48]
    assert [s.near for s in found] == [True, False, False, False, True, False, False, False]


def test_instructions_of_a_tpu_program():
    line = (
        "  ROOT %fusion.7 = (bf16[2,4]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) fusion(%a.1, /*index=1*/%b-c), kind=kOutput,"
        ' calls=%fused.2, metadata={op_name="jit(step)/jvp(ResNet)/conv" stack_frame_id=3}, backend_config={"x":["(1)"]}'
    )
    text = module(f"  %a.1 = f32[] parameter(0)\n  %b-c = s32[] constant(-3)\n{line}")
    program = hlo.parse(text)
    entry = program.computations[program.entry]
    root = entry.root
    assert (root.name, root.opcode, root.operands) == ("fusion.7", "fusion", ("a.1", "b-c"))
    assert root.op_name == "jit(step)/jvp(ResNet)/conv"
    assert root.callee("calls") == "fused.2"
    assert entry.instructions["b-c"].argument == "-3"
    assert entry.parameters[0].name == "a.1"
    assert [i.name for i in entry.readers["a.1"]] == ["fusion.7"]


def test_no_program():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        hlo.parse("module @jit_step {}")


def test_positions_of_a_convolution_against_loops():
    rng = np.random.default_rng(0)
    for _ in range(300):
        length, kernel, out = (int(n) for n in rng.integers(1, 7, 3))
        stride, left, right = (int(n) for n in rng.integers(1, 4, 3))
        low = int(rng.integers(-2, 4))
        count = 0
        for o, k, i in itertools.product(range(out), range(kernel), range(length)):
            count += o * stride + k * right - low == i * left
        got = valid_positions(
            length, kernel, out, stride=stride, low=low, left_dilation=left, right_dilation=right
        )
        assert got == count


@pytest.mark.parametrize(
    ("left", "right", "out", "window", "labels", "extra", "products"),
    [
        # 3x3, stride 2, padding 1 on 8x8: of the 4 positions a side the first loses one of three.
        ((2, 8, 8, 3), (3, 3, 3, 5), (2, 4, 4, 5), "size=3x3 stride=2x2 pad=1_0x1_0", "b01f_01io->b01f", "", 2 * 3 * 5 * 11**2),
        # Its gradient with respect to the input: a dilated input, the same products.
        ((2, 4, 4, 5), (3, 3, 3, 5), (2, 8, 8, 3), "size=3x3 pad=1_2x1_2 lhs_dilate=2x2", "b01f_01oi->b01f", "", 2 * 3 * 5 * 11**2),
        # A 1x1 as a matrix product, no window at all.
        ((6, 7), (7, 9), (6, 9), "", "bf_io->bf", "", 6 * 7 * 9),
        # Groups of features: each output sees a fourth of the inputs.
        ((2, 5, 8), (3, 2, 12), (2, 3, 12), "size=3", "b0f_0io->b0f", ", feature_group_count=4", 2 * 3 * 3 * 2 * 12),
        # Groups of the batch: each output sees a half of the batch.
        ((4, 5, 3), (5, 3, 6), (2, 1, 6), "size=5", "b0f_0io->b0f", ", batch_group_count=2", 2 * 5 * 3 * 6),
        # A kernel cut by negative padding, as TPU's compiler makes of 3x3 on 1x1 images.
        ((1, 1, 32, 128), (128, 3, 3, 64), (64, 1, 1, 32), "size=3x3 pad=1_1x1_1 rhs_reversal=1x1", "01bf_i01o->f01b", "", 2**18),
    ],
)  # fmt: skip
def test_products_of_a_convolution(left, right, out, window, labels, extra, products):
    def array(shape):
        return f"bf16[{','.join(map(str, shape))}]"

    window = f"window={{{window}}}, " if window else ""
    text = module(
        f"  %l = {array(left)} parameter(0)\n  %r = {array(right)} parameter(1)\n"
        f"  ROOT %c = {array(out)} convolution(%l, %r), {window}dim_labels={labels}{extra}"
    )
    assert cost(hlo.parse(text)).flops == {"bf16": 2 * products}


def test_kinds_of_arithmetic():
    lines = [
        "  %a = f32[4,8] parameter(0)",
        "  %b = bf16[8,2] parameter(1)",
        "  %c = f32[8,2] parameter(2)",
    ]
    for n, (name, precision) in enumerate(
        [("c", ""), ("c", ", operand_precision={highest,highest}"), ("b", "")]
    ):
        lines.append(
            f"  %d{n} = f32[4,2] dot(%a, %{name}), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}{precision}"
        )
    flops = cost(hlo.parse(module("\n".join(lines)))).flops
    assert flops == {"f32": 2 * 2 * 4 * 8 * 2, "f32 highest": 2 * 4 * 8 * 2}


BODY = """%body (p: (s32[], s32[], f32[4,4])) -> (s32[], s32[], f32[4,4]) {
  %p = (s32[], s32[], f32[4,4]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] get-tuple-element(%p), index=1
  %x = f32[4,4] get-tuple-element(%p), index=2
  %one = s32[] constant(1)
  %next = s32[] fusion(%i, %one), kind=kLoop, calls=%plus
  %y = f32[4,4] dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %t = (s32[], s32[], f32[4,4]) tuple(%next, %n, %y)
}"""
PLUS = """%plus (a: s32[], b: s32[]) -> s32[] {
  %a = s32[] parameter(0)
  %b = s32[] parameter(1)
  ROOT %sum = s32[] add(%a, %b)
}"""
CONDITION = """%condition (q: (s32[], s32[], f32[4,4])) -> pred[] {
  %q = (s32[], s32[], f32[4,4]) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %m = s32[] get-tuple-element(%q), index=1
  ROOT %less = pred[] compare(%j, %m), direction=LT
}"""


def loop(start, end, attributes=""):
    return (
        f"  %start = s32[] {start}\n  %end = s32[] {end}\n  %z = f32[4,4] parameter(1)\n"
        "  %state = (s32[], s32[], f32[4,4]) tuple(%start, %end, %z)\n"
        f"  ROOT %w = (s32[], s32[], f32[4,4]) while(%state), condition=%condition, body=%body{attributes}"
    )


@pytest.mark.parametrize(
    ("start", "end", "attributes", "trips", "known"),
    [
        ("constant(2)", "constant(9)", "", 7, True),
        ("constant(9)", "constant(2)", "", 0, True),
        ("constant(0)", "parameter(0)", ', backend_config={"known_trip_count":{"n":"5"}}', 5, True),
        ("constant(0)", "parameter(0)", "", 1, False),
    ],
)
def test_trips_of_a_loop(start, end, attributes, trips, known):
    found = cost(hlo.parse(module(loop(start, end, attributes), PLUS, BODY, CONDITION)))
    assert found.flops.total() == trips * 2 * 4**3
    assert found.moved == trips * (3 * 64 + 3 * 4)
    assert bool(found.unknown) != known


def test_nested_loops_whose_length_depends_on_the_outer_counter():
    """As compiled here: sum over i < 6 of (6 - i) products, a branch that is the larger one, and a call."""

    def step(x, w, flag):
        def row(i, x):
            return jax.lax.fori_loop(i, 6, lambda j, x: jnp.tanh(x @ w), x)

        x = jax.lax.fori_loop(0, 6, row, x)
        return jax.lax.cond(flag, lambda x: x @ w @ w, lambda x: x, x)

    n = 24
    x = jax.ShapeDtypeStruct((n, n), jnp.float32)
    compiled = jax.jit(step).lower(x, x, jax.ShapeDtypeStruct((), bool)).compile()
    found = cost(hlo.parse(compiled.as_text()))
    assert found.flops.total() == (21 + 2) * 2 * n**3
    assert not found.unknown


GATHER = (
    "all-gather(%p), channel_id={c}, replica_groups=mesh['axis_0'=4,'axis_1'=2] {{'axis_0'}}, dimensions={{0}},"
    ' metadata={{op_name="jit(step)/jvp(ResNet)/stage2_block11/dot_general"}},'
    ' backend_config={{"async_collective_fusion_config":{{"flag_start":"{flag}","flag_end":"5"}}}}'
)


def test_a_gather_that_is_spread_over_fusions_counts_once():
    """TPUs name it in its start, in every fusion that is computed meanwhile, and at its end."""
    parts = [
        f"%part{n} (p: f32[16,8]) -> f32[64,8] {{\n  %p = f32[16,8] parameter(0)\n"
        f"  ROOT %g{n} = f32[64,8] {GATHER.format(c=7, flag=flag)}\n}}"
        for n, flag in enumerate((-1, 2, 2))
    ]
    calls = "\n".join(
        f"  %f{n} = f32[64,8] fusion(%x), kind=kCustom, calls=%part{n}" for n in range(3)
    )
    program = hlo.parse(module(f"  %x = f32[16,8] parameter(0)\n{calls}", *parts, devices=8))
    ((found, count),) = cost(program).collectives.items()
    assert count == 1
    place = "jvp(ResNet)/stage*_block*/dot_general"
    assert found == Collective("all-gather", ("f32[64,8]",), 64 * 8 * 4, 4, place)
    assert found.sent == 3 * 16 * 8 * 4


@pytest.mark.parametrize(
    ("given", "made", "gathered"),
    [
        ("%a", "(f32[16,8], f32[64,8])", ("f32[64,8]",)),
        ("%a", "(f32[16,8], f32[64,8], u32[]{:S(2)}, u32[]{:S(2)})", ("f32[64,8]",)),
        ("%a, %b", "((f32[16,8], s32[16]), (f32[64,8], s32[64]))", ("f32[64,8]", "s32[64]")),
    ],
)
def test_a_gather_in_two_halves_is_of_what_a_device_gets(given, made, gathered):
    text = module(
        "  %a = f32[16,8] parameter(0)\n  %b = s32[16] parameter(1)\n"
        f"  %g = {made} all-gather-start({given}), replica_groups={{{{0,1,2,3}}}}, dimensions={{0}}\n"
        "  ROOT %d = f32[64,8] all-gather-done(%g)",
        devices=4,
    )
    ((found, count),) = cost(hlo.parse(text)).collectives.items()
    assert (count, found.kind, found.arrays) == (1, "all-gather", gathered)
    assert found.bytes == 64 * 8 * 4 + 64 * 4 * (len(gathered) - 1)


@pytest.mark.parametrize(
    ("groups", "devices"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", 4),
        ("replica_groups=[4,2]<=[8]", 2),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", 4),
        ("replica_groups={}", 8),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0','axis_1'}", 8),
    ],
)
def test_an_all_reduce_of_several_arrays(groups, devices):
    text = module(
        '  %a = f32[10] parameter(0), metadata={op_name="a"}\n  %b = bf16[3,5] parameter(1)\n'
        f"  ROOT %r = (f32[10], bf16[3,5]) all-reduce-start(%a, %b), channel_id=1, {groups}, to_apply=%sum\n"
        "  %d = (f32[10], bf16[3,5]) all-reduce-done(%r)",
        devices=8,
    )
    ((found, count),) = cost(hlo.parse(text)).collectives.items()
    assert (count, found.bytes, found.devices) == (1, 40 + 30, devices)
    assert found.arrays == ("f32[10]", "bf16[3,5]")
    assert found.sent == pytest.approx(2 * (devices - 1) / devices * 70)


def test_collectives_of_a_ring_compiled_here():
    """A block of 12 x 8 float32 travels to each of seven others; one sum and one gather follow."""
    mesh = mesh_lib.make_mesh()
    devices = mesh.size

    def share(x):
        def hop(i, pair):
            x, total = pair
            x = jax.lax.ppermute(x, "data", [(d, (d + 1) % devices) for d in range(devices)])
            return x, total + jnp.sin(x)

        total = jax.lax.fori_loop(1, devices, hop, (x, x))[1]
        return jax.lax.psum(jnp.sum(total), "data"), jax.lax.all_gather(
            total[:1], "data", tiled=True
        )

    run = jax.jit(
        jax.shard_map(share, mesh=mesh, in_specs=P("data"), out_specs=(P(), P()), check_vma=False)
    )
    x = jax.ShapeDtypeStruct((12 * devices, 8), jnp.float32, sharding=mesh_lib.batch_sharding(mesh))
    found = cost(hlo.parse(run.lower(x).compile().as_text())).collectives
    seen = {(c.kind, c.bytes, c.devices): n for c, n in found.items()}
    assert seen == {
        ("collective-permute", 12 * 8 * 4, devices): devices - 1,
        ("all-reduce", 4, devices): 1,
        ("all-gather", devices * 8 * 4, devices): 1,
    }


def test_traffic_counts_what_is_taken_and_what_is_near_is_free():
    fused = """%fused (t: f32[100,8], i: s32[], u: f32[8]) -> f32[100,8] {
  %t = f32[100,8] parameter(0)
  %i = s32[] parameter(1)
  %u = f32[8] parameter(2)
  %zero = s32[] constant(0)
  %old = f32[1,8] dynamic-slice(%t, %i, %zero), dynamic_slice_sizes={1,8}
  %flat = f32[8] bitcast(%old)
  %new = f32[8] add(%flat, %u)
  %row = f32[1,8] bitcast(%new)
  ROOT %out = f32[100,8] dynamic-update-slice(%t, %row, %i, %zero)
}"""
    entry = """  %table = f32[100,8] parameter(0)
  %n = s32[]{:S(2)} parameter(1)
  %far = f32[8] parameter(2)
  %copy = (f32[8]{0:S(1)}, f32[8]{0}, u32[]{:S(2)}) copy-start(%far)
  %close = f32[8]{0:S(1)} copy-done(%copy)
  ROOT %f = f32[100,8] fusion(%table, %n, %close), kind=kLoop, calls=%fused"""
    # The copy reads 32 bytes; the fusion reads a row and writes a row.
    assert cost(hlo.parse(module(entry, fused))).moved == 32 + 32 + 32


def test_sizes_are_in_numbers_that_do_not_overflow():
    text = module(
        "  %a = bf16[65536,65536] parameter(0)\n"
        "  ROOT %d = bf16[65536,65536] dot(%a, %a), lhs_contracting_dims={1}, rhs_contracting_dims={0}"
    )
    assert cost(hlo.parse(text)).flops.total() == 2 * math.prod((65536,) * 3)
