# SPDX-License-Identifier: MIT
"""Every lane-wise instruction against NumPy, over boundary values, for full and partial warps."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from machine import Machine

WORDS = {
    "u32": [0, 1, 2, 3, 31, 32, 33, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF,
            0x80000000, 0x80000001, 0xFFFFFFFE, 0xFFFFFFFF, 0xDEADBEEF],
    "u64": [0, 1, 2, 63, 64, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 32, (1 << 63) - 1, 1 << 63,
            (1 << 63) + 1, (1 << 64) - 2, (1 << 64) - 1, 0x0123456789ABCDEF],
    "f32": [0.0, -0.0, 1.0, -1.0, 0.1, 3.0, 1e-45, -1e-40, 1.17549435e-38, 65504.0, 3.4028235e38,
            -3.4028235e38, np.inf, -np.inf, np.nan, 1.00390625, 1.01171875, 16777217.0],
}
NAN = 0x7FFFFFFF


def numpy_type(name):
    return np.dtype({"b32": "u4", "u32": "u4", "s32": "i4", "f32": "f4", "b64": "u8", "u64": "u8",
                     "s64": "i8", "u16": "u2", "s16": "i2", "u8": "u1", "s8": "i1"}[name])


def values(name):
    dtype = numpy_type(name)
    if name == "f32":
        return np.array(WORDS["f32"], dtype)
    return np.array(WORDS["u64" if dtype.itemsize == 8 else "u32"],
                    f"u{dtype.itemsize}").view(dtype)


def operands(*names):
    """Every combination of the boundary values of these types, as one array each."""
    columns = zip(*itertools.product(*(values(n) for n in names)), strict=True)
    return [np.array(c, numpy_type(n)) for c, n in zip(columns, names, strict=True)]


def compute(statement, inputs, out_type, guard=""):
    """What `statement` makes of %a, %b, %c in %d: one thread per element.

    guard: threads with one of its bits in their number skip the statement and keep 77.  Several
    statements are a block in braces.
    """
    count = len(inputs[0])
    machine = Machine()
    body = [f"setp.ge.u32 q7, r1, {count};", "@q7 exit;", "cvt.u64.u32 d15, r1;"]
    for k, (array, letter) in enumerate(zip(inputs, "abc", strict=False)):
        size = array.dtype.itemsize
        register = f"d{4 + k}" if size == 8 else f"r{4 + k}"
        body += [f"mad.wide.u32 d14, r1, {size}, d{k};",
                 f"ld.global.b{8 * size} {register}, [d14];"]
        statement = statement.replace(f"%{letter}", register)
    size = numpy_type(out_type).itemsize
    out = "d9" if size == 8 else "r9"
    body += [f"mov.b{8 * size} {out}, 77;", f"and.b32 r10, r1, {guard or 0};",
             "setp.eq.u32 q6, r10, 0;"]
    statement = statement.replace("%d", out)
    body += ["@!q6 bra $skip;", statement, "$skip:"] if "{" in statement else [f"@q6 {statement}"]
    body += [f"mad.wide.u32 d14, r1, {size}, d3;", f"st.global.b{8 * size} [d14], {out};"]
    addresses = [machine.array(a) for a in inputs] + [0] * (3 - len(inputs))
    out_va = machine.space(count * size)
    machine.run("\n".join(body), *addresses, out_va, grid=-(-count // 64), block=64)
    return machine.fetch(out_va, numpy_type(out_type), count)


def check(statement, names, out_type, want):
    inputs = operands(*names)
    with np.errstate(all="ignore"):
        expected = np.asarray(want(*inputs)).astype(numpy_type(out_type))
    if out_type == "f32":
        expected = expected.view("u4").copy()
        expected[np.isnan(expected.view("f4"))] = NAN
    for guard in (0, 5):                # all lanes; those whose number has neither bit
        got = compute(statement, inputs, out_type, guard)
        taken = (np.arange(len(got)) & guard) == 0
        got = got.view(expected.dtype)
        wrong = np.flatnonzero(got[taken] != expected[taken])
        assert not wrong.size, [(a[taken][wrong[0]]) for a in inputs]
        assert (got[~taken] == 77).all()


@pytest.mark.parametrize("t", ["u32", "s32", "u64", "s64"])
@pytest.mark.parametrize(("op", "want"), [
    ("add", np.add), ("sub", np.subtract), ("mul.lo", np.multiply), ("min", np.minimum),
    ("max", np.maximum),
])
def test_integer_arithmetic(op, want, t):
    check(f"{op}.{t} %d, %a, %b;", (t, t), t, want)


@pytest.mark.parametrize("t", ["u32", "s32", "u64", "s64"])
def test_divide(t):
    dtype = numpy_type(t)
    a, b = operands(t, t)
    a, b = a[b != 0], b[b != 0]
    quotient, rest = [], []
    for x, y in zip(a.tolist(), b.tolist(), strict=True):
        q = abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)     # towards zero
        quotient.append(q & (1 << 8 * dtype.itemsize) - 1)           # the one overflow wraps
        rest.append((x - q * y) & (1 << 8 * dtype.itemsize) - 1)
    unsigned = np.dtype(f"u{dtype.itemsize}")
    got = compute(f"div.{t} %d, %a, %b;", [a, b], t).view(unsigned)
    assert np.array_equal(got, np.array(quotient, unsigned))
    got = compute(f"rem.{t} %d, %a, %b;", [a, b], t).view(unsigned)
    assert np.array_equal(got, np.array(rest, unsigned))


@pytest.mark.parametrize("t", ["u32", "s32"])
def test_wide(t):
    wide = {"u32": "u64", "s32": "s64"}[t]
    out = numpy_type(wide)
    check(f"mul.wide.{t} %d, %a, %b;", (t, t), wide,
          lambda a, b: a.astype(out) * b.astype(out))
    check(f"mad.wide.{t} %d, %a, %b, %c;", (t, t, wide), wide,
          lambda a, b, c: a.astype(out) * b.astype(out) + c)


@pytest.mark.parametrize("t", ["u32", "s64"])
def test_mad_lo(t):
    check(f"mad.lo.{t} %d, %a, %b, %c;", (t, t, t), t, lambda a, b, c: a * b + c)


@pytest.mark.parametrize("t", ["b32", "b64"])
def test_bits(t):
    for op, want in (("and", np.bitwise_and), ("or", np.bitwise_or), ("xor", np.bitwise_xor)):
        check(f"{op}.{t} %d, %a, %b;", (t, t), t, want)
    check(f"not.{t} %d, %a;", (t,), t, np.invert)
    check(f"mov.{t} %d, %a;", (t,), t, lambda a: a)
    bits = 8 * numpy_type(t).itemsize
    check(f"popc.{t} %d, %a;", (t,), "u32", lambda a: [int(x).bit_count() for x in a])
    check(f"clz.{t} %d, %a;", (t,), "u32", lambda a: [bits - int(x).bit_length() for x in a])
    check(f"brev.{t} %d, %a;", (t,), t,
          lambda a: np.array([int(f"{int(x):0{bits}b}"[::-1], 2) for x in a], a.dtype))


@pytest.mark.parametrize("t", ["s32", "s64"])
def test_neg(t):
    check(f"neg.{t} %d, %a;", (t,), t, np.negative)


@pytest.mark.parametrize("t", ["b32", "u32", "s32", "b64", "u64", "s64"])
def test_shift(t):
    """Amounts are 32 bits wide and stop at the width."""
    bits = 8 * numpy_type(t).itemsize
    mask = (1 << bits) - 1

    def left(a, b):
        return np.array([int(x) << min(int(n), bits) & mask for x, n in zip(a, b, strict=True)],
                        f"u{bits // 8}").view(a.dtype)

    def right(a, b):
        return np.array([(int(x) >> min(int(n), bits)) & mask for x, n in zip(a, b, strict=True)],
                        f"u{bits // 8}").view(a.dtype)

    if t.startswith("b"):
        check(f"shl.{t} %d, %a, %b;", (t, "u32"), t, left)
    check(f"shr.{t} %d, %a, %b;", (t, "u32"), t, right)


COMPARE = {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal,
           "gt": np.greater, "ge": np.greater_equal}


@pytest.mark.parametrize("t", ["u32", "s32", "u64", "s64", "f32"])
def test_setp(t):
    a, b = operands(t, t)
    for cmp, want in COMPARE.items():
        statement = f"{{ .reg .pred z; setp.{cmp}.{t} z, %a, %b; selp.b32 %d, 1, 2, z; }}"
        expected = want(a, b)
        if t == "f32":
            expected = expected & ~np.isnan(a) & ~np.isnan(b)      # ne too is an ordered compare
        got = compute(statement, [a, b], "u32")
        assert np.array_equal(got, np.where(expected, 1, 2)), cmp


@pytest.mark.parametrize("negated", ["", "!"])
@pytest.mark.parametrize(("word", "want"), [
    ("and", np.logical_and), ("or", np.logical_or), ("xor", np.logical_xor)])
def test_setp_combines(word, want, negated):
    a, b, c = operands("u32", "u32", "u32")
    got = compute(
        f"{{ .reg .pred x, y, z; setp.ne.u32 z, %c, 0; setp.lt.{word}.u32 x|y, %a, %b, {negated}z;"
        " selp.b32 r20, 1, 0, x; selp.b32 r21, 2, 0, y; or.b32 %d, r20, r21; }", [a, b, c], "u32")
    third = (c == 0) if negated else (c != 0)
    expected = want(a < b, third) + 2 * want(a >= b, third)
    assert np.array_equal(got, expected)


def test_predicate_logic():
    a, b = operands("u32", "u32")
    got = compute(
        "{ .reg .pred x, y, z; setp.lt.u32 x, %a, 100; setp.lt.u32 y, %b, 100;"
        " and.pred z, x, y; selp.b32 r20, 1, 0, z; or.pred z, x, y; selp.b32 r21, 2, 0, z;"
        " xor.pred z, x, y; selp.b32 r22, 4, 0, z; not.pred z, x; selp.b32 r23, 8, 0, z;"
        " mov.pred z, y; selp.b32 r24, 16, 0, z; add.u32 r20, r20, r21; add.u32 r20, r20, r22;"
        " add.u32 r20, r20, r23; add.u32 %d, r20, r24; }", [a, b], "u32")
    x, y = a < 100, b < 100
    assert np.array_equal(got, (x & y) + 2 * (x | y) + 4 * (x ^ y) + 8 * ~x + 16 * y)


@pytest.mark.parametrize("t", ["b32", "b64"])
def test_selp(t):
    a, b = operands(t, t)
    got = compute(f"{{ .reg .pred z; setp.lt.u32 z, r1, 50; selp.{t} %d, %a, %b, z; }}", [a, b], t)
    assert np.array_equal(got, np.where(np.arange(len(a)) < 50, a, b))


@pytest.mark.parametrize("to", ["u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"])
@pytest.mark.parametrize("of", ["u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"])
def test_cvt(to, of):
    source = values("u64" if of.endswith("64") else "u32")
    held = "u64" if to == "u64" else "s64" if to == "s64" else "s32" if to[0] == "s" else "u32"
    narrow = source.astype(numpy_type(of)) if of not in ("s64",) else source.view("i8")
    got = compute(f"cvt.{to}.{of} %d, %a;", [source], held)
    assert np.array_equal(got, narrow.astype(numpy_type(to)).astype(numpy_type(held)))


def test_f32():
    check("add.f32 %d, %a, %b;", ("f32", "f32"), "f32", np.add)
    check("mul.f32 %d, %a, %b;", ("f32", "f32"), "f32", np.multiply)
    check("sub.f32 %d, %a, %b;", ("f32", "f32"), "f32", np.subtract)
    check("div.rn.f32 %d, %a, %b;", ("f32", "f32"), "f32", np.divide)
    check("abs.f32 %d, %a;", ("f32",), "f32", np.abs)
    check("neg.f32 %d, %a;", ("f32",), "f32", np.negative)


@pytest.mark.parametrize(("op", "want", "zero"), [("min", np.fmin, -0.0), ("max", np.fmax, 0.0)])
def test_f32_min_max(op, want, zero):
    """Of a NaN and a number the number; of the zeros, which NumPy takes for equal, -0 is less."""
    def expected(a, b):
        signs = np.signbit(a) != np.signbit(b)
        return np.where((a == 0) & (b == 0) & signs, np.float32(zero), want(a, b))

    check(f"{op}.f32 %d, %a, %b;", ("f32", "f32"), "f32", expected)


@pytest.mark.parametrize("t", ["u32", "s32"])
def test_cvt_f32_of_integers(t):
    check(f"cvt.rn.f32.{t} %d, %a;", (t,), "f32", lambda a: a.astype("f4"))
    odd = np.arange(2**24 - 9, 2**24 + 9).astype(numpy_type(t))      # halfway between two floats
    assert np.array_equal(compute(f"cvt.rn.f32.{t} %d, %a;", [odd], "f32"), odd.astype("f4"))


def test_cvt_floor():
    """To the integer below, or the nearest there is; a NaN is 0."""
    a = np.concatenate([values("f32"), np.array([-1.5, -0.5, 0.5, 1.5, -2.0, 2.0, -1e-30, 8388607.5,
                                                 2147483520, 2147483648, -2147483648, -2147483904,
                                                 np.inf, -np.inf, -np.nan, 1e20, -1e20], "f4")])
    want = np.nan_to_num(np.clip(np.floor(a.astype("f8")), -2**31, 2**31 - 1)).astype("i4")
    assert np.array_equal(compute("cvt.rmi.s32.f32 %d, %a;", [a], "s32"), want)
    assert np.array_equal(compute("cvt.rmi.s32.f32 %d, %a;", [a], "s64"), want)


def test_ex2_and_lg2():
    """Within a last bit of what double precision makes of it; the ends are exact."""
    a = np.concatenate([values("f32"), np.arange(-152, 132, 0.37).astype("f4"),
                        np.arange(-152, 132).astype("f4"),
                        np.exp2(np.linspace(-149, 127.9, 1000)).astype("f4"),
                        np.linspace(0.9, 1.1, 500).astype("f4")])
    for op, exact in ("ex2", np.exp2), ("lg2", np.log2):
        got = compute(f"{op}.approx.f32 %d, %a;", [a], "f32")
        with np.errstate(all="ignore"):
            wide = exact(a.astype("f8"))
            want = wide.astype("f4")
            near = np.abs(got - wide) <= np.spacing(np.abs(want))
        same = (got == want) | (np.isnan(got) & np.isnan(want))
        assert (same | near).all(), op
        assert (same[~np.isfinite(want) | (wide == np.round(wide))]).all(), op
        assert (got.view("u4")[np.isnan(got)] == NAN).all()


def e4m3(x):
    """Bytes of float8_e4m3fn with what is above its range brought to its largest number."""
    with np.errstate(all="ignore"):
        near = np.clip(x, -448, 448).astype(ml_dtypes.float8_e4m3fn).view("u1").astype("u4")
    return np.where(np.isnan(x), 0x7F, near)


def e4m3_inputs():
    """All E4M3 numbers, all that lie halfway and their neighbours, all bf16, and the ends."""
    numbers = np.arange(127, dtype="u1").view(ml_dtypes.float8_e4m3fn).astype("f4")
    ties = (numbers[1:] + numbers[:-1]) / 2
    near = np.concatenate([numbers, ties, [464, 480, 3e38, 2**-10, 1e-44, np.inf]]).astype("f4")
    near = np.concatenate([near, np.nextafter(near, np.float32(0)),
                           np.nextafter(near, np.float32(np.inf)), [np.nan]]).astype("f4")
    bf16 = (np.arange(2**16, dtype="u4") << 16).view("f4")
    with np.errstate(all="ignore"):
        scaled = [bf16 * np.float32(scale) for scale in (1.1, 1 / 3, 448 / 5.7)]
    return np.concatenate([near, -near, bf16, *scaled]).astype("f4")


def test_cvt_e4m3x2():
    a = e4m3_inputs()
    b = a[::-1].copy()
    got = compute("{ .reg .b16 h; cvt.rn.satfinite.e4m3x2.f32 h, %a, %b; cvt.u32.u16 %d, h; }",
                  [a, b], "u32")
    assert np.array_equal(got, e4m3(a) << 8 | e4m3(b))


@pytest.mark.parametrize("statement", [
    # The upper half of a .b16 register's lane is nobody's business; through memory too.
    "cvt.s16.s32 h0, %a; mov.b32 {h1, _}, %b; mov.b32 %d, {h0, h1};",
    "mov.b32 {_, h2}, %b; mov.b32 {h0, h1}, %a; mov.b32 r20, {h1, h2}; mov.b32 {_, h2}, r20;"
    " mov.b32 {h1, _}, %b; mov.b32 %d, {h0, h1};",
    "mov.b32 {h0, _}, %a; st.shared.b16 [smem], h0; ld.shared.s16 h2, [smem]; mov.b32 {h1, _}, %b;"
    " st.shared.b16 [smem + 2], h1; ld.shared.b16 h3, [smem + 2]; mov.b32 %d, {h2, h3};",
])
def test_halves_of_a_word(statement):
    a, b = operands("u32", "u32")
    if "smem" in statement:              # of one thread
        machine = Machine()
        for x, y in zip(a[::17].tolist(), b[::17].tolist(), strict=True):
            out = machine.space(4)
            body = statement.replace("%a", f"{x:#x}").replace("%b", "r5").replace("%d", "r9")
            body = body.replace(f"{x:#x};", "r4;")
            machine.run(f"mov.b32 r4, {x};\nmov.b32 r5, {y};\n{{ .reg .b16 h<4>; {body} }}\n"
                        "st.global.b32 [d0], r9;", out, block=1, smem=16)
            assert machine.fetch(out, "u4", 1)[0] == (x & 0xFFFF | y << 16 & 0xFFFF0000)
        return
    got = compute(f"{{ .reg .b16 h<4>; {statement} }}", [a, b], "u32")
    assert np.array_equal(got, a & 0xFFFF | b << 16)


def test_halves_of_a_double_word():
    check("mov.b64 %d, {%a, %b};", ("u32", "u32"), "u64",
          lambda a, b: a.astype("u8") | b.astype("u8") << 32)
    check("mov.b64 %d, {%a, 7};", ("u32",), "u64", lambda a: a.astype("u8") | 7 << 32)
    check("mov.b64 {%d, _}, %a;", ("u64",), "u32", lambda a: a & 0xFFFFFFFF)
    check("mov.b64 {_, %d}, %a;", ("u64",), "u32", lambda a: a >> np.uint64(32))
    check("{ mov.b64 {r20, r21}, %a; xor.b32 %d, r20, r21; }", ("u64",), "u32",
          lambda a: (a & 0xFFFFFFFF) ^ (a >> np.uint64(32)))


def test_mul_hi():
    check("mul.hi.u32 %d, %a, %b;", ("u32", "u32"), "u32",
          lambda a, b: a.astype("u8") * b.astype("u8") >> np.uint64(32))


def test_bfe():
    """A position or length is its low byte; what lies above the word is 0."""
    def want(a, b, c):
        return [(x >> (p & 255)) & ((1 << (n & 255)) - 1)
                for x, p, n in zip(a.tolist(), b.tolist(), c.tolist(), strict=True)]

    check("bfe.u32 %d, %a, %b, %c;", ("u32", "u32", "u32"), "u32", want)
    a, b, c = (np.array(x, "u4") for x in zip(*itertools.product(
        [0xDEADBEEF, 0x80000001], range(34), range(34)), strict=True))
    assert np.array_equal(compute("bfe.u32 %d, %a, %b, %c;", [a, b, c], "u32"), want(a, b, c))


def test_prmt():
    random = np.random.default_rng(0)
    a, b, selector = random.integers(0, 2**32, (3, 2000), dtype="u4")
    rows = np.stack([a, b], axis=1).astype("<u4").view("u1").reshape(-1, 8)
    want = np.zeros(len(a), "u4")
    for i in range(4):
        nibble = selector >> 4 * i & 15
        byte = rows[np.arange(len(a)), nibble & 7].astype("u4")
        want |= np.where(nibble & 8, (byte >> 7) * 255, byte).astype("u4") << 8 * i
    assert np.array_equal(compute("prmt.b32 %d, %a, %b, %c;", [a, b, selector], "u32"), want)


@pytest.mark.parametrize("mask", [0xFFFFFFFF, 0x0FF0F00F])
def test_match(mask):
    """Lanes of the mask only; the register may be the value's own."""
    values_ = np.random.default_rng(mask).integers(0, 5, 32, dtype="u4")
    machine = Machine()
    out = machine.array(np.full(32, 77, "u4"))
    machine.run(f"mov.u32 r4, %lanemask_eq;\nand.b32 r4, r4, {mask:#x};\nsetp.ne.u32 q0, r4, 0;\n"
                "mad.wide.u32 d4, r0, 4, d0;\nmad.wide.u32 d5, r0, 4, d1;\n"
                f"ld.global.u32 r5, [d4];\n@q0 match.any.sync.b32 r5, r5, {mask:#x};\n"
                "@q0 st.global.u32 [d5], r5;", machine.array(values_), out)
    lanes = [lane for lane in range(32) if mask >> lane & 1]
    want = np.full(32, 77, "u4")
    for lane in lanes:
        want[lane] = sum(1 << other for other in lanes if values_[other] == values_[lane])
    assert np.array_equal(machine.fetch(out, "u4", 32), want)


