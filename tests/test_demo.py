# SPDX-License-Identifier: MIT
"""The main job: its input, its experts, its verdict, and whole small runs."""

import copy
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from deepep_ptx import Buffer, RankError, reference, run_ranks
from deepep_ptx.cli import demo
from deepep_ptx.cli.demo import corpus, plot, ranks, times
from deepep_ptx.cli.measure import machine
from deepep_ptx.handle import EPHandle
from deepep_ptx.reference.floats import low_latency_cast_to_fp8

SMALL = {"num_ranks": 4, "num_tokens": 6, "hidden": 64, "num_experts": 16, "num_groups": 4,
         "num_topk_groups": 2, "num_topk": 3}


FP8 = {**SMALL, "hidden": 256, "dtype": "fp8"}
LOW_LATENCY = {**SMALL, "hidden": 256, "mode": "ll"}


class Bar:
    """Stands in for the progress bar, and counts."""

    def __init__(self, total=None, **options):
        self.total, self.moved, self.descriptions = total, 0, []

    def update(self):
        self.moved += 1

    def set_description(self, text):
        self.descriptions.append(text)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


class NumpyBuffer:
    """Buffer's calls by the reference: the demo's own part, without kernels."""

    last_launch = ("numpy",)

    get_low_latency_rdma_size_hint = Buffer.get_low_latency_rdma_size_hint

    def __init__(self, comm, arena_limit_bytes=None, policy=None, low_latency_mode=False,
                 num_rdma_bytes=0, reduce=None):
        self.comm = comm
        self.reduce = reduce
        assert low_latency_mode == (num_rdma_bytes > 0)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def get_dispatch_layout(self, topk_idx, num_experts, stream=None):
        self.num_experts = num_experts
        per_rank, per_expert, in_rank = reference.layout(topk_idx, num_experts, self.comm.size)
        return per_rank, None, per_expert, in_rank, None

    def dispatch(self, x, *, topk_idx, topk_weights, num_worst_tokens, stream=None, **layout):
        inputs = map(list, zip(*self.comm.allgather((x, topk_idx, topk_weights)), strict=True))
        received = reference.dispatch(*inputs, self.num_experts, num_worst_tokens)
        mine = received[self.comm.rank]
        handle = EPHandle._of((mine.rank_prefix_matrix,), {"recv_src_idx": mine.recv_src_idx,
                                                        "received": received})
        return (copy.deepcopy(mine.recv_x), mine.recv_topk_idx, mine.recv_topk_weights,
                mine.num_recv_tokens_per_expert_list, handle, None)

    def combine(self, x, handle, topk_weights, stream=None):
        ys, weights = zip(*self.comm.allgather((x, topk_weights)), strict=True)
        return *reference.combine(ys, handle.received, weights)[self.comm.rank], None

    def low_latency_dispatch(self, x, topk_idx, max_tokens, num_experts, *, use_fp8, **options):
        xs, topk_idxs = zip(*self.comm.allgather((x, topk_idx)), strict=True)
        self.received = reference.low_latency_dispatch(xs, topk_idxs, max_tokens, num_experts,
                                                       use_fp8)
        mine = copy.deepcopy(self.received[self.comm.rank])
        return mine.recv_x, mine.recv_count, (mine.src_info, mine.layout_range), None, None

    def low_latency_combine(self, x, topk_idx, topk_weights, handle, **options):
        ys, topk_idxs, weights = zip(*self.comm.allgather((x, topk_idx, topk_weights)), strict=True)
        combined = reference.low_latency_combine(ys, self.received, topk_idxs, weights, self.reduce)
        return combined[self.comm.rank], None, None


@pytest.fixture
def numpy_buffer(monkeypatch):
    monkeypatch.setattr(ranks, "Buffer", NumpyBuffer)


# -- corpus ----------------------------------------------------------------------------------

def test_the_shipped_text_is_prose():
    text = corpus.read_text()
    assert 20_000 < len(text) < 40_000
    tokens = corpus.tokenise(text, "words", 4000)
    assert len(tokens.vocabulary) > 700
    sentences = text.decode().split(". ")
    assert len(set(sentences)) == len(sentences), "no sentence twice"


def test_words_and_signs():
    tokens = corpus.tokenise(b"One letter, one ride.", "words", 6)
    assert [tokens.vocabulary[i] for i in tokens.idx] == ["one", "letter", ",", "one", "ride", "."]


def test_bytes():
    tokens = corpus.tokenise(b"abca", "bytes", 4)
    assert [tokens.vocabulary[i] for i in tokens.idx] == list(b"abca")


@pytest.mark.parametrize("unit", corpus.UNITS)
def test_a_short_text_starts_over(unit):
    tokens = corpus.tokenise(b"a b", unit, 7)
    period = len(corpus.tokenise(b"a b", unit, 100).vocabulary)
    assert len(tokens.idx) == 7 and np.array_equal(tokens.idx[period:], tokens.idx[:7 - period])


def test_not_utf8():
    assert len(corpus.tokenise(b"\xff\xfe caf\xe9", "words", 3).vocabulary) > 0


def test_text_without_tokens():
    with pytest.raises(ValueError, match="^text: must "):
        corpus.tokenise(b" \n ", "words", 3)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("num_tokens", [1, 2, 128])
def test_spans_tile_the_text_unevenly(num_ranks, num_tokens):
    spans = corpus.spans(num_ranks, num_tokens)
    assert spans[0].start == 0 and spans[-1].stop == num_ranks * num_tokens
    assert all(a.stop == b.start for a, b in zip(spans, spans[1:], strict=False))
    if num_ranks > 1 and num_tokens > 2:
        assert len({s.stop - s.start for s in spans}) > 1


