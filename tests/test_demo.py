# SPDX-License-Identifier: MIT
"""The main job: its input, its experts, its verdict, and whole small runs."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from deepep_ptx import RankError, corpus, demo, reference

SMALL = {"num_ranks": 4, "num_tokens": 6, "hidden": 64, "num_experts": 16, "num_groups": 4,
         "num_topk_groups": 2, "num_topk": 3}


class NoBar:
    """Stands in for the progress bar."""

    def update(self):
        pass


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
    (a, _), (b, _) = demo.prepare(settings), demo.prepare(settings)
    for left, right in ((a.xs, b.xs), (a.topk_idxs, b.topk_idxs)):
        assert all(np.array_equal(x, y) for x, y in zip(left, right, strict=True))
    c, _ = demo.prepare(replace(settings, seed=1))
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
    ({"checks": "some"}, "checks"),
])
def test_bad_settings(change, name):
    with pytest.raises(ValueError, match=f"^{name}: must "):
        demo.Settings(**change)


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
    local = settings.num_experts // settings.num_ranks
    ys = [job.experts.apply(r.recv_x, r.recv_topk_idx, r.recv_topk_weights, r.rank * local)
          for r in received]
    combined = reference.combine(ys, received, [r.recv_topk_weights for r in received])
    return [demo.RankOutput(
        arrays={
            "rank_prefix_matrix": r.rank_prefix_matrix, "recv_src_idx": r.recv_src_idx,
            "recv_topk_idx": r.recv_topk_idx, "recv_topk_weights": r.recv_topk_weights,
            "recv_x": r.recv_x,
            "num_recv_tokens_per_expert_list": np.array(r.num_recv_tokens_per_expert_list),
            "combined_x": x.copy(), "combined_topk_weights": weights,
        },
        num_tokens_per_rank=r.is_token_in_rank.sum(axis=0), seconds={}, counters={}, symbols=(),
        executor="emu", arch="sm_90", virtual_ns=0,
    ) for r, (x, weights) in zip(received, combined, strict=True)]


def test_check_finds_one_wrong_bit():
    settings = demo.Settings(**SMALL)
    job, _ = demo.prepare(settings)
    outputs = reference_outputs(job, settings)
    assert demo.check(job, outputs, settings, NoBar()) == []
    outputs[2].arrays["combined_x"].view(np.uint16)[1, 5] ^= 1
    mismatch, = demo.check(job, outputs, settings, NoBar())
    assert (mismatch.rank, mismatch.name, mismatch.index) == (2, "combined_x", (1, 5))


# -- whole runs ------------------------------------------------------------------------------

@pytest.mark.parametrize("change", [
    {}, {"combine": "push"}, {"worst": True}, {"arch": "sm_80"}, {"unit": "bytes"},
    {"checks": "off"}, {"policy": "safe"}, {"num_ranks": 1}, {"num_tokens": 1},
    {"combine": "push", "worst": True},
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
    job, _ = demo.prepare(report.settings)
    ranks = [demo._figures(rank, output, report.settings)
             for rank, output in enumerate(reference_outputs(job, report.settings))]
    report = replace(report, executor="cuda", ranks=ranks, virtual_ns=None)
    lines = str(report).splitlines()
    assert report.ns_per_warp_instruction is None
    assert all(line.split()[-3:-1] == ["-", "-"] for line in lines[3:3 + len(ranks) + 1])
    assert "executor      cuda, sm_90" in lines and "virtual" not in str(report)


def test_wire_bytes_hold_the_payload():
    report = demo.run(**SMALL)
    job, _ = demo.prepare(report.settings)
    received = reference.dispatch(job.xs, job.topk_idxs, job.topk_weights, SMALL["num_experts"])
    off_rank = sum(r.num_recv - len(r.recv_x[r.rows_from(r.rank)]) for r in received)
    wire_bytes = sum(r.wire_bytes for r in report.ranks)
    assert wire_bytes >= 2 * off_rank * SMALL["hidden"] * 2
    assert sum(r.logical_bytes for r in report.ranks) == \
        2 * sum(r.num_recv for r in received) * SMALL["hidden"] * 2


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


def test_the_default_run_is_quick_enough():
    report = demo.run()
    assert report.bit_exact, [str(m) for m in report.mismatches]
    assert report.communication_s < 5 and sum(report.wall_s.values()) < 60
