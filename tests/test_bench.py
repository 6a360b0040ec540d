# SPDX-License-Identifier: MIT
"""`deepep-ptx bench`: cases and inputs, the run, figures, records, launching, peers, overlap.

What needs a GPU is a few lines of `measure.machine.Gpu`; here the CPU executor stands in for it,
with times that are made up.
"""

import contextlib
import dataclasses
import gc
import json
import os
import types
import weakref
from pathlib import Path

import numpy as np
import pytest

from deepep_ptx import Buffer, _cuda, cli, run_ranks
from deepep_ptx.cli import measure
from deepep_ptx.cli.bench import (
    calls,
    command,
    figures,
    intranode,
    launch,
    ll,
    ll_case,
    ll_peers,
    ll_report,
    ll_session,
    overlap,
    overlap_report,
    peers,
    plan,
    report,
    rounds,
)
from deepep_ptx.cli.bench.case import FP8_WHATS, WHATS, Case
from deepep_ptx.cli.measure.inputs import Job, Shape, random_rows
from deepep_ptx.cli.measure.machine import Emu, Gpu, Timing, TorchGpu, own_stream
from deepep_ptx.errors import DeepEPError, RankError

SHAPE = {"tokens": 5, "hidden": 128, "topk": 2, "experts": 8}
OPTIONS = ["--ranks", "2", *(word for name, value in SHAPE.items()
                             for word in (f"--{name}", str(value)))]
EMU = ["bench", "intranode", "--executor", "emu", *OPTIONS]
ALL = [Case(what, dtype, **SHAPE) for what in WHATS for dtype in ("bf16", "fp8")
       if dtype == "bf16" or what in FP8_WHATS]
LINKS = {"copy_engine_one_way_gb_s": 200.0, "copy_engine_both_ways_gb_s": 100.0}


class Timed(Emu):
    """The CPU executor with times: 100 us for kernels of rank 0, 110 of rank 1, which is late;
    whole calls take 20 us more, and nobody is late."""

    times = True

    def measure(self, align, call):
        result, _ = super().measure(align, call)
        us = 100.0 + 10 * self.executor.rank
        return result, Timing(us, self.executor.rank == 1, (("ep_a", us - 1), ("ep_b", 1.0)))

    def measure_whole(self, align, call):
        result, _ = super().measure(align, call)
        return result, Timing(120.0 + 10 * self.executor.rank, False)

    def host_us(self, call):
        return call(), 30.0 + self.executor.rank

    def captured(self, work):
        return work

    def beside(self, align, call, work):
        align()
        if call:
            call(async_finish=True)["event"].current_stream_wait()
        if work:
            work()
        both = call is not None and work is not None
        return (200.0 if call else float("nan")) * (1.5 if both else 1), \
            (600.0 if work else float("nan")) * (1.1 if both else 1), False


@pytest.fixture
def timed(monkeypatch):
    """Two GPUs that are the CPU executor."""
    def on_emu(*args, executor, devices, **options):
        assert executor == "cuda" and list(devices) == [0, 1]
        return run_ranks(*args, executor="emu", **options)

    monkeypatch.setattr(launch, "run_ranks", on_emu)
    monkeypatch.setattr(rounds, "machine_of", lambda executor, torch: Timed(executor))
    monkeypatch.setattr(_cuda, "device_count", lambda: 2)
    monkeypatch.setattr(measure, "links", lambda gpus: LINKS)
    monkeypatch.setattr(measure, "describe", lambda: {"gpus": ["GPU of a test"] * 2,
                                                      "driver": "1.2", "cuda_driver": 13000})


GPU = ["bench", "intranode", "--executor", "cuda", "--arch", "sm_90", "--layout", "threads",
       "--rounds", "6", "--warmup", "2", *OPTIONS]


# -- cases and inputs -------------------------------------------------------------------------

def test_cases_are_the_product_of_the_lists():
    made = plan.make(executor="emu", arch="sm_90", policy=["fast", "bulk"], sms=[2, 3], ranks=2,
                     tokens=[1, 5], hidden=128, routing=["uniform", "skewed"])
    assert len(set(made.cases)) == len(made.cases) == (8 * 2 + 1) * 2 * 2 * 2
    assert {case.dtype for case in made.cases if case.what not in FP8_WHATS} == {"bf16"}
    assert {case.policy for case in made.cases if case.what == "layout"} == {"fast"}
    only = plan.make(executor="emu", arch="sm_90", what=["combine-push"], dtype=["fp8"], ranks=2)
    assert [case.dtype for case in only.cases] == ["bf16"], "combine is of bf16"


def test_a_case_is_a_value():
    assert Case("layout") == Case("layout") and hash(Case("layout")) == hash(Case("layout"))
    assert Case("layout", tuning={"a": 1}) != Case("layout")
    assert str(Case("cached", "fp8", sms=3)) == "cached fp8, 4096 tokens uniform, fast, 3 SMs"


def test_routings():
    def rows(routing, ranks=4):
        return Job(Shape(ranks, 64, 128, 4, 32, routing), 0, combine=False).rows

    uniform, skewed, local = (rows(routing) for routing in ("uniform", "skewed", "local"))
    assert uniform.sum(axis=0).max() < 1.3 * uniform.sum(axis=0).min()
    assert skewed.sum(axis=0)[0] == 4 * 64 and skewed.sum(axis=0)[-1] < 64
    assert (local == 64 * np.eye(4)).all()


def test_choices_name_no_expert_twice():
    for routing in ("uniform", "skewed", "local"):
        for idx in Job(Shape(2, 40, 128, 4, 8, routing), 3, combine=False).topk_idxs:
            assert (np.diff(np.sort(idx, axis=1), axis=1) > 0).all()
            assert idx.min() >= 0 and idx.max() < 8


def test_rows_are_random_and_finite():
    rng = np.random.default_rng(0)
    x = random_rows(rng, 100, 128, "bf16").astype(np.float32)
    assert abs(x).min() >= 2 ** -7 and abs(x).max() < 2
    assert (x < 0).mean() == pytest.approx(0.5, 0.1)
    elements, scales = random_rows(rng, 100, 256, "fp8")
    assert elements.shape == (100, 256) and scales.shape == (100, 2)
    assert len(np.unique(elements.view(np.uint8))) == 256