def test_one_word_twice_gives_two_rows():
    tokens = corpus.tokenise(b"the ship the mill", "words", 4)
    x = corpus.embed(tokens, corpus.embedding_table(3, 16, np.random.default_rng(0)))
    assert x.dtype == ml_dtypes.bfloat16 and not np.array_equal(x[0], x[2])


# -- experts ---------------------------------------------------------------------------------

def test_experts_by_hand():
    rng = np.random.default_rng(1)
    experts = demo.Experts.seeded(6, rng)
    x = rng.standard_normal((5, 8)).astype(ml_dtypes.bfloat16)
    topk_idx = np.array([[0, 1], [-1, 1], [-1, -1], [1, 0], [1, 1]])
    weights = rng.random((5, 2), dtype=np.float32)
    got = experts.apply(x, topk_idx, weights, 2)
    for row in range(5):
        y = np.zeros(8, np.float32)
        for k in range(2):
            if topk_idx[row, k] >= 0:
                e = 2 + topk_idx[row, k]
                z = experts.scale[e] * x[row].astype(np.float32) + experts.bias[e]
                y += weights[row, k] * (z * np.minimum(np.maximum(z + 3, 0), 6) / np.float32(6))
        assert np.array_equal(got[row], reference.round_to_bf16(y))
    assert not got[2].any()


def test_experts_take_fp8_rows():
    rng = np.random.default_rng(3)
    experts = demo.Experts.seeded(4, rng)
    x = rng.standard_normal((5, 256)).astype(ml_dtypes.bfloat16)
    topk_idx, weights = rng.integers(-1, 4, (5, 3)), rng.random((5, 3), dtype=np.float32)
    elements, scales = reference.per_token_cast_to_fp8(x)
    rows = elements.astype(np.float32) * np.repeat(scales, 128, axis=1)
    want = reference.round_to_bf16(experts.weighted_sum(rows, topk_idx, weights))
    assert np.array_equal(experts.apply((elements, scales), topk_idx, weights, 0), want)


def test_experts_do_not_depend_on_the_shape():
    rng = np.random.default_rng(2)
    experts = demo.Experts.seeded(4, rng)
    x = rng.standard_normal((9, 520)).astype(ml_dtypes.bfloat16)
    topk_idx, weights = rng.integers(-1, 4, (9, 3)), rng.random((9, 3), dtype=np.float32)
    whole = experts.apply(x, topk_idx, weights, 0)
    rows = [experts.apply(x[i:i + 1], topk_idx[i:i + 1], weights[i:i + 1], 0) for i in range(9)]
    assert np.array_equal(whole.view(np.uint16), np.concatenate(rows).view(np.uint16))


# -- input -----------------------------------------------------------------------------------