def test_fma_rounds_once():
    a, b, c = operands("f32", "f32", "f32")
    got = compute("fma.rn.f32 %d, %a, %b, %c;", [a, b, c], "f32")
    with np.errstate(all="ignore"):
        exact = a.astype(np.longdouble) * b.astype(np.longdouble) + c.astype(np.longdouble)
        want = exact.astype("f4")
    # Where 64 bits of significand cannot hold the sum, the two may differ by a rounding.
    close = np.isclose(got, want, rtol=2**-23, equal_nan=True)
    assert close.all()
    assert (got.view("u4")[np.isnan(got)] == NAN).all()
    small = (np.abs(a) < 1e5) & (np.abs(b) < 1e5) & (np.abs(c) < 1e5) & (np.abs(exact) > 1e-30)
    assert np.array_equal(got[small], want[small])


def test_cvt_bf16x2():
    """NumPy's bfloat16 as the second opinion; ties go to even, a NaN is 0x7fff."""
    ties = np.arange(0x3F800000, 0x3F840000, 0x1000, dtype="u4").view("f4")
    a = np.concatenate([values("f32"), ties])
    b = a[::-1].copy()
    got = compute("cvt.rn.bf16x2.f32 %d, %a, %b;", [a, b], "u32")

    def bits(x):
        with np.errstate(all="ignore"):
            rounded = x.astype(ml_dtypes.bfloat16).view("u2").astype("u4")
        return np.where(np.isnan(x), 0x7FFF, rounded)

    assert np.array_equal(got, bits(a) << 16 | bits(b))


def test_special_registers():
    names = ["tid.x", "ntid.x", "ctaid.x", "nctaid.x", "laneid", "warpid", "lanemask_lt",
             "lanemask_le", "lanemask_eq", "lanemask_ge", "lanemask_gt"]
    machine = Machine()
    out = machine.space(4 * len(names) * 2 * 96)
    body = [f"mul.lo.u32 r10, r1, {4 * len(names)};", "cvt.u64.u32 d4, r10;", "add.u64 d4, d0, d4;"]
    for n, name in enumerate(names):
        body += [f"mov.u32 r11, %{name};", f"st.global.u32 [d4 + {4 * n}], r11;"]
    machine.run("\n".join(body), out, grid=2, block=96)
    got = machine.fetch(out, "u4", len(names) * 192).reshape(192, len(names))
    thread = np.arange(192)
    lane = thread % 32
    bit = np.uint64(1) << lane.astype("u8")
    want = [thread % 96, np.full(192, 96), thread // 96, np.full(192, 2), lane, thread % 96 // 32,
            bit - 1, 2 * bit - 1, bit, 2**32 - bit, 2**32 - 2 * bit]
    assert np.array_equal(got, np.stack(want, axis=1).astype("u4"))