@pytest.mark.parametrize(("options", "start"), [
    (["--sms", "0"], "--sms: must be at least 1, got 0"),
    (["--sms", "-3"], "--sms: must be at least 1, got -3"),
    (["--sms", "16,1000"], "--sms: must be in [1, 132], the CTAs per rank"),
    (["--policy", "fast,ld_wishful"], "--policy: unknown policy 'ld_wishful'"),
    (["--policy", ""], "--policy: must not be empty"),
    (["--what", "dispatsh"], "--what: must be of layout, dispatch,"),
    (["--dtype", "fp4"], "--dtype: must be of bf16, fp8, got 'fp4'"),
    (["--routing", "round"], "--routing: must be of uniform, skewed, local, got 'round'"),
    (["--tokens", "5,0"], "--tokens: must be at least 1, got 0"),
    (["--experts", "9"], "--experts: must be a multiple of --ranks (2), got 9"),
    (["--topk", "5", "--routing", "local"], "--topk: must be 1..4, got 5"),
    (["--hidden", "72"], "--hidden: must be a multiple of 128 with fp8, got 72"),
    (["--hidden", "12", "--dtype", "bf16"], "--hidden: must be a positive multiple of 8"),
    (["--rounds", "9"], "--rounds: only on GPUs: the CPU executor calls each case once"),
    (["--devices", "0,1"], "--devices: only on GPUs"),
    (["--layout", "threads"], "--layout: only on GPUs"),
    (["--timeout-s", "0"], "--timeout-s: must be above 0"),
    (["--seed", "-1"], "--seed: must be at least 0"),
    (["--out", "no/such/x.json"], "--out: cannot write no/such/x.json: there is no directory "),
    (["--plot", "x.png"], "--plot: only on GPUs: there are no times to draw"),
])
def test_bad_input_is_one_line_and_exit_code_2(options, start, capsys):
    if "--plot" in options:
        pytest.importorskip("matplotlib")
    assert cli.main([*EMU, *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"deepep-ptx: {start}") and captured.err.count("\n") == 1


@pytest.mark.parametrize(("options", "start"), [
    (["--rounds", "4"], "--rounds: must be at least 5, got 4"),
    (["--devices", "0,2"], "--devices: must be below 2, the GPUs there are; got 0, 2"),
    (["--devices", "0,0", "--layout", "processes"], "--layout: processes must have a GPU each"),
])
def test_bad_input_on_gpus(options, start, timed, capsys):
    assert cli.main([*GPU, *options]) == 2
    assert capsys.readouterr().err.startswith(f"deepep-ptx: {start}")


def test_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(_cuda, "device_count", lambda: 0)
    monkeypatch.setattr(_cuda, "why_not", lambda: "no driver here")
    assert cli.main(["bench", "intranode", "--executor", "cuda"]) == 1
    assert capsys.readouterr().err == \
        "deepep-ptx: --executor: 'cuda' cannot be used: no driver here\n"


# -- the core ---------------------------------------------------------------------------------

def measured(cases, ranks=2, **options):
    def main(comm):
        return rounds.measure(comm, cases, **{"rounds": 5} | options)

    return run_ranks(main, ranks, executor="emu")


@pytest.mark.parametrize("routing", ["uniform", "skewed", "local"])
def test_every_call_is_right_and_counted(routing):
    cases = [dataclasses.replace(case, routing=routing, policy=policy, tokens=tokens, sms=sms)
             for case in ALL for policy in ("fast", "bulk") for tokens in (1, 9)
             for sms in (None, 3)]
    before = Buffer.num_sms
    outcome = measured(cases)[0]
    assert outcome.wrong == [] and outcome.times is None and Buffer.num_sms == before
    assert len(outcome.counts) == len(outcome.rows) == len(outcome.launched) == len(cases)
    for case, counts, launched, sms in zip(cases, outcome.counts, outcome.launched, outcome.sms,
                                           strict=True):
        assert len(counts) == 2 and all(rank["warp_instructions"] > 0 for rank in counts), case
        assert launched and (sms == case.sms or case.sms is None and 1 <= sms <= before)


def test_pulled_rows_are_read_and_pushed_rows_are_written():
    shape = SHAPE | {"hidden": 4096}                # a row is more than all records and flags
    pull, push = measured([Case("combine-pull", **shape), Case("combine-push", **shape)])[0].counts
    row = 2 * shape["hidden"]
    assert all(rank["peer_load_bytes"] >= row > rank["peer_store_bytes"] for rank in pull)
    assert all(rank["peer_store_bytes"] >= row > rank["peer_load_bytes"] for rank in push)


def test_all_ranks_have_the_same_times(timed):
    of_ranks = measured(ALL, host_rounds=2)
    assert len(of_ranks[0].times) == len(ALL)
    for first, second in zip(of_ranks[0].times, of_ranks[1].times, strict=True):
        assert first.us.keys() == second.us.keys() == {"kernel", "call", "host"}
        assert all((first.us[name] == second.us[name]).all() for name in first.us)
        assert first.us["kernel"].shape == first.us["call"].shape == (5, 2)
    times = of_ranks[0].times[0]
    assert times.of("kernel").tolist() == [110.0] * 5, "the slower rank's"
    assert times.of("call").tolist() == [130.0] * 5 and times.of("host").tolist() == [31.0] * 2
    assert times.late["kernel"].tolist() == [[False, True]] * 5 and not times.late["call"].any()
    assert of_ranks[0].counts is None


def test_rounds_are_interleaved_alike_on_all_ranks(timed, monkeypatch):
    made = noted_measurements(monkeypatch)
    ticks = []
    measured(ALL, warmup=2, host_rounds=1, progress=lambda: ticks.append(1))
    mine, others = ([entry for rank, *entry in made if rank == r] for r in range(2))
    checks = [[index, "kernel"] for index in range(len(ALL))]
    assert mine == others and mine[:len(ALL)] == checks, "all are checked first"
    turns = [tuple((index, name) for index, name in turn)
             for turn in np.array(mine[len(ALL):], object).reshape(-1, 2 * len(ALL), 2)]
    both = sorted((index, name) for index in range(len(ALL)) for name in ("kernel", "call"))
    assert all(sorted(turn) == both for turn in turns), "each round has both of every case"
    assert len(set(turns)) == len(turns) == 7, "and an order of its own"
    assert len(ticks) == rounds.num_calls(len(ALL), 5, 2, 1) == len(mine) + len(ALL)


def test_only_what_is_asked_for_is_measured(timed, monkeypatch):
    made, ticks = noted_measurements(monkeypatch), []

    def main(comm):
        with rounds.Session(comm, ALL, progress=lambda: ticks.append(1)) as session:
            session.check()
            return session.rounds(session.calls, 5, 2, timed=("kernel",))

    for times in run_ranks(main, 2, executor="emu")[0]:
        assert times.us.keys() == times.late.keys() == {"kernel"}
    assert {name for _, _, name in made} == {"kernel"} and len(ticks) == len(ALL) * (1 + 2 + 5)


def noted_measurements(monkeypatch):
    """(rank, number of the case, what of it is measured) of all that is, in order."""
    made = []
    honest = rounds.Session._measured

    def noted(self, call, name="kernel"):
        made.append((self.comm.rank, self.cases.index(call.case), name))
        return honest(self, call, name)

    monkeypatch.setattr(rounds.Session, "_measured", noted)
    return made


def test_tuning_reaches_the_buffer():
    with pytest.raises(RankError, match="unexpected keyword argument 'wishes'"):
        measured([Case("layout", tuning={"wishes": 3}, **SHAPE)])
    assert not measured([Case("cached", tuning={"zero_copy": True}, **SHAPE)])[0].wrong


def test_copied_results_are_not_timed(monkeypatch):
    with pytest.raises(RankError, match="found no room in the arena and were copied"):
        measured([Case("dispatch", tuning={"zero_copy": False}, **SHAPE)])


def one_wrong(monkeypatch, dtype, rows=None):
    """A wrong byte in what rank 1 gets of that dtype; rows: only where it has so many."""
    honest = Emu.get

    def get(self, given):
        got = honest(self, given)
        if self.executor.rank == 1 and got.dtype == dtype and rows in (None, len(got)):
            got.view("u1")[2, 3] ^= 1
        return got

    monkeypatch.setattr(Emu, "get", get)


@pytest.mark.parametrize(("what", "dtype", "array"), [
    ("dispatch", "bfloat16", "recv_x"), ("cached", "float8_e4m3fn", "recv_x"),
    ("combine-pull", "bfloat16", "combined_x"), ("layout", "bool", "is_token_in_rank")])
def test_a_wrong_row_is_reported_and_nothing_else(what, dtype, array, timed, monkeypatch, tmp_path,
                                                  capsys):
    rows = SHAPE["tokens"] if what == "combine-pull" else None    # not the dispatch before it
    one_wrong(monkeypatch, dtype, rows) if dtype != "bool" else monkeypatch.setattr(
        Emu, "get", lambda self, given, honest=Emu.get: (
            ~honest(self, given) if given.dtype == bool and self.executor.rank else
            honest(self, given)))
    path = tmp_path / "out.json"
    code = cli.main([*GPU, "--what", what, "--out", str(path),
                     "--dtype", "fp8" if dtype.startswith("float8") else "bf16"])
    out = capsys.readouterr().out
    assert code == 1 and f"WRONG  {what} " in out and f"rank 1: {array}: first bad row " in out
    assert "a wrong result is not worth a time" in out and "kernel us" not in out
    made = json.loads(path.read_text())
    assert made["wrong"][0]["array"] == array and "cases" not in made


def test_right_results_are_spoiled_so_that_nobody_finds_them_again():
    made = []

    def main(comm):
        with rounds.Session(comm, [Case("dispatch", **SHAPE)]) as session:
            spoil = session.machine.spoil
            session.machine.spoil = lambda array: (spoil(array), made.append(np.array(array)))
            session.check()

    run_ranks(main, 2, executor="emu")
    assert len(made) == 2 * 5
    assert any((array.view(np.uint8) == 0xA5).all() for array in made if array.ndim == 2)


@pytest.fixture
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_calls_end_with_their_session(no_collector):
    kept = []

    def main(comm):
        with rounds.Session(comm, ALL) as session:
            session.check()
            kept.extend(map(weakref.ref, session.calls))
        comm.barrier()
        return [str(call().case) for call in kept if call()]

    assert run_ranks(main, 2, executor="emu") == [[], []] and len(kept) == 2 * len(ALL)


def test_garbage_goes_before_a_session_and_none_in_it():
    class Left:
        """What only the collector frees."""

        def __init__(self):
            self.itself = self

    def main(comm):
        left = weakref.ref(Left())
        with rounds.Session(comm, ALL[:1]) as session:
            assert left() is None and not gc.isenabled()
            left = weakref.ref(Left())
            session.check()
            return left() is not None and not gc.isenabled()

    assert gc.isenabled()
    assert run_ranks(main, 2, executor="emu") == [True, True] and gc.isenabled()
    with pytest.raises(RankError, match="stages: must be in "):
        run_ranks(lambda comm: rounds.Session(comm, [Case("layout", tuning={"stages": 0})]
                                              ).__enter__(), 2, executor="emu")
    assert gc.isenabled(), "also where it fails"


# -- figures and records ----------------------------------------------------------------------

ROWS = np.array([[30, 10], [20, 40]])


def test_bandwidths():
    case = Case("dispatch", "fp8", hidden=7168)
    row = 7168 + 4 * 56
    made = figures.bandwidths(case, 50.0, ROWS, (0, 1), LINKS)
    assert made["bytes"] == {"row": row, "wire": 20 * row, "logical": 50 * row}
    assert made["floor_us"] == pytest.approx(20 * row / 100e3, abs=0.01)
    assert made["wire_gb_s"] == pytest.approx(20 * row / 50e3, abs=0.1)
    assert made["logical_gb_s"] == pytest.approx(50 * row / 50e3, abs=0.1)
    assert made["wire_of_link"] == pytest.approx(20 * row / 50e3 / 100, abs=1e-3)
    assert made["of_floor"] == pytest.approx(50 / (20 * row / 100e3), abs=1e-2)


def test_what_crosses_no_link_has_no_floor():
    shared = figures.bandwidths(Case("dispatch"), 50.0, ROWS, (0, 0), {})
    assert shared["floor_us"] is shared["wire_gb_s"] is shared["of_floor"] is None
    assert shared["bytes"]["wire"] == 0 < shared["logical_gb_s"]
    layout = figures.bandwidths(Case("layout"), 5.0, ROWS, (0, 1), LINKS)
    assert set(layout.values()) == {None}


def times_of(**of_names):
    """`Times` with 1 us more on rank 1, whose host is late for one of six calls."""
    late = np.zeros((6, 2), bool)
    late[3, 1] = True
    return rounds.Times({name: np.array([[us, us + 1]] * 6) for name, us in of_names.items()},
                        dict.fromkeys(of_names, late))


def test_kernels_that_are_not_ours_are_timed_by_the_call():
    made = figures.figures_of(Case("cached"), times_of(call=200.0), ROWS, None, (0, 1), LINKS)
    assert made["kernel"] is None and made["host"] is None and made["of"] == "call"
    assert made["late"] == {"call": 0.167} and made["rounds_us"] == {"call": [201.0] * 6}
    row = report.times_table([made])[-1].split()
    assert row[row.index("201.0") - 2:][:6] == ["-", "-", "201.0", "201.0", "..", "201.0"]
    ours = figures.figures_of(Case("cached"), times_of(kernel=100.0, call=200.0), ROWS, 16, (0, 1),
                              LINKS)
    assert ours["of"] == "kernel" and ours["kernel"]["median_us"] == 101.0 and ours["sms"] == 16
    assert ours["call"]["median_us"] == 201.0 and ours["rounds_us"].keys() == {"kernel", "call"}


def test_the_record_of_a_timed_run(timed, tmp_path, capsys):
    path = tmp_path / "out.json"
    assert cli.main([*GPU, "--policy", "fast,bulk", "--sms", "2,5", "--out", str(path)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    out = captured.out
    assert "copy engine 200.0 GB/s one way, 100.0 both ways" in out and "of floor" in out
    assert "driver 1.2" in out and "6 rounds of all cases after 2" in out
    made = json.loads(path.read_text())
    assert made["format"] == report.FORMAT and made["machine"]["gpus"] == ["GPU of a test"] * 2
    assert {"version", "date", "seed", "options", "devices", "links", "ptx_inputs"} <= made.keys()
    assert len(made["cases"]) == 8 * 4 + 2 and made["peers"] == []
    for case in made["cases"]:
        assert case["kernel"]["median_us"] == 110.0 and case["call"]["p90_us"] == 130.0
        assert case["host"]["median_us"] == 31.0 and case["launched"]
        assert case["late"] == {"kernel": 1.0, "call": 0.0}
        assert {name: len(us) for name, us in case["rounds_us"].items()} == {"kernel": 6, "call": 6}
    shown = [line for line in out.splitlines() if line.startswith(("cached", "dispatch-wait"))]
    assert all(line.count(" %") == (0 if line.startswith("dispatch-wait") else 2)
               for line in shown) and len(shown) == 2 * 2 * 4
    assert {case["sms"] for case in made["cases"]} == {2, 5}
    assert report.text(made) == out.rstrip("\n"), "the text is of what the record has"


def test_counts_on_the_cpu_executor(tmp_path, capsys):
    path = tmp_path / "out.json"
    assert cli.main([*EMU, "--out", str(path)]) == 0
    out = capsys.readouterr().out
    assert "counts of the CPU executor" in out and "not times" in out and " us" not in out
    made = json.loads(path.read_text())
    assert made["machine"] is None and len(made["cases"]) == 9
    for case in made["cases"]:
        assert case["per_row"]["warp_instructions"] > 0 and len(case["counts"]) == 2
        total = sum(rank["warp_instructions"] for rank in case["counts"])
        assert case["per_row"]["warp_instructions"] == pytest.approx(total / case["rows"], abs=1e-3)


@pytest.mark.parametrize("more", [[], ["--sms", "2,5", "--policy", "fast,bulk", "--routing",
                                       "uniform,skewed"]])
def test_the_plot_draws_something(more, timed, tmp_path):
    image = pytest.importorskip("matplotlib.image", reason="matplotlib is not installed")
    path = tmp_path / "times.png"
    assert cli.main([*GPU, *more, "--plot", str(path)]) == 0
    assert image.imread(path).std() > 0.02


# -- the machine ------------------------------------------------------------------------------

class Log(list):
    """Stands for an executor, events and an alignment: what is done, in order."""

    num_launches = 2

    def profile(self, most):
        self.append(("profile", most > 0))

    def copy_array(self, to, source, nbytes, stream):
        self.append("flush")

    def launch_times(self):
        return [("ep_align", 5.0), ("ep_align2", 5.0), ("ep_a", 90.0), ("ep_b", 10.0)]

    def __call__(self, **options):
        self.append("align")

    def event(self, name, done=False):
        return types.SimpleNamespace(
            record=lambda stream: self.append(name), synchronize=lambda: self.append("wait"),
            since=lambda begin: self.append("wait") or 120.0, done=done)


def gpu_of(log, late=False):
    gpu = object.__new__(Gpu)
    gpu.executor = log
    gpu.flushed = [types.SimpleNamespace(address=0)] * 2
    gpu.begin, gpu.end = log.event("begin", done=late), log.event("end")
    return gpu


@pytest.mark.parametrize("late", [False, True])
def test_nothing_waits_between_the_flush_and_the_end(late):
    log = Log()
    result, timing = gpu_of(log, late).measure(log, lambda: log.append("call") or "result")
    assert result == "result" and timing.us == 100.0 and timing.late is late
    assert timing.launches == (("ep_a", 90.0), ("ep_b", 10.0))
    assert log == [("profile", True), "flush", "flush", "align", "begin", "call", "end", "wait",
                   ("profile", False)]


@pytest.mark.parametrize("late", [False, True])
def test_a_whole_call_has_no_events_inside(late):
    log = Log()
    result, timing = gpu_of(log, late).measure_whole(log, lambda: log.append("call") or "result")
    assert result == "result" and (timing.us, timing.late, timing.launches) == (120.0, late, ())
    assert log == ["flush", "flush", "align", "begin", "call", "end", "wait"]


def test_a_call_beside_work_is_queued_before_it():
    log = Log()

    def call(async_finish):
        assert async_finish
        log.append("call")
        return {"event": types.SimpleNamespace(current_stream_wait=lambda: log.append("join"))}

    assert gpu_of(log).beside(log, call, lambda: log.append("work")) == (100.0, 120.0, False)
    assert log[1:-1] == [*["flush"] * 6, "align", "call", "begin", "work", "end", "wait", "join",
                         "end", "wait"]
    alone = gpu_of(Log()).beside(Log(), None, lambda: None)
    assert np.isnan(alone[0]) and alone[1] == 120.0
    alone = gpu_of(log).beside(log, call, None)
    assert alone[0] == 100.0 and np.isnan(alone[1])


def test_tensors_there_and_back():
    torch = pytest.importorskip("torch")
    gpu = object.__new__(TorchGpu)
    gpu.torch, gpu.device, gpu.wanted = torch, "cpu", {}
    job = Job(Shape(2, 5, 128, 2, 8), 0, dtypes=("bf16", "fp8"))
    for wanted in (job.of_layout(0), job.of_dispatch(0), job.of_rows(0, "fp8"), job.of_combine(0)):
        for want in wanted.values():
            tensor = gpu.give(want)
            assert str(tensor.dtype).removeprefix("torch.") == str(want.dtype)
            back = gpu.get(tensor)
            assert back.dtype == want.dtype and back.shape == want.shape
            assert back.tobytes() == want.tobytes()
            longer = torch.cat([tensor.contiguous().view(torch.uint8)] * 2).view(tensor.dtype)
            assert gpu.same(tensor, want) and gpu.same(longer, want), "rows behind are not valid"
            assert not gpu.same(tensor[:-1], want)
            longer.view(torch.uint8)[0] ^= 1
            assert not gpu.same(longer, want)


class FakeCuda:
    """`torch.cuda`, of which each use is noted."""

    def __init__(self):
        self.log = []
        self.stream_now = "another"

    def set_device(self, device):
        self.log.append(("device", device))

    def Stream(self, device):
        return f"stream of {device}"

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.stream_now = self.stream_now, stream
        yield
        self.stream_now = before

    def current_stream(self, device):
        return self.stream_now

    def graph_pool_handle(self):
        self.log.append("pool")
        return 7

    def CUDAGraph(self):
        return types.SimpleNamespace(replay=lambda: self.log.append("replay"))

    @contextlib.contextmanager
    def graph(self, graph, pool, stream, capture_error_mode):
        self.log.append(("begin", pool, stream, capture_error_mode))
        yield
        self.log.append("end")


def torch_gpu(torch, device=3):
    gpu = object.__new__(TorchGpu)
    gpu.torch, gpu.device, gpu._pool = torch, f"cuda:{device}", None
    gpu.executor = types.SimpleNamespace(device=device)
    return gpu


def test_graphs_are_captured_on_a_stream_of_their_own():
    cuda = FakeCuda()
    gpu = torch_gpu(types.SimpleNamespace(cuda=cuda))
    with own_stream(gpu.executor, gpu.torch):
        first = gpu.captured(lambda: cuda.log.append("work") or "result")
        second = gpu.captured(lambda: None)
    captured = ("begin", 7, "stream of 3", "thread_local")
    assert cuda.log == [("device", 3), "pool", captured, "work", "end", captured, "end"]
    assert cuda.stream_now == "another" and first() == "result" and second() is None
    assert cuda.log[-2:] == ["replay"] * 2
    with own_stream(gpu.executor):
        assert len(cuda.log) == 9, "nothing without torch"


def test_reserved_memory_is_held_all_at_once():
    class Held:
        now, most = set(), 0

        def __init__(self, size, dtype, device):
            assert (dtype, device) == ("uint8", "cuda:3") and size > 0
            self.size = size
            Held.now.add(id(self))
            Held.most = max(Held.most, len(Held.now))
            sizes.append(size)

        def __del__(self):
            Held.now.discard(id(self))

    for nbytes in (0, 10 ** 9):
        sizes = []
        torch_gpu(types.SimpleNamespace(empty=Held, uint8="uint8")).reserve(nbytes)
        assert Held.most == len(sizes) > 10 and not Held.now
        assert max(sizes) == max(nbytes, 1 << 20)


# -- launching --------------------------------------------------------------------------------

class TwoProcesses:
    """What `launch` needs of a plan."""

    layout, devices = "processes", (0, 1)


def here(device, main, plan, init_method, rank, world_size):
    assert init_method.startswith("tcp://127.0.0.1:") and world_size == 2
    return main(rank, device)


def square(rank, device):
    return (rank + 10) ** 2 + device


def refuse(rank, device):
    if rank == 1:
        raise ValueError("sms: too many")
    return 0


def fail(rank, device):
    raise DeepEPError("no luck")


def die(rank, device):
    os._exit(3)


def test_one_process_per_gpu():
    assert launch._spawn(square, TwoProcesses(), here) == 100


@pytest.mark.parametrize(("main", "error", "text"), [
    (refuse, ValueError, "^sms: too many$"), (fail, DeepEPError, "^rank .: DeepEPError: no luck"),
    (die, DeepEPError, "^rank .: its process has died")])
def test_what_a_process_raises(main, error, text):
    with pytest.raises(error, match=text):
        launch._spawn(main, TwoProcesses(), here)


def test_torchrun_says_who_is_where(monkeypatch):
    for name, value in (("LOCAL_RANK", "1"), ("RANK", "1"), ("WORLD_SIZE", "2"),
                        ("MASTER_ADDR", "localhost")):
        monkeypatch.setenv(name, value)
    assert command.torchrun_options(None) == {"ranks": 2, "devices": [0, 1],
                                              "layout": "processes"}
    with pytest.raises(ValueError, match="^--devices: torchrun"):
        command.torchrun_options([0, 1])
    joined = []
    monkeypatch.setattr(launch, "_in_group", lambda *args: joined.append(args))
    launch.run(square, TwoProcesses())
    assert joined[0][:2] == (1, square)


@pytest.mark.parametrize(("layout", "devices", "torch", "want"), [
    (None, (0, 0), object(), "threads"), (None, (0, 1), object(), "processes"),
    (None, (0, 1), None, "threads"), ("threads", (0, 1), object(), "threads")])
def test_the_layout_is_processes_where_they_can_be(layout, devices, torch, want, monkeypatch):
    monkeypatch.setattr(launch, "torch_with_cuda", lambda: (torch, None if torch else "no CUDA"))
    monkeypatch.setattr(plan.importlib.util, "find_spec", lambda name: torch)
    assert plan.layout_of(layout, devices) == want


def test_processes_need_torch(monkeypatch):
    monkeypatch.setattr(launch, "torch_with_cuda", lambda: (None, "torch is not installed"))
    with pytest.raises(ValueError, match="--layout: processes cannot be made: torch is not inst"):
        plan.layout_of("processes", (0, 1))


def test_the_documented_commands_are_one_record_each(monkeypatch):
    root = Path(__file__).resolve().parents[1]
    section = (root / "docs" / "bench.md").read_text().partition("## The records of the README")[2]
    commands = [line.replace("$OUT", "bench/results/x").split()[1:]
                for line in section.split("```")[1].splitlines() if line.startswith("deepep-ptx")]
    plans = []
    monkeypatch.chdir(root)
    monkeypatch.setattr(_cuda, "device_count", lambda: 2)
    monkeypatch.setattr(command.settings, "arch_of", lambda asked, executor: "sm_90")
    monkeypatch.setattr(launch, "torch_with_cuda", lambda: (object(), None))
    monkeypatch.setattr(plan, "layout_of", lambda layout, devices: "processes")
    monkeypatch.setattr(launch, "run", lambda main, planned: plans.append(planned) or 0)
    monkeypatch.setenv("DEEPEP_PTX_EXECUTOR", "cuda")
    assert [cli.main(options) for options in commands] == [0] * 4
    sizes, sms, routing, beside = plans
    assert len(sizes.cases) == 9 * 6 and sizes.peers and {c.sms for c in sizes.cases} == {16}
    found = {(c.what, c.dtype, c.policy, c.sms) for c in sms.cases if c.tokens == 4096}
    assert len(found) == len(sms.cases) == 4 * 3 * 7 and not sms.peers
    assert {8, 16, 24, 32, 64} <= {c.sms for c in sms.cases}
    assert {(c.what, c.dtype, c.routing) for c in routing.cases} == {
        (*one, of) for one in {(c.what, c.dtype) for c in sms.cases} for of in ("skewed", "local")}
    assert len(beside.cases) == 2 * 4 * 3
    assert len({planned.out for planned in plans}) == 4


# -- peers ------------------------------------------------------------------------------------

class NumpyTorch:
    """As much of torch as `peers.DeepEP` uses, over NumPy arrays."""

    uint8, equal = np.uint8, staticmethod(np.array_equal)

    def __init__(self, comm):
        self.distributed = types.SimpleNamespace(group=types.SimpleNamespace(WORLD=comm))


class TheirBuffer(Buffer):
    """DeepEP's `Buffer`, as far as it goes."""

    num_sms = 20
    asked = []

    @staticmethod
    def set_num_sms(num_sms):
        assert num_sms % 2 == 0
        TheirBuffer.asked.append(num_sms)


def with_peer(kind, cases):
    """The JSON of a peer on two ranks, from both."""
    planned = types.SimpleNamespace(cases=cases, devices=(0, 1), rounds=5, warmup=1, host_rounds=2)

    def main(comm):
        with rounds.Session(comm, cases) as session:
            session.machine.torch = NumpyTorch(comm)
            session.check()
            return peers.measured(kind, comm, planned, session, LINKS)

    return run_ranks(main, 2, executor="emu")


@pytest.fixture
def deep_ep(monkeypatch):
    monkeypatch.setitem(peers.importlib.sys.modules, "deep_ep", types.SimpleNamespace(
        Buffer=TheirBuffer, __version__="1.2.3", __spec__=object()))
    monkeypatch.setattr(TheirBuffer, "asked", [])


PEER_CASES = [Case(what, dtype, sms=sms, policy=policy, **SHAPE)
              for policy in ("fast", "bulk") for sms in (4, 7)
              for what, dtype in (("layout", "bf16"), ("dispatch", "bf16"), ("cached", "bf16"),
                                  ("cached", "fp8"), ("combine-push", "bf16"))]


def test_deep_ep_beside_ours(timed, deep_ep):
    first, second = with_peer(peers.DeepEP, PEER_CASES)
    assert first == second and first["version"] == "1.2.3"
    found = [(case["what"], case["dtype"], case["policy"], case["sms"]) for case in first["cases"]]
    wanted = [("layout", "bf16"), ("cached", "bf16"), ("cached", "fp8"), ("combine-push", "bf16")]
    assert found == [(*one, "fast", sms) for sms in (4, 7) for one in wanted] \
        + [(*one, "deep_ep", sms) for sms in (4, 8) for one in wanted], "theirs are even"
    assert {4, 8} == set(TheirBuffer.asked)
    assert "beside deep_ep 1.2.3, interleaved" in report.peers_text(first)
    for case in first["cases"]:
        ours = case["policy"] == "fast"
        assert case["late"].keys() == ({"kernel", "call"} if ours else {"call"})
        assert bool(case["kernel"]) == ours and case["call"]["median_us"] == 130.0


def test_a_peer_that_is_not_there_is_one_line(timed, monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    first, _ = with_peer(peers.DeepEP, PEER_CASES)
    assert first == {"name": "deep_ep", "missing": "the module deep_ep is not installed"}
    assert report.peers_text(first) == ("deep_ep: not timed: the module deep_ep is not installed")
    none, _ = with_peer(peers.Nccl, [Case("layout", **SHAPE)])
    assert none["missing"] == "it has none of these calls, only cached"


def test_compat_is_not_a_peer(timed, deep_ep, monkeypatch):
    monkeypatch.setattr(peers.importlib.sys.modules["deep_ep"], "__version__", "1.2.1+ptx")
    first, _ = with_peer(peers.DeepEP, PEER_CASES)
    assert first["missing"] == "the module deep_ep that is installed is ours, of compat/"


def test_a_peer_with_other_rows_is_not_timed(timed, deep_ep, monkeypatch):
    def wrong(self, x, *args, **options):
        found = Buffer.dispatch(self, x, *args, **options)
        if self.rank == 1:
            found[0].view(np.uint8)[0, 0] ^= 1
        return found

    monkeypatch.setattr(TheirBuffer, "dispatch", wrong, raising=False)
    first, second = with_peer(peers.DeepEP, PEER_CASES)
    assert first == second == {"name": "deep_ep",
                               "missing": "it gives other rows than our dispatch"}


def test_a_peer_that_fails_later_is_an_error_and_what_was_found_is_written(timed, monkeypatch,
                                                                           tmp_path, capsys):
    class Failing(peers.Nccl):
        def __init__(self, torch, ranks, cases):
            self.version = "0"

        def call(self, base, rows, rank):
            def run():
                raise RuntimeError("out of luck")
            return peers.PeerCall(base.case, run, True)

    monkeypatch.setattr(peers, "PEERS", (Failing,))
    monkeypatch.setattr(Timed, "torch", None, raising=False)
    path = tmp_path / "out.json"
    honest = plan.make
    monkeypatch.setattr(plan, "make", lambda **options: dataclasses.replace(
        honest(**options), layout="processes"))
    monkeypatch.setattr(launch, "_spawn", lambda main, planned: launch.run_ranks(
        main, 2, planned, executor="cuda", devices=planned.devices)[0])
    monkeypatch.setattr(intranode, "torch_of", lambda planned: None)
    monkeypatch.setattr(command.settings, "arch_of", lambda asked, executor: "sm_90")
    options = [word for word in GPU if word not in ("--arch", "sm_90")]
    assert cli.main([*options, "--out", str(path)]) == 1
    assert "nccl: RuntimeError: out of luck" in capsys.readouterr().err
    assert len(json.loads(path.read_text())["cases"]) == 9


def tensors(torch):
    """`Timed` with torch's tensors."""
    class Tensors(Timed):
        def give(self, array):
            data = torch.from_numpy(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
            return data.view(getattr(torch, str(array.dtype))).reshape(array.shape)

        def get(self, array):
            from deepep_ptx.arrays.dtypes import BY_NAME
            if isinstance(array, np.ndarray):
                return array
            dtype = BY_NAME[str(array.dtype).removeprefix("torch.")]
            return array.contiguous().reshape(-1).view(torch.uint8).numpy().view(dtype).reshape(
                tuple(array.shape))

        def store(self, array, rows):
            array.copy_(rows)

        def spoil(self, array):
            """Tensors of the CPU executor are spoiled elsewhere."""

    return Tensors


def test_nccl_beside_ours(timed):
    torch = pytest.importorskip("torch")
    fake = types.SimpleNamespace(
        cat=torch.cat, uint8=torch.uint8, equal=torch.equal,
        cuda=types.SimpleNamespace(nccl=types.SimpleNamespace(version=lambda: (2, 28))))

    cases = [Case("cached", dtype, sms=sms, **SHAPE) for dtype in ("bf16", "fp8")
             for sms in (4, 7)]
    planned = types.SimpleNamespace(cases=cases, devices=(0, 1), rounds=5, warmup=1, host_rounds=0)

    def main(comm):
        def all_to_all_single(received, sent, origin, to, group):
            everybody = comm.allgather([part.clone() for part in sent.split(to)])
            received.copy_(torch.cat([parts[comm.rank] for parts in everybody]))
            assert [len(parts[comm.rank]) for parts in everybody] == origin

        fake_of_rank = types.SimpleNamespace(**vars(fake), distributed=types.SimpleNamespace(
            is_nccl_available=lambda: True, new_group=lambda backend: backend,
            all_to_all_single=all_to_all_single))
        with rounds.Session(comm, cases) as session:
            session.machine = tensors(torch)(comm.executor)
            session.machine.torch = fake_of_rank
            session.check()
            assert not session.wrong
            return peers.measured(peers.Nccl, comm, planned, session, LINKS)

    first, _ = run_ranks(main, 2, executor="emu")
    assert first["version"] == "2.28"
    assert [(case["policy"], case["dtype"], case["sms"]) for case in first["cases"]] == [
        ("fast", "bf16", 4), ("fast", "fp8", 4), ("nccl", "bf16", None), ("nccl", "fp8", None)]


# -- overlap ----------------------------------------------------------------------------------

@pytest.fixture
def overlapping(monkeypatch, timed):
    monkeypatch.setattr(launch, "torch_with_cuda", lambda: (object(), None))


def overlap_plan(**options):
    return overlap.make(arch="sm_90", num_gpus=2, rounds=6, warmup=1, policy=["fast", "bulk"],
                        sms=[4, 2], **SHAPE | options)


def overlap_record(made):
    def main(comm):
        with (rounds.Session(comm, made.cases) as session,
              intranode.bar_of(comm, made.num_calls) as bar):
            session.check()
            return overlap.measured(comm, made, session, [lambda: None] * len(made.gemms), bar)

    times = run_ranks(main, 2, executor="emu")[0]
    return report.head("bench overlap", made) | overlap.figures_of(made, times, [1, 20], 132)


def test_overlap_has_every_call_beside_every_gemm(overlapping):
    made = overlap_plan()
    record = overlap_record(made)
    assert len(record["pairs"]) == len(made.cases) * 2 == 16
    for pair in record["pairs"]:
        assert pair["gemm_slowdown"] == pytest.approx(10) and pair["comm_slowdown"] == 50.0
        assert pair["sm_share"] == pytest.approx(100 * pair["sms"] / 132 * 300 / 600, abs=0.01)
    text = overlap_report.text(record)
    assert "8192x4096x7168 * 1" in text and "2048x2048x2048 * 20" in text and "10.0 %" in text
    json.dumps(record)
    assert made.num_calls == len(made.cases) + 7 * len(overlap.entries(made))


def test_the_plot_of_overlap_draws_something(overlapping, tmp_path):
    image = pytest.importorskip("matplotlib.image", reason="matplotlib is not installed")
    overlap_report.draw(overlap_record(overlap_plan()), tmp_path / "x.png")
    assert image.imread(tmp_path / "x.png").std() > 0.02


@pytest.mark.parametrize(("options", "start"), [
    (["--what", "layout"], "--what: must be of dispatch, combine-pull, got 'layout'"),
    (["--sms", "8,0"], "--sms: must be at least 1, got 0"),
    (["--policy", "ld_wishful"], "--policy: unknown policy"),
    (["--devices", "0,0"], "--devices: each rank must have a GPU of its own, got 0,0"),
    (["--rounds", "2"], "--rounds: must be at least 5, got 2"),
    (["--target-us", "0"], "--target-us: must be at least 1, got 0"),
])
def test_bad_input_of_overlap(options, start, overlapping, monkeypatch, capsys):
    monkeypatch.setattr(command.settings, "arch_of", lambda asked, executor: "sm_90")
    assert cli.main(["bench", "overlap", *options]) == 2
    assert capsys.readouterr().err.startswith(f"deepep-ptx: {start}")


def test_overlap_without_torch_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(launch, "torch_with_cuda", lambda: (None, "torch is not installed"))
    assert cli.main(["bench", "overlap"]) == 1
    assert capsys.readouterr().err == ("deepep-ptx: bench overlap: its GEMM needs torch with CUDA: "
                                       "torch is not installed\n")


def test_gemms_are_named_by_their_sizes(capsys):
    assert command.gemms("8x4x2,16x16x16") == [(8, 4, 2), (16, 16, 16)]
    for bad in ("8x4", "8x4x0", "axbxc"):
        with pytest.raises(SystemExit):
            cli.main(["bench", "overlap", "--gemm", bad])
        assert capsys.readouterr().err.startswith("deepep-ptx: --gemm: invalid")


def test_the_arena_has_room_for_what_stays_and_three_results():
    cases = [Case("cached", tokens=100), Case("dispatch", tokens=100), Case("dispatch", tokens=10)]
    with_handle = calls.arena_bytes(cases, 2)
    assert with_handle % 128 == 0
    assert with_handle - calls.arena_bytes(cases[1:], 2) >= 2 * 100 * 7168 * 2


# -- low latency --------------------------------------------------------------------------------

LL_OPTIONS = ["--ranks", "2", "--hidden", "256", "--topk", "3", "--experts", "8"]
LL_EMU = ["bench", "ll", "--executor", "emu", "--tokens", "3,35", *LL_OPTIONS]
LL_GPU = ["bench", "ll", "--executor", "cuda", "--arch", "sm_90", "--layout", "threads",
          "--tokens", "1,5", "--rounds", "5", "--warmup", "1", *LL_OPTIONS]
IDX = [np.array([[0, 1, 4], [5, 6, 7]]), np.array([[0, 4, -1], [7, 5, 6], [1, 2, 3]])]


@pytest.fixture
def timed_ll(timed, monkeypatch):
    """`timed`, with graphs, of two calls each."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(launch, "torch_with_cuda", lambda: (torch, None))
    for module in (ll, ll_session):
        monkeypatch.setattr(module, "PER_GRAPH", 2)
    monkeypatch.setattr(ll, "own_stream", lambda executor, torch: contextlib.nullcontext())


def ll_case_of(dtype="fp8", reduce="exact", tokens=3, **more):
    return ll_case.Case(dtype, reduce, tokens, 256, 3, 8, **more)


def test_tokens_and_choices_that_cross():
    tokens, choices = ll_case.crossings(IDX, 8)
    assert tokens.tolist() == [[1, 2], [2, 2]] and choices.tolist() == [[2, 4], [4, 4]]


@pytest.mark.parametrize(("dtype", "reduce", "there", "back"), [
    ("fp8", "exact", 2 * (256 + 8), 4 * 512), ("bf16", "rank", 2 * 512, 2 * 1024),
    ("bf16", None, 4 * 512, 4 * 512)])
def test_bytes_that_cross(dtype, reduce, there, back):
    made = ll_case.payload(ll_case_of(dtype, reduce), IDX, (0, 0))
    assert made["dispatch"] == {"peers": there, "wire": 0, "total": 2 * there}
    assert made["combine"] == {"peers": back, "wire": 0, "total": 2 * back}
    assert made["pair"] == {"peers": there + back, "wire": 0, "total": 2 * (there + back)}
    apart = ll_case.payload(ll_case_of(dtype, reduce), IDX, (0, 1))
    assert apart["pair"]["wire"] == apart["pair"]["peers"] == there + back


def test_bandwidths_of_low_latency():
    assert ll_case.bandwidths(50_000, 2.0, LINKS) == {
        "floor_us": 0.5, "wire_gb_s": 25.0, "wire_of_link": 0.25, "of_floor": 4.0}
    assert set(ll_case.bandwidths(0, 2.0, {}).values()) == {None}


def test_memory_and_results_are_those_of_the_calls():
    case = ll_case_of("bf16", "rank", tokens=35)

    def main(comm):
        job = ll_case.Job(ll_case.shape_of(case, 2), 0, ["bf16"], ["rank"])
        with ll_session.Session(comm, [case], {35: job}) as session:
            session.check()
            got, handle = session.calls[0].dispatch()
            arrays = [*got.values(), session.calls[0].combine(handle)]
            return session.wrong, session.low_latency_bytes, sum(a.nbytes for a in arrays)

    for wrong, memory, nbytes in run_ranks(main, 2, executor="emu"):
        assert wrong == [] and memory == case.memory(2) and 0 < nbytes <= case.result_bytes(2)


def test_low_latency_counts_on_the_cpu_executor(tmp_path, capsys):
    path = tmp_path / "out.json"
    assert cli.main([*LL_EMU, "--out", str(path)]) == 0
    out = capsys.readouterr().out
    assert "counts of the CPU executor" in out and " us" not in out and "not executed" in out
    made = json.loads(path.read_text())
    assert made["machine"] is None and made["program"] == "deepep-ptx bench ll"
    assert len(made["cases"]) == 2 * 2 * 2 * 2 and set(made["low_latency_bytes"]) == {"exact",
                                                                                      "rank"}
    for case in made["cases"]:
        assert case["compared"] and case["sms"] == 2 and len(case["counts"]) == 2
        assert case["launched"] == [f"ep_ll_{case['what']}"]
        assert all(rank["warp_instructions"] > 0 for rank in case["counts"])
        stored = sum(rank["peer_store_bytes"] for rank in case["counts"])
        assert case["bytes"]["total"] < stored, "rows, and what tells that they are there"
        assert case["memory"] <= made["low_latency_bytes"][case["reduce"]]
    assert ll_report.text(made) == out.rstrip("\n")


def test_large_cases_are_called_and_not_compared(monkeypatch, capsys):
    monkeypatch.setattr(ll_case, "COMPARED_TOKENS", 3)
    monkeypatch.setattr(ll_report, "COMPARED_TOKENS", 3)
    assert cli.main(LL_EMU) == 0
    assert "for every case of up to 3 tokens" in capsys.readouterr().out


def test_the_record_of_timed_low_latency_calls(timed_ll, tmp_path, capsys):
    path = tmp_path / "out.json"
    assert cli.main([*LL_GPU, "--out", str(path)]) == 0
    captured = capsys.readouterr()
    assert captured.err == "" and "low-latency memory of a rank, reduce rank" in captured.out
    made = json.loads(path.read_text())
    assert len(made["cases"]) == 2 * 2 * 2 * 3 and made["peers"] == []
    assert {(c["what"], c["dtype"], c["reduce"], c["tokens"]) for c in made["cases"]} == {
        (what, dtype, reduce, tokens) for what in ll_case.WHATS for dtype in ll_case.DTYPES
        for reduce in ("exact", "rank") for tokens in (1, 5)}
    for case in made["cases"]:
        assert case["graph"]["median_us"] == 65.0, "of two in a replay, the slower rank's"
        assert case["eager"]["median_us"] == 130.0 and case["host"]["median_us"] == 31.0
        assert case["late"] == {"graph": 0.0, "eager": 0.0}
        assert {name: len(us) for name, us in case["rounds_us"].items()} == {"graph": 5,
                                                                             "eager": 5}
        assert case["wire_gb_s"] == pytest.approx(case["bytes"]["wire"] / 65e3, abs=0.1)
        assert (case["sms"] is None) == (case["what"] == "pair")
    assert ll_report.text(made) == captured.out.rstrip("\n")


@pytest.mark.parametrize("executor", ["emu", "cuda"])
def test_the_bar_of_low_latency_ends(executor, request, monkeypatch):
    if executor == "cuda":
        request.getfixturevalue("timed_ll")
    steps = []
    monkeypatch.setattr(ll, "bar_of", lambda comm, total: contextlib.nullcontext(
        types.SimpleNamespace(update=lambda: steps.append(total), close=lambda: None)))
    options = [*(LL_EMU if executor == "emu" else LL_GPU), "--dtype", "fp8", "--tokens", "2"]
    assert cli.main(options) == 0 and len(steps) == steps[0]


def test_graphs_hold_ten_calls_and_their_results_are_compared(timed_ll, monkeypatch):
    made, compared = [], []
    honest = ll_session.Session.compared
    for what in ll_case.WHATS:
        honest_call = getattr(ll_session.Calls, what)
        monkeypatch.setattr(ll_session.Calls, what, lambda self, *args, what=what, run=honest_call:
                            (made.append(what), run(self, *args))[1])
    monkeypatch.setattr(ll_session.Session, "compared", lambda self, case, what, result: (
        compared.append(what), honest(self, case, what, result))[1])
    case = ll_case_of(tokens=2)

    def main(comm):
        job = ll_case.Job(ll_case.shape_of(case, 2), 0, ["fp8"], ["exact"])
        with ll_session.Session(comm, [case], {2: job}) as session:
            session.check()
            graphs = session.graphs(session.calls)
            assert not session.wrong
            return [graph.what for graph in graphs]

    assert run_ranks(main, 2, executor="emu")[0] == list(ll_case.WHATS)
    assert made.count("pair") == 2 * ll_session.PER_GRAPH, "of both ranks"
    assert made.count("dispatch") == 2 * (1 + 2 * ll_session.PER_GRAPH)
    assert sorted(compared) == sorted(2 * ["dispatch", "combine", *ll_case.WHATS])


@pytest.mark.parametrize(("dtype", "array"), [
    ("bfloat16", "recv_x"), ("float8_e4m3fn", "recv_x"), ("float32", "recv_scales"),
    ("int64", "layout_range")])
def test_a_wrong_low_latency_row_is_reported_and_nothing_else(dtype, array, timed_ll, monkeypatch,
                                                             tmp_path, capsys):
    honest = Emu.get

    def get(self, given):
        got = honest(self, given)
        if self.executor.rank == 1 and got.dtype == dtype:
            got.view("u1")[...] ^= 1
        return got

    monkeypatch.setattr(Emu, "get", get)
    path = tmp_path / "out.json"
    kind = "bf16" if dtype == "bfloat16" else "fp8"
    assert cli.main([*LL_GPU, "--dtype", kind, "--out", str(path)]) == 1
    out = capsys.readouterr().out
    assert f"WRONG  dispatch {kind}, exact, 1 tokens" in out and "graph us" not in out
    assert f"rank 1: {array}: first bad row " in out and "is not worth a time" in out
    made = json.loads(path.read_text())
    assert made["wrong"][0]["array"] == array and "cases" not in made


def test_a_wrong_sum_of_a_graph_is_reported(timed_ll, monkeypatch, capsys):
    def captured(self, work):
        def wrong():
            result = work()
            if not isinstance(result, tuple) and self.executor.rank == 1:
                result.view("u1")[0, 5] ^= 1
            return result

        return wrong

    monkeypatch.setattr(Timed, "captured", captured)
    assert cli.main(LL_GPU) == 1
    out = capsys.readouterr().out
    assert "the buffer's SMs, graph of pair: rank 1: combined_x: first bad row 0" in out
    assert "graph us" not in out


@pytest.mark.parametrize(("options", "start"), [
    (["--tokens", "0"], "--tokens: must be 1.."),
    (["--hidden", "200"], "--hidden: must be a multiple of 128, got 200"),
    (["--hidden", "0"], "--hidden: must be 128.."),
    (["--dtype", "fp4"], "--dtype: must be of fp8, bf16, got 'fp4'"),
    (["--reduce", "sum"], "--reduce: must be of exact, rank, got 'sum'"),
    (["--reduce", ""], "--reduce: must not be empty"),
    (["--topk", "9"], "--topk: must be 1..8, got 9"),
    (["--experts", "9"], "--experts: must be a multiple of --ranks (2), got 9"),
    (["--num-sms", "0"], "--sms: must be at least 1, got 0"),
    (["--num-sms", "1000"], "--sms: must be in [1, "),
    (["--rounds", "9"], "--rounds: only on GPUs"),
    (["--layout", "threads"], "--layout: only on GPUs"),
    (["--out", "no/such/x.json"], "--out: cannot write no/such/x.json"),
])
def test_bad_input_of_low_latency(options, start, capsys):
    assert cli.main([*LL_EMU, *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith(f"deepep-ptx: {start}")
    assert captured.err.count("\n") == 1


def test_low_latency_on_gpus_needs_torch(timed, monkeypatch, capsys):
    monkeypatch.setattr(launch, "torch_with_cuda", lambda: (None, "torch is not installed"))
    assert cli.main(LL_GPU) == 1
    assert capsys.readouterr().err == ("deepep-ptx: bench ll: its graphs need torch with CUDA: "
                                       "torch is not installed\n")


def test_defaults_of_low_latency(monkeypatch):
    monkeypatch.setattr(launch, "torch_with_cuda", lambda: (object(), None))
    monkeypatch.setattr(plan.importlib.util, "find_spec", lambda name: object())
    made = ll.make(executor="cuda", arch="sm_90", num_gpus=2)
    assert made.layout == "processes" and len(made.cases) == 5 * 2 * 2
    assert {(c.hidden, c.topk, c.experts) for c in made.cases} == {(7168, 8, 288)}
    assert ll.make(executor="cuda", arch="sm_90", num_gpus=5).cases[0].experts == 290
    shared = ll.make(executor="cuda", arch="sm_90", num_gpus=1)
    assert shared.layout == "threads" and shared.devices == (0, 0)


# -- DeepEP's low-latency calls -----------------------------------------------------------------

class TheirLowLatency(Buffer):
    """DeepEP's `Buffer`, with its one way to add up."""

    def __init__(self, group, num_nvl_bytes, num_rdma_bytes, low_latency_mode, num_qps_per_rank):
        assert low_latency_mode and num_qps_per_rank == 4 and num_nvl_bytes == 0 < num_rdma_bytes
        super().__init__(group, num_nvl_bytes, num_rdma_bytes, low_latency_mode, reduce="exact")


def with_deep_ep_ll(cases):
    """What `ll_peers` finds on two ranks, from both, and whose calls it has timed."""
    torch = pytest.importorskip("torch")
    planned = types.SimpleNamespace(rounds=5, warmup=1, host_rounds=2, devices=(0, 1))

    def main(comm):
        jobs = {tokens: ll_case.Job(ll_case.Shape(2, tokens, 256, 3, 8), 0, ["fp8", "bf16"],
                                    ["exact"]) for tokens in {case.tokens for case in cases}}
        session = ll_session.Session(comm, cases, jobs)
        session.machine = tensors(torch)(comm.executor)
        session.machine.torch = types.SimpleNamespace(
            zeros_like=torch.zeros_like, distributed=types.SimpleNamespace(
                group=types.SimpleNamespace(WORLD=comm)))
        with session:
            session.check()
            assert not session.wrong
            found, made, times = ll_peers.measured(comm, planned, session, jobs)
            if times:
                found["cases"] = ll.figures_of(made, times, jobs, planned, LINKS)
            return found

    return run_ranks(main, 2, executor="emu")


LL_CASES = [ll_case_of("fp8", sms=None), ll_case_of("fp8", sms=3), ll_case_of("bf16", tokens=1)]


@pytest.fixture
def deep_ep_ll(monkeypatch):
    monkeypatch.setitem(peers.importlib.sys.modules, "deep_ep", types.SimpleNamespace(
        Buffer=TheirLowLatency, __version__="1.2.3", __spec__=object()))


def test_deep_ep_beside_our_low_latency_calls(timed_ll, deep_ep_ll):
    first, second = with_deep_ep_ll(LL_CASES)
    assert first == second and first["version"] == "1.2.3"
    assert [(c["what"], c["dtype"], c["reduce"], c["tokens"], c["sms"]) for c in first["cases"]] \
        == [(what, dtype, reduce, tokens, None) for reduce in ("exact", None)
            for dtype, tokens in (("fp8", 3), ("bf16", 1)) for what in ll_case.WHATS]
    ours, theirs = first["cases"][0], first["cases"][6]
    assert theirs["bytes"]["total"] > ours["bytes"]["total"], "they send a row for each choice"
    assert theirs["graph"]["median_us"] == 65.0
    text = ll_report.peers_text(first)
    assert "beside deep_ep 1.2.3, interleaved" in text and text.count("dispatch  fp8") == 2


def test_deep_ep_that_computes_something_else_is_not_timed(timed_ll, deep_ep_ll, monkeypatch):
    def wrong(self, *args, **options):
        out, *rest = Buffer.low_latency_combine(self, *args, **options)
        if self.rank == 1:
            out[1] *= 2
        return out, *rest

    monkeypatch.setattr(TheirLowLatency, "low_latency_combine", wrong, raising=False)
    first, second = with_deep_ep_ll(LL_CASES[:1])
    assert first == second == {"name": "deep_ep", "missing": "its combine of what its dispatch "
                                                             "gave is not the weighted sum"}


def test_deep_ep_of_our_own_is_no_peer_of_low_latency(timed_ll, deep_ep_ll, monkeypatch):
    monkeypatch.setattr(peers.importlib.sys.modules["deep_ep"], "__version__", "1.2.1+ptx")
    first, _ = with_deep_ep_ll(LL_CASES[:1])
    assert ll_report.peers_text(first) == ("deep_ep: not timed: the module deep_ep that is "
                                           "installed is ours, of compat/")
