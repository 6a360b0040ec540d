# SPDX-License-Identifier: MIT
"""examples/torch_decode.py on the CPU executor: its bits, the order of its calls, its picture."""

import itertools
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from deepep_ptx import Buffer, run_ranks

torch = pytest.importorskip("torch")

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "torch_decode.py"
ROUNDS = 2


@pytest.fixture
def example():
    return runpy.run_path(str(EXAMPLE))


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_bits(example, num_ranks):
    results = run_ranks(example["rank_main"], num_ranks, executor="emu")
    assert [same for _, same, _ in results] == [True] * num_ranks
    assert all(tokens > 0 for tokens, _, _ in results)


@pytest.mark.parametrize("name", ["overlapped", "one_after_the_other"])
def test_a_wrong_value_is_seen(example, monkeypatch, name):
    honest = example["Batch"].experts

    def one_wrong(self):
        honest(self)
        if self.buffer.rank == 1 and self.number == 2:
            # Of a row that somebody sent.
            first = int(self.handle[1].bitwise_and(0xFFFFFFFF).sum(dim=1).nonzero()[0])
            self.recv_x[first, 0, 3] += 64

    monkeypatch.setattr(example["Batch"], "experts", one_wrong)
    steps = example["STEPS"]
    kept = {title: step for title, step in steps.items() if step.__name__ == name}
    monkeypatch.setitem(example["run"].__globals__, "STEPS", kept)
    results = run_ranks(example["rank_main"], 2, executor="emu")
    assert not all(same for _, same, _ in results)


class Event:
    """Stands in for torch.cuda.Event: each is a microsecond behind the one before."""

    def __init__(self, at):
        self.at = at

    def elapsed_time(self, later):
        return (later.at - self.at) / 1e3


@pytest.fixture
def timed(example, monkeypatch):
    """Title -> spans of each round, of rank 0."""
    timeline = example["Timeline"]

    class Stream:
        def synchronize(self):
            pass

    def kept(self, device):
        self.is_kept, self.recorded, self.ticks = True, [], itertools.count()

    monkeypatch.setattr(timeline, "__init__", kept)
    monkeypatch.setattr(timeline, "now", lambda self: Event(next(self.ticks)))
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    sizes = example["CPU_SIZES"]._replace(rounds=example["WARMUP"] + ROUNDS)

    def rank_main(comm):
        with Buffer(comm, low_latency_mode=True) as buffer:
            return example["run"](buffer, torch.device("cpu"), sizes)

    _, same, found = run_ranks(rank_main, 2, executor="emu")[0]
    assert same and all(len(rounds) == ROUNDS for rounds in found.values())
    return found


def test_the_other_batch_computes_while_rows_are_on_their_way(timed):
    hooks, plain = (rounds[0] for rounds in timed.values())
    crossing = [span for span in hooks if span.what == "on their way"]
    assert len(crossing) == 2 * 2 * 2, "batches, layers, calls"
    for span in crossing[:-1]:
        other = {"1": "2", "2": "1"}[span.lane[-1]]
        gemms = [gemm.what for gemm in hooks if gemm.lane == "GEMMs"
                 and span.begin_us < gemm.begin_us and gemm.end_us < span.end_us]
        assert gemms == [f"GEMM of batch {other}"]
    assert {span.what for span in plain} == {"GEMM of batch 1", "GEMM of batch 2",
                                             "send and receive"}
    for spans in hooks, plain:
        assert sum(span.lane == "GEMMs" for span in spans) == 8
        ends = sorted((span.begin_us, span.end_us) for span in spans if span.what != "on their way")
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(ends))


def test_the_picture(example, timed, tmp_path):
    image = pytest.importorskip("matplotlib.image", reason="matplotlib is not installed")
    path = tmp_path / "steps.png"
    medians = {title: example["median_of"](rounds) for title, rounds in timed.items()}
    example["draw"](medians, path, "two steps")
    pixels = (image.imread(path)[:, :, :3] * 255).round().astype(int)
    for colour in example["COLOURS"].values():
        want = [int(colour[at:at + 2], 16) for at in (1, 3, 5)]
        assert (abs(pixels - want).max(axis=2) <= 1).sum() > 500, colour


def test_the_median_step(example):
    def step(length):
        return [example["Span"]("GEMMs", "GEMM of batch 1", 0.0, length)]

    assert example["median_of"]([step(5.0), step(1.0), step(2.0)]) == step(2.0)


@pytest.mark.parametrize("more, code, text", [
    ([], 0, "rank 1: "), (["--picture", "p.png"], 2, "--picture: only under torchrun"),
])
def test_the_command(more, code, text):
    done = subprocess.run([sys.executable, EXAMPLE, "--executor", "emu", *more],
                          env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True,
                          text=True)
    assert done.returncode == code, done.stderr
    assert text in done.stdout + done.stderr
    assert done.stdout.count("bit-exact") == (0 if code else 2)