def test_same_seed_same_job_and_the_load_is_skewed():
    settings = demo.Settings(hidden=256)
    a, b = demo.prepare(settings), demo.prepare(settings)
    for left, right in ((a.xs, b.xs), (a.topk_idxs, b.topk_idxs)):
        assert all(np.array_equal(x, y) for x, y in zip(left, right, strict=True))
    c = demo.prepare(replace(settings, seed=1))
    assert not np.array_equal(a.topk_idxs[0], c.topk_idxs[0])
    load = np.bincount(np.concatenate(a.topk_idxs).ravel(), minlength=64)
    assert load.max() > 1.5 * load.mean()
    reached = {len(set(row // 8)) for row in np.concatenate(a.topk_idxs)}
    assert max(reached) <= settings.num_topk_groups


@pytest.mark.parametrize("change, name", [
    ({"num_ranks": 0}, "num_ranks"), ({"num_ranks": 65}, "num_ranks"),
    ({"num_tokens": 0}, "num_tokens"), ({"hidden": 12}, "hidden"), ({"hidden": 0}, "hidden"),
    ({"num_experts": 63}, "num_experts"), ({"num_groups": 7}, "num_groups"),
    ({"num_topk_groups": 9}, "num_topk_groups"), ({"num_topk": 33}, "num_topk"),
    ({"num_topk": 9, "num_topk_groups": 1}, "num_topk"), ({"seed": -1}, "seed"),
    ({"arch": "sm_70"}, "arch"), ({"unit": "letters"}, "unit"), ({"combine": "carry"}, "combine"),
    ({"checks": "some"}, "checks"), ({"dtype": "fp4"}, "dtype"),
    ({"dtype": "fp8", "hidden": 64}, "hidden"), ({"dtype": "fp8", "combine": "pull"}, "combine"),
    ({"mode": "high"}, "mode"), ({"reduce": "fast", "mode": "ll"}, "reduce"),
    ({"reduce": "exact"}, "reduce"), ({"mode": "ll", "worst": True}, "worst"),
    ({"mode": "ll", "combine": "push"}, "combine"), ({"mode": "ll", "hidden": 64}, "hidden"),
])
def test_bad_settings(change, name):
    with pytest.raises(ValueError, match=f"^{name}: must "):
        demo.Settings(**change)


def test_fp8_rows_are_the_cast_of_bf16_rows():
    settings = demo.Settings(**SMALL | {"hidden": 256})
    bf16, fp8 = demo.prepare(settings), demo.prepare(replace(settings, dtype="fp8"))
    assert (bf16.settings.combine, fp8.settings.combine) == ("pull", "push")
    for x, (elements, scales) in zip(bf16.xs, fp8.xs, strict=True):
        want = reference.per_token_cast_to_fp8(x)
        assert elements.tobytes() == want[0].tobytes() and np.array_equal(scales, want[1])


@pytest.mark.parametrize("dtype", demo.DTYPES)
def test_a_saved_job_is_the_same_job(tmp_path, dtype):
    path = str(tmp_path / "job.npz")
    want = demo.prepare(demo.Settings(**FP8 | {"dtype": dtype, "seed": 5}))
    want.save(path)
    got = demo.prepare(demo.Settings(input=path, seed=5))
    assert got.settings == replace(want.settings, input=path, num_groups=1, num_topk_groups=1,
                                   num_tokens=got.settings.num_tokens)
    for name in "topk_idxs", "topk_weights":
        for a, b in zip(getattr(want, name), getattr(got, name), strict=True):
            assert a.tobytes() == b.tobytes() and a.dtype == b.dtype
    for a, b in zip(want.xs, got.xs, strict=True):
        pairs = zip(a, b, strict=True) if dtype == "fp8" else [(a, b)]
        assert all(x.tobytes() == y.tobytes() and x.dtype == y.dtype for x, y in pairs)
    assert np.array_equal(want.experts.scale, got.experts.scale)
    assert np.array_equal(want.experts.bias, got.experts.bias)


def test_a_file_of_fp8_rows_runs_as_bf16_too(tmp_path):
    path = str(tmp_path / "job.npz")
    fp8 = demo.prepare(demo.Settings(**FP8))
    fp8.save(path)
    bf16 = demo.prepare(demo.Settings(input=path, dtype="bf16", combine="pull"))
    for x, pair in zip(bf16.xs, fp8.xs, strict=True):
        assert np.array_equal(x, reference.per_token_cast_back(*pair))


@pytest.mark.parametrize("change, start", [
    ({"num_ranks": 2}, "num_ranks: must be 4, as in "), ({"hidden": 64}, "hidden: must be 256, as"),
    ({"num_topk": 2}, "num_topk: must be 3, as"), ({"num_experts": 32}, "num_experts: must be 16,"),
    ({"text": "t"}, "text: must not be set with input, "),
    ({"unit": "bytes"}, "unit: must not be set with input, "),
    ({"num_tokens": 6}, "num_tokens: must not be set with input, "),
    ({"num_groups": 4}, "num_groups: must not be set with input, "),
    ({"num_topk_groups": 2}, "num_topk_groups: must not be set with input, "),
    ({"dtype": "fp8", "combine": "pull"}, "combine: must be push with dtype fp8"),
])
def test_settings_that_contradict_the_file(tmp_path, change, start):
    path = str(tmp_path / "job.npz")
    demo.prepare(demo.Settings(**SMALL | {"hidden": 256})).save(path)
    assert demo.prepare(demo.Settings(input=path, num_ranks=4)).settings.num_topk == 3
    with pytest.raises(ValueError, match=f"^{start}"):
        demo.prepare(demo.Settings(input=path, **change))


def test_a_file_without_num_experts(tmp_path):
    path = tmp_path / "job.npz"
    parts = {"x": np.zeros((3, 8), np.uint16), "dtype": "bfloat16",
             "topk_idx": np.array([[0], [9], [-1]]), "topk_weights": np.ones((3, 1), np.float32)}
    np.savez(path, num_tokens=[1, 0, 2], **parts)
    job = demo.prepare(demo.Settings(input=str(path), num_experts=12))
    assert (job.settings.num_ranks, job.settings.num_experts) == (3, 12)
    for num_experts, start in (9, "num_experts: must be more than the highest expert of"), \
            (10, r"num_experts: must be a positive multiple of num_ranks \(3\), got 10"):
        with pytest.raises(ValueError, match=start):
            demo.prepare(demo.Settings(input=str(path), num_experts=num_experts))


# -- verdict ---------------------------------------------------------------------------------

def test_compare_names_the_first_element():
    want = np.zeros((3, 4), ml_dtypes.bfloat16)
    got = want.copy()
    assert demo.compare(1, "recv_x", got, want) is None
    got[2, 1], got[2, 3] = -0.0, 5
    mismatch = demo.compare(1, "recv_x", got, want)
    assert (mismatch.rank, mismatch.index) == (1, (2, 1)), "-0.0 is not +0.0"
    assert str(mismatch) == "rank 1: recv_x row 2, column 1 is -0.0 (8000), reference 0.0 (0000)"
    assert demo.compare(0, "recv_x", got[:2], want).index is None
    assert demo.compare(0, "recv_x", got.astype(np.float32), want).index is None


def reference_outputs(job, settings):
    """What a correct buffer returns, as `run` collects it."""
    received = reference.dispatch(job.xs, job.topk_idxs, job.topk_weights, settings.num_experts)
    scales = [{"recv_scales": r.recv_x[1]} if settings.dtype == "fp8" else {} for r in received]
    local = settings.num_experts // settings.num_ranks
    ys = [job.experts.apply(r.recv_x, r.recv_topk_idx, r.recv_topk_weights, r.rank * local)
          for r in received]
    combined = reference.combine(ys, received, [r.recv_topk_weights for r in received])
    return [demo.RankOutput(
        arrays={
            "rank_prefix_matrix": r.rank_prefix_matrix, "recv_src_idx": r.recv_src_idx,
            "recv_topk_idx": r.recv_topk_idx, "recv_topk_weights": r.recv_topk_weights,
            "recv_x": r.recv_x[0] if settings.dtype == "fp8" else r.recv_x, **scales[r.rank],
            "num_recv_tokens_per_expert_list": np.array(r.num_recv_tokens_per_expert_list),
            "combined_x": x.copy(), "combined_topk_weights": weights,
        },
        num_tokens=len(x), traffic=demo.Traffic(
            num_sent=int(r.is_token_in_rank.sum()),
            recv_from=np.diff(r.rank_prefix_matrix[:, r.rank], prepend=0),
            expert_load=np.array(r.num_recv_tokens_per_expert_list),
            payload_from=np.zeros(settings.num_ranks, np.int64)),
        seconds={}, counters={}, symbols=(), executor="emu", arch="sm_90", virtual_ns=0,
        not_executed=[],
    ) for r, (x, weights) in zip(received, combined, strict=True)]


def test_check_finds_one_wrong_bit():
    for settings in SMALL, FP8:
        job = demo.prepare(demo.Settings(**settings))
        outputs = reference_outputs(job, job.settings)
        assert demo.check(outputs, demo.expected(job), Bar()) == []
        outputs[2].arrays["combined_x"].view(np.uint16)[1, 5] ^= 1
        mismatch, = demo.check(outputs, demo.expected(job), Bar())
        assert (mismatch.rank, mismatch.name, mismatch.index) == (2, "combined_x", (1, 5))


@pytest.mark.parametrize("name, bits", [("recv_x", np.uint8), ("recv_scales", np.uint32)])
def test_check_finds_one_wrong_bit_of_an_fp8_row(name, bits):
    job = demo.prepare(demo.Settings(**FP8))
    outputs = reference_outputs(job, job.settings)
    outputs[1].arrays[name].view(bits)[3, 1] ^= 1
    mismatch, = demo.check(outputs, demo.expected(job), Bar())
    assert (mismatch.rank, mismatch.name, mismatch.index) == (1, name, (3, 1))


# -- whole runs ------------------------------------------------------------------------------

@pytest.mark.parametrize("change", [
    {}, {"combine": "push"}, {"worst": True}, {"arch": "sm_80"}, {"unit": "bytes"},
    {"checks": "off"}, {"policy": "safe"}, {"num_ranks": 1}, {"num_tokens": 1},
    {"combine": "push", "worst": True},
    {"dtype": "fp8", "hidden": 256}, {"dtype": "fp8", "hidden": 128, "worst": True},
], ids=str)
def test_bit_exact(change):
    report = demo.run(**{**SMALL, **change})
    assert report.bit_exact, [str(m) for m in report.mismatches]
    settings = report.settings
    assert len(report.ranks) == settings.num_ranks
    assert sum(r.num_tokens for r in report.ranks) == settings.num_ranks * settings.num_tokens
    assert sum(r.num_sent for r in report.ranks) == sum(r.num_recv for r in report.ranks) > 0
    assert all(r.warp_instructions > 0 for r in report.ranks)
    assert any(r.wire_bytes for r in report.ranks) == (settings.num_ranks > 1)
    assert report.virtual_ns > 0
    assert "bit-exact     yes" in str(report)


def test_a_report_without_counters():
    """What a GPU's run gives: nobody counted instructions, and no clock is virtual."""
    report = demo.run(**SMALL)
    job = demo.prepare(demo.Settings(**SMALL))
    lines_of = [demo.figures(rank, output)
                for rank, output in enumerate(reference_outputs(job, report.settings))]
    report = replace(report, executor="cuda", ranks=lines_of, virtual_ns=None)
    lines = str(report).splitlines()
    assert report.ns_per_warp_instruction is None
    assert all(line.split()[-3:-1] == ["-", "-"] for line in lines[3:3 + len(lines_of) + 1])
    assert "executor      cuda, sm_90" in lines and "virtual" not in str(report)


def test_wire_bytes_hold_the_payload():
    report = demo.run(**SMALL)
    job = demo.prepare(demo.Settings(**SMALL))
    received = reference.dispatch(job.xs, job.topk_idxs, job.topk_weights, SMALL["num_experts"])
    off_rank = sum(r.num_recv - len(r.recv_x[r.rows_from(r.rank)]) for r in received)
    wire_bytes = sum(r.wire_bytes for r in report.ranks)
    assert wire_bytes >= 2 * off_rank * SMALL["hidden"] * 2
    assert sum(r.logical_bytes for r in report.ranks) == \
        2 * sum(r.num_recv for r in received) * SMALL["hidden"] * 2


@pytest.mark.parametrize("worst", [False, True])
def test_fp8_without_kernels(numpy_buffer, worst):
    report = demo.run(**FP8, worst=worst)
    assert report.bit_exact, [str(m) for m in report.mismatches]
    assert "fp8 (e4m3)" in str(report) and "combine (push)" in str(report)
    num_recv = sum(r.num_recv for r in report.ranks)
    assert report.logical_bytes == num_recv * ((256 + 2 * 4) + 2 * 256)


def test_fp8_wire_bytes_are_fewer():
    """Of the payload's difference; flags and records are the same."""
    fp8, bf16 = demo.run(**FP8), demo.run(**FP8 | {"dtype": "bf16", "combine": "push"})
    off_rank = fp8.traffic.sum() - np.trace(fp8.traffic)
    assert bf16.wire_bytes - fp8.wire_bytes == pytest.approx(off_rank * (512 - 264), rel=0.1)


def test_traffic_and_load_are_the_choices():
    report = demo.run(**SMALL)
    job = demo.prepare(demo.Settings(**SMALL))
    for source, idx in enumerate(job.topk_idxs):
        for to in range(4):
            assert report.traffic[source, to] == (idx // 4 == to).any(axis=1).sum()
    assert report.expert_load.tolist() == \
        [sum((idx == e).sum() for idx in job.topk_idxs) for e in range(16)]
    assert [r.num_sent for r in report.ranks] == report.traffic.sum(axis=1).tolist()
    assert [r.num_recv for r in report.ranks] == report.traffic.sum(axis=0).tolist()


def test_same_seed_same_run():
    a, b = demo.run(**SMALL), demo.run(**SMALL)
    assert a.ranks == b.ranks and a.virtual_ns == b.virtual_ns and a.symbols == b.symbols


def test_own_text(tmp_path):
    path = tmp_path / "text"
    path.write_text("mail for the mill, mail for the ship; the mill has mail.")
    report = demo.run(**SMALL, text=str(path))
    assert report.bit_exact and report.vocabulary_size == 9


def test_unknown_policy():
    with pytest.raises(RankError) as error:
        demo.run(**SMALL, policy="ld_wishful")
    assert isinstance(error.value.__cause__, ValueError)


@pytest.mark.parametrize("compare", [False, True])
def test_the_bar_moves_to_its_end(monkeypatch, numpy_buffer, compare):
    bars = []
    monkeypatch.setattr(demo, "tqdm", lambda **options: bars.append(Bar(**options)) or bars[-1])
    (demo.compare_dtypes if compare else demo.run)(**FP8)
    bar, = bars
    assert bar.moved == bar.total == (36 if compare else 16)
    assert bar.descriptions == (["float64", "bf16", "fp8"] if compare else [])


def test_a_file_as_input(tmp_path):
    path = str(tmp_path / "job.npz")
    first = demo.run(**SMALL, save_input=path)
    again = demo.run(input=path)
    assert again.bit_exact and again.ranks == first.ranks
    assert np.array_equal(again.traffic, first.traffic)
    assert str(again).startswith(f"4 ranks, 24 tokens ({path}), hidden 64, 16 experts, top-3, ")


def test_a_file_with_idle_ranks_unused_choices_and_any_bits(tmp_path):
    path = tmp_path / "job.npz"
    rng = np.random.default_rng(4)
    topk_idx = rng.integers(-1, 6, (7, 2)).astype(np.int32)
    topk_idx[0] = -1
    np.savez(path, x=rng.integers(0, 1 << 16, (7, 64), dtype=np.uint16), dtype="bfloat16",
             topk_idx=topk_idx, topk_weights=rng.standard_normal((7, 2)).astype(np.float32),
             num_tokens=[0, 7, 0], num_experts=6)
    for combine in demo.COMBINE_MODES:
        report = demo.run(input=str(path), combine=combine)
        assert report.bit_exact, [str(m) for m in report.mismatches]


# -- two dtypes ------------------------------------------------------------------------------

def test_errors_by_hand():
    exact = [np.array([[3.0, 4.0]]), np.array([[0.0, 0.0]])]     # RMS 2.5
    got = [np.array([[3, 4.5]], ml_dtypes.bfloat16), np.array([[0, -1]], ml_dtypes.bfloat16)]
    errors = demo.errors_of(got, exact)
    assert errors.max == pytest.approx(1 / 2.5)
    assert errors.rms == pytest.approx(np.sqrt((0.25 + 1) / 4) / 2.5)


def compare_by_hand(settings):
    """dtype -> (rms, max) of the reference's results, from their definitions."""
    source = demo.load(settings)
    found = {}
    for dtype in demo.DTYPES:
        job = source.cast(dtype)
        outputs = reference_outputs(job, job.settings)
        squares, differences = [], []
        for x, idx, weights, output in zip(source.xs, job.topk_idxs, job.topk_weights, outputs,
                                           strict=True):
            for t in range(len(x)):
                row, y = x[t].astype(np.float64), np.zeros(x.shape[1])
                for e, w in zip(idx[t], weights[t], strict=True):
                    z = float(job.experts.scale[e]) * row + float(job.experts.bias[e])
                    y += float(w) * z * np.minimum(np.maximum(z + 3, 0), 6) / 6
                squares.append(y**2)
                differences.append(output.arrays["combined_x"][t].astype(np.float64) - y)
        scale = np.mean(squares)**0.5
        found[dtype] = (np.mean(np.square(differences))**0.5 / scale,
                        np.abs(differences).max() / scale)
    return found


def test_compared_dtypes(numpy_buffer):
    report = demo.compare_dtypes(**FP8)
    want = compare_by_hand(demo.Settings(**FP8))
    for dtype, errors in report.errors.items():
        assert (errors.rms, errors.max) == pytest.approx(want[dtype], rel=1e-9)
    assert report.errors["bf16"].rms < 0.01 < report.errors["fp8"].rms < 0.1
    assert report.bit_exact
    num_recv = sum(r.num_recv for r in report.reports["fp8"].ranks)
    assert report.reports["bf16"].logical_bytes == num_recv * 4 * 256
    assert report.reports["fp8"].logical_bytes == num_recv * (2 * 256 + 256 + 8)
    lines = str(report).splitlines()
    assert lines[2].split()[:2] == ["rows", "combine"]
    assert lines[3].split()[:2] == ["bf16", "pull"] and lines[4].split()[:2] == ["fp8", "push"]
    assert f"{report.errors['fp8'].rms:.2e}" in lines[4]
    for dtype, line in zip(demo.DTYPES, lines[3:], strict=False):
        one = report.reports[dtype]
        assert one.instructions.keys() == {"dispatch", "experts", "combine"}
        assert line.split()[4:8] == ["0.00", f"{one.payload_bytes / 1e6:.2f}", "0", "0"]
    assert "no times: the CPU executor's say nothing about a GPU's" in str(report)


def test_compared_dtypes_of_a_file_of_fp8_rows(tmp_path, numpy_buffer):
    """The exact rows are element * scale: fp8 loses nothing on the way, bf16 a rounding."""
    path = str(tmp_path / "job.npz")
    demo.prepare(demo.Settings(**FP8)).save(path)
    errors = demo.compare_dtypes(input=path).errors
    assert errors["fp8"].rms < errors["bf16"].rms < 0.01


def test_compared_dtypes_end_to_end():
    report = demo.compare_dtypes(**FP8)
    assert report.bit_exact
    assert report.reports["fp8"].wire_bytes < report.reports["bf16"].wire_bytes
    for one in report.reports.values():
        assert one.wire_bytes >= one.payload_bytes > 0
        assert sum(one.instructions.values()) == sum(r.warp_instructions for r in one.ranks)


# -- low-latency mode ------------------------------------------------------------------------

@pytest.mark.parametrize("change", [
    {}, {"reduce": "rank"}, {"reduce": "exact", "num_topk": 1}, {"arch": "sm_80"},
    {"num_ranks": 1}, {"num_tokens": 1}, {"scheduler": "random", "checks": "off"},
    {"dtype": "fp8"}, {"dtype": "fp8", "reduce": "rank", "unit": "bytes"}, {"hidden": 128},
], ids=str)
def test_low_latency_is_bit_exact(change):
    report = demo.run(**LOW_LATENCY | change)
    assert report.bit_exact, [str(m) for m in report.mismatches]
    assert set(report.symbols) == {"ep_ll_dispatch", "ep_ll_combine"}
    assert report.settings.reduce in change.values() or "reduce" not in change
    assert all(r.warp_instructions > 0 for r in report.ranks)
    assert any(r.wire_bytes for r in report.ranks) == (report.settings.num_ranks > 1)
    assert "bit-exact     yes" in str(report) and "mode          low latency" in str(report)
    assert f"combine ({report.settings.reduce})" in str(report)


def test_both_modes_send_the_same_rows():
    normal = demo.run(**SMALL | {"hidden": 256})
    low_latency = demo.run(**LOW_LATENCY)
    assert np.array_equal(normal.traffic, low_latency.traffic)
    assert np.array_equal(normal.expert_load, low_latency.expert_load)
    assert str(normal).splitlines()[2] == str(low_latency).splitlines()[2]
    for mine, other in zip(normal.ranks, low_latency.ranks, strict=True):
        assert replace(mine, warp_instructions=0, wire_bytes=0, logical_bytes=0) == \
            replace(other, warp_instructions=0, wire_bytes=0, logical_bytes=0)


@pytest.mark.parametrize("reduce", ["exact", "rank"])
@pytest.mark.parametrize("dtype", demo.DTYPES)
def test_low_latency_bytes_by_hand(numpy_buffer, dtype, reduce):
    report = demo.run(**LOW_LATENCY, dtype=dtype, reduce=reduce)
    assert report.bit_exact, [str(m) for m in report.mismatches]
    job = demo.prepare(demo.Settings(**LOW_LATENCY, dtype=dtype))
    there = 256 + 4 * 2 if dtype == "fp8" else 2 * 256
    within = between = 0
    for source, idx in enumerate(job.topk_idxs):
        for row in idx // 4:
            for to in range(4):
                times = int((row == to).sum())
                back = times * 2 * 256 if reduce == "exact" else 4 * 256
                crossed = (there + back) * (times > 0)
                within, between = ((within + crossed, between) if to == source
                                   else (within, between + crossed))
    assert report.payload_bytes == between
    assert report.logical_bytes == within + between


def test_low_latency_wire_bytes_hold_the_payload():
    for dtype in demo.DTYPES:
        report = demo.run(**LOW_LATENCY, dtype=dtype)
        assert report.wire_bytes > report.payload_bytes


@pytest.mark.parametrize("reduce", ["exact", "rank"])
def test_the_default_is_the_buffers_own_way_to_add_up(numpy_buffer, reduce):
    num_ranks, num_topk = (2, 8) if reduce == "rank" else (8, 8)
    settings = {"num_ranks": num_ranks, "num_tokens": 2, "hidden": 128, "num_topk": num_topk}
    assert demo.run(**settings, mode="ll").settings.reduce == reduce


@pytest.mark.parametrize("name", ["recv_x", "recv_count", "layout_range", "src_info", "scales"])
def test_a_wrong_low_latency_dispatch_is_not_combined(monkeypatch, numpy_buffer, name):
    honest = NumpyBuffer.low_latency_dispatch

    def one_wrong(self, *args, **options):
        recv_x, recv_count, handle, *rest = honest(self, *args, **options)
        arrays = {"recv_x": recv_x[0], "scales": recv_x[1], "recv_count": recv_count,
                  "src_info": handle[0], "layout_range": handle[1]}
        array, busiest = arrays[name], int(recv_count.argmax())
        first = (busiest, 0, 0)[:array.ndim]
        wrong = np.array([array[first]])
        wrong.view(np.uint8)[0] ^= 1
        if self.comm.rank == 2:
            array[first] = wrong[0]
        return recv_x, recv_count, handle, *rest

    monkeypatch.setattr(NumpyBuffer, "low_latency_dispatch", one_wrong)
    monkeypatch.setattr(NumpyBuffer, "low_latency_combine",
                        lambda *args, **options: pytest.fail("it ran"))
    report = demo.run(**LOW_LATENCY, dtype="fp8")
    assert {m.rank for m in report.mismatches} == {2}
    assert any(m.name.endswith(name) for m in report.mismatches)
    assert "combine       not run" in str(report) and "bit-exact     NO" in str(report)


def test_low_latency_of_numbers_that_mean_nothing(monkeypatch, numpy_buffer):
    """Whatever a dispatch says, it ends in a report."""
    honest = NumpyBuffer.low_latency_dispatch

    def wild(self, *args, **options):
        recv_x, recv_count, handle, *rest = honest(self, *args, **options)
        recv_count[:] = [-5, 1 << 30, 0, 2]
        handle[1][:] = np.random.default_rng(1).integers(-1 << 63, 1 << 63, handle[1].shape)
        return recv_x, recv_count, handle, *rest

    monkeypatch.setattr(NumpyBuffer, "low_latency_dispatch", wild)
    report = demo.run(**LOW_LATENCY)
    assert not report.bit_exact and "rank 3: recv_count" in str(report)


def test_a_wrong_low_latency_sum_is_found(monkeypatch, numpy_buffer):
    honest = NumpyBuffer.low_latency_combine

    def one_wrong(self, *args, **options):
        combined_x, *rest = honest(self, *args, **options)
        if self.comm.rank == 1:
            combined_x.view(np.uint16)[2, 7] ^= 1
        return combined_x, *rest

    monkeypatch.setattr(NumpyBuffer, "low_latency_combine", one_wrong)
    mismatch, = demo.run(**LOW_LATENCY).mismatches
    assert (mismatch.rank, mismatch.name, mismatch.index) == (1, "combined_x", (2, 7))


def test_low_latency_of_a_file_with_idle_ranks_and_experts_named_twice(tmp_path):
    path = str(tmp_path / "job.npz")
    rng = np.random.default_rng(4)
    topk_idx = rng.integers(-1, 6, (7, 4)).astype(np.int32)
    topk_idx[0] = -1
    topk_idx[1:] = np.where(rng.random((6, 4)) < 0.7, 5, topk_idx[1:])
    np.savez(path, x=rng.integers(0, 1 << 16, (7, 128), dtype=np.uint16), dtype="bfloat16",
             topk_idx=topk_idx, topk_weights=rng.standard_normal((7, 4)).astype(np.float32),
             num_tokens=[0, 7, 0], num_experts=6)
    assert demo.prepare(demo.Settings(input=path, mode="ll")).max_tokens == \
        max(7, (topk_idx == 5).sum()) > 7
    for dtype in demo.DTYPES:
        report = demo.run(input=path, mode="ll", dtype=dtype)
        assert report.bit_exact, [str(m) for m in report.mismatches]


def test_low_latency_casts_rows_of_a_file_itself(tmp_path):
    path = str(tmp_path / "job.npz")
    fp8 = demo.prepare(demo.Settings(**FP8))
    fp8.save(path)
    job = demo.prepare(demo.Settings(input=path, mode="ll"))
    assert job.settings.dtype == "fp8"
    for x, pair in zip(job.xs, fp8.xs, strict=True):
        assert np.array_equal(x, reference.per_token_cast_back(*pair))
    report = demo.run(input=path, mode="ll", save_input=str(tmp_path / "again.npz"))
    again = demo.run(input=str(tmp_path / "again.npz"), mode="ll", dtype="fp8")
    assert report.bit_exact and again.bit_exact and report.ranks == again.ranks


def low_latency_by_hand(settings, dtype, reduce):
    """[T, H] of each rank in float64, what the kernels round being rounded."""
    job = demo.load(settings)
    results = []
    for x, idx, weights in zip(job.xs, job.topk_idxs, job.topk_weights, strict=True):
        rows = reference.widen(x)
        if dtype == "fp8":
            elements, scales = low_latency_cast_to_fp8(x, round_scale=False)
            rows = reference.per_token_cast_back(elements, scales, np.float32)
        sums = np.zeros((settings.num_ranks, *x.shape), np.float32)
        for t, k in np.ndindex(idx.shape):
            e = idx[t, k]
            z = job.experts.scale[e] * rows[t] + job.experts.bias[e]
            y = (z * np.clip(z + np.float32(3), 0, 6) / np.float32(6)).astype(ml_dtypes.bfloat16)
            rank = e // job.num_local_experts if reduce == "rank" else 0
            sums[rank, t] = reference.fma_f32(weights[t, k], y.astype(np.float32), sums[rank, t])
        total = sums[0]
        for of_rank in sums[1:]:
            total = total + of_rank
        results.append(total.astype(ml_dtypes.bfloat16))
    return results


@pytest.mark.parametrize("reduce", ["exact", "rank"])
def test_low_latency_results_by_hand(reduce):
    settings = demo.Settings(**LOW_LATENCY, reduce=reduce)
    for dtype in demo.DTYPES:
        got = [arrays["combined_x"] for arrays in
               demo.expected(demo.prepare(replace(settings, dtype=dtype)))]
        for mine, want in zip(got, low_latency_by_hand(settings, dtype, reduce), strict=True):
            assert np.array_equal(mine, want)


def test_compared_dtypes_of_low_latency():
    report = demo.compare_dtypes(**LOW_LATENCY, reduce="rank")
    exact = demo.exact_results(demo.load(demo.Settings(**LOW_LATENCY)), Bar())
    assert report.bit_exact
    for dtype, errors in report.errors.items():
        got = low_latency_by_hand(demo.Settings(**LOW_LATENCY), dtype, "rank")
        assert errors == demo.errors_of(got, exact)
    assert report.errors["bf16"].rms < 0.01 < report.errors["fp8"].rms < 0.1
    bf16, fp8 = report.reports["bf16"], report.reports["fp8"]
    assert bf16.payload_bytes > fp8.payload_bytes and bf16.wire_bytes > fp8.wire_bytes
    assert bf16.instructions["combine"] > 0 and fp8.instructions["combine"] > 0
    lines = str(report).splitlines()
    for line, dtype in zip(lines[3:5], demo.DTYPES, strict=True):
        one = report.reports[dtype]
        assert line.split() == [
            dtype, "rank", f"{report.errors[dtype].rms:.2e}", f"{report.errors[dtype].max:.2e}",
            f"{one.wire_bytes / 1e6:.2f}", f"{one.payload_bytes / 1e6:.2f}",
            *(f"{one.instructions[phase]:,}" for phase in ("dispatch", "combine")), "yes"]
    assert "mode          low latency" in str(report)


# -- times, which GPUs alone have ------------------------------------------------------------

class TimedMachine(machine.Emu):
    """Stands in for a GPU: the CPU executor's arrays, and times that are known before."""

    times = True

    def __init__(self, comm):
        super().__init__(comm.executor)
        self.comm, self.num_calls = comm, 0

    def measure_whole(self, align, call):
        self.comm.barrier()
        align()
        result = call()
        self.num_calls += 1
        assert result, "the call is made"
        is_combine = isinstance(result, dict)
        number = self.num_calls - is_combine * (times.WARMUP + 5) - times.WARMUP
        us = 1e9 if number <= 0 else 100.0 * self.comm.rank + number + 20 * is_combine
        return result, machine.Timing(us, False)


@pytest.mark.parametrize("settings", [
    SMALL, SMALL | {"combine": "push"}, SMALL | {"worst": True, "num_topk": 1}, FP8, LOW_LATENCY,
    LOW_LATENCY | {"dtype": "fp8"},
], ids=str)
def test_times_are_medians_of_the_slowest_rank(monkeypatch, settings):
    monkeypatch.setattr(times, "machine_of", lambda executor: TimedMachine(
        next(comm for comm in comms if comm.executor is executor)))
    job = demo.prepare(demo.Settings(**settings))
    wanted, comms = list(demo.expected(job)), []

    def rank_main(comm):
        comms.append(comm)
        calls_of = ranks.CALLS[job.settings.mode]
        with Buffer(comm, **calls_of.buffer_options(job)) as buffer:
            calls = calls_of(comm, buffer, job, ranks.HostArrays())
            y = calls.experts(calls.dispatch())
            return times.measured(comm, buffer, job, calls_of, y, 5)

    of_ranks = run_ranks(rank_main, job.settings.num_ranks, executor="emu")
    assert of_ranks[1] == {"dispatch": [101.0, 102.0, 103.0, 104.0, 105.0],
                           "combine": [121.0, 122.0, 123.0, 124.0, 125.0]}
    outputs = [demo.RankOutput(
        arrays=arrays, num_tokens=0, traffic=demo.Traffic(0, np.zeros(4, int), np.zeros(4, int),
                                                          np.zeros(4, int)),
        seconds={}, counters={}, symbols=(), executor="cuda", arch="sm_90", virtual_ns=None,
        not_executed=None, rounds_us=us) for arrays, us in zip(wanted, of_ranks, strict=True)]
    report = demo.make_report(job, outputs, [], 0.0)
    assert report.median_us == {"dispatch": 303.0, "combine": 323.0}
    text = str(demo.DtypesReport({job.settings.dtype: report}, {}))
    assert text.splitlines()[2].split()[-5:] == ["dispatch", "us", "combine", "us", "bit-exact"]
    assert text.splitlines()[3].split()[-3:] == ["303.0", "323.0", "yes"]
    assert "median of 20 calls between events, of the slowest rank" in text


# -- pictures --------------------------------------------------------------------------------

@pytest.mark.parametrize("change", [
    {}, {"num_ranks": 1}, {"num_ranks": 2}, {"num_ranks": 16}, {"num_ranks": 64, "num_experts": 64},
    {"mode": "ll", "hidden": 128},
], ids=str)
def test_plot_draws_something(tmp_path, change, numpy_buffer):
    image = pytest.importorskip("matplotlib.image", reason="matplotlib is not installed")
    path = tmp_path / "traffic.png"
    report = demo.run(**SMALL | change, plot=str(path))
    assert path.read_bytes().startswith(b"\x89PNG")
    pixels = image.imread(path)
    assert pixels.shape[0] > 500 and pixels.shape[1] > 1000
    colours = {tuple(c) for c in (pixels[::3, ::3, :3].reshape(-1, 3) * 255).astype(int)}
    assert len(colours) > 50 and (255, 255, 255) in colours
    with_traffic = path.read_bytes()
    plot.draw(replace(report, traffic=report.traffic * 0), path)
    assert path.read_bytes() != with_traffic, "the picture is of the traffic"


@pytest.mark.parametrize("path, start", [
    ("traffic.docx", "plot: must be a file named .*.png.*, got traffic.docx"),
    ("traffic", "plot: must be a file named "), ("no/such/traffic.png", "plot: cannot write "),
])
def test_where_no_picture_can_be(monkeypatch, path, start):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    monkeypatch.setattr(demo, "run_ranks", lambda *args, **kw: pytest.fail("it ran"))
    with pytest.raises(ValueError, match=f"^{start}"):
        demo.run(**SMALL, plot=path)


def test_the_default_run_is_quick_enough():
    report = demo.run()
    assert report.bit_exact, [str(m) for m in report.mismatches]
    assert report.communication_s < 5 and sum(report.wall_s.values()) < 60
