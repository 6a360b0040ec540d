# SPDX-License-Identifier: MIT
"""`deepep-ptx ab`: planning, statistics and verdicts, the run, records and texts, machine code."""

import dataclasses
import gc
import json
import re

import numpy as np
import pytest

from deepep_ptx import Buffer, _cuda, cli, run_ranks, select
from deepep_ptx.cli import measure
from deepep_ptx.cli.ab import plan, report, run, sass
from deepep_ptx.cli.measure import bits, statistics, traffic
from deepep_ptx.cli.measure.inputs import Job
from deepep_ptx.cli.measure.machine import Emu, Timing
from deepep_ptx.cli.options import names, numbers
from deepep_ptx.errors import DeepEPError
from deepep_ptx.toolchain.ptxas import Assembly, Sass, ToolError

SMALL = {"ranks": 2, "tokens": 5, "hidden": 16, "topk": 2, "experts": 4}
OPTIONS = [*(word for name, value in SMALL.items() for word in (f"--{name}", str(value))),
           "--no-check"]


def planned(kernel="dispatch", policies=("ld_na", "ld_nc_na"), executor="emu", **options):
    options = {"arch": "sm_90"} | SMALL | options
    return plan.make(kernel, list(policies), executor=executor, **options)


def job_of(made):
    return Job(made.shape, made.seed, combine=made.kernel != "dispatch")


# -- plan -------------------------------------------------------------------------------------

def test_comparable_kernels_have_several_variants():
    assert plan.comparable("sm_90") == ["dispatch", "combine"]


def test_names_are_policies_aliases_paths_and_symbols():
    made = planned("combine", ["fast", "ld_relaxed_sys", "ld_nc_na", "ep_combine_vec_ld_na"])
    assert [c.symbol for c in made.contenders] == [
        "ep_combine_bulk", "ep_combine_vec_ld_relaxed_sys", "ep_combine_vec_ld_nc_na",
        "ep_combine_vec_ld_na"]
    assert [c.undefined for c in made.contenders] == [False, False, True, False]


def test_the_same_form_is_defined_where_nobody_writes():
    assert not any(c.undefined for c in planned("dispatch").contenders)


def test_every_round_is_an_order_of_all_contenders():
    made = planned(policies=["ld_na", "bulk", "ld_nc_na"], executor="cuda", rounds=40, warmup=2)
    order = made.order()
    assert order.shape == (42, 3)
    assert (np.sort(order, axis=1) == np.arange(3)).all()
    assert len({tuple(row) for row in order}) == 6, "all orders come up"
    assert (order == made.order()).all(), "the seed fixes them"
    assert (order != dataclasses.replace(made, seed=1).order()).any()


def test_defaults_of_the_executors():
    gpu = plan.make("dispatch", ["fast", "bulk"], executor="cuda", arch="sm_90", num_gpus=3)
    assert (gpu.ranks, gpu.devices, gpu.tokens, gpu.hidden) == (3, (0, 1, 2), 4096, 7168)
    assert gpu.experts == 258, "the ranks share them out evenly"
    one = plan.make("dispatch", ["fast", "bulk"], executor="cuda", arch="sm_90", num_gpus=1)
    assert (one.ranks, one.devices) == (2, (0, 0))
    emu = plan.make("dispatch", ["fast", "bulk"], executor="emu", arch="sm_90", num_gpus=1)
    assert (emu.ranks, emu.devices, emu.rounds, emu.num_calls) == (4, None, 0, 2)


def test_the_mode_follows_the_kernel():
    assert planned("dispatch").combine is None
    assert planned("combine").combine == "pull"
    assert planned("combine", combine="push").combine == "push"


@pytest.mark.parametrize("kernel, policies, options, start", [
    ("dispach", "ld_na,bulk", {}, "KERNEL: 'dispach' has no variants to compare; did you mean "
                                  "dispatch? those that have on sm_90 are dispatch, combine\n"),
    ("layout", "ld_na,bulk", {}, "KERNEL: 'layout' has no variants to compare; those"),
    ("dispatch", "ld_na", {}, "--policy: must name at least two, got ld_na; dispatch has ld_na, "),
    ("dispatch", "ld_na,ld_nc_ma", {}, "--policy: unknown policy 'ld_nc_ma'; did you mean "
                                       "ld_nc_na or ld_na"),
    ("dispatch", "fast,ld_na", {}, "--policy: fast and ld_na are the same variant of dispatch, "
                                   "ep_dispatch_vec_ld_na"),
    ("dispatch", "ld_na,ep_combine_bulk", {}, "--policy: dispatch has no variant 'ep_combine"),
    ("dispatch", "ld_na,bulk", {"hidden": 12}, "--hidden: "),
    ("dispatch", "ld_na,bulk", {"experts": 5}, "--experts: must be a multiple of --ranks (2)"),
    ("dispatch", "ld_na,bulk", {"topk": 5}, "--topk: must be 1..4"),
    ("dispatch", "ld_na,bulk", {"tokens": 0}, "--tokens: "),
    ("dispatch", "ld_na,bulk", {"ranks": 65}, "--ranks: must be 1..64"),
    ("dispatch", "ld_na,bulk", {"sms": 0}, "--sms: "),
    ("dispatch", "ld_na,bulk", {"seed": -1}, "--seed: "),
    ("dispatch", "ld_na,bulk", {"timeout-s": 0}, "--timeout-s: "),
    ("dispatch", "ld_na,bulk", {"rounds": 9}, "--rounds: only on GPUs"),
    ("dispatch", "ld_na,bulk", {"devices": "0,1"}, "--devices: only on GPUs"),
    ("dispatch", "ld_na,bulk", {"combine": "push"}, "--combine: is for combine, not dispatch"),
    ("dispatch", "ld_na,bulk", {"executor": "cuda", "rounds": 4}, "--rounds: must be at least 5"),
    ("dispatch", "ld_na,bulk", {"executor": "cuda", "devices": "0"}, "--devices: must name one"),
    ("dispatch", "ld_na,bulk", {"json": "no/such/folder/x.json"}, "--json: "),
])
def test_bad_input_is_one_line_and_exit_code_2(kernel, policies, options, start, capsys):
    options = SMALL | {"executor": "emu", "arch": "sm_90"} | options
    argv = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    assert cli.main(["ab", kernel, "--policy", policies, *argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"deepep-ptx: {start}") and captured.err.count("\n") == 1


def test_devices_that_are_not_there():
    with pytest.raises(ValueError, match="--devices: must be below 2, .*got 0, 2"):
        planned(executor="cuda", num_gpus=2, devices=[0, 2])


def test_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(_cuda, "device_count", lambda: 0)
    monkeypatch.setattr(_cuda, "why_not", lambda: "no driver here")
    argv = ["ab", "dispatch", "--policy", "fast,bulk", "--executor", "cuda", *OPTIONS]
    assert cli.main(argv) == 1
    assert capsys.readouterr().err == \
        "deepep-ptx: --executor: 'cuda' cannot be used: no driver here\n"
    assert cli.main([*argv, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "ep_dispatch_bulk" in out and "on GPUs 0, 0" in out and "214 calls" in out


def test_dry_run_runs_nothing(monkeypatch, capsys):
    monkeypatch.setattr(run, "run_ranks", None)
    assert cli.main(["ab", "combine", "--policy", "fast,ld_nc_na", "--dry-run",
                     "--executor", "emu", *OPTIONS]) == 0
    out = capsys.readouterr().out
    assert "combine (pull)" in out and "undefined at its load site" in out
    assert "2 calls" in out


# -- statistics -------------------------------------------------------------------------------

def rounds_of(rng, median, count=60):
    """Times with the long tail that real ones have, and what each round adds to every variant."""
    return median + rng.exponential(0.5, count) - 0.5 * np.log(2)


def test_the_interval_covers_the_truth():
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        drift = rng.standard_normal(60)
        found = statistics.ratio(rounds_of(rng, 103) + drift, rounds_of(rng, 100) + drift, trial)
        covered += found.low <= 1.03 <= found.high
        assert found.low <= found.median <= found.high
    assert 180 <= covered <= 200, "95 % of 200, give or take"


def test_rounds_are_paired():
    """What a round does to both does not widen the interval by much."""
    rng = np.random.default_rng(2)
    base, drift = 100 + 0.01 * rng.standard_normal(60), np.linspace(0, 10, 60)
    found = statistics.ratio(1.02 * (base + drift), base + drift)
    assert found.high - found.low < 0.001


def test_the_seed_fixes_the_interval():
    rng = np.random.default_rng(3)
    times, base = rounds_of(rng, 101), rounds_of(rng, 100)
    assert statistics.ratio(times, base, 7) == statistics.ratio(times, base, 7)
    assert statistics.ratio(times, base, 7) != statistics.ratio(times, base, 8)


@pytest.mark.parametrize("ratio, text", [
    ((1.012, 1.004, 1.021), "b is 1.20 % slower than a (95 %: 0.40 .. 2.10 %)"),
    ((0.97, 0.96, 0.98), "b is 3.00 % faster than a (95 %: 2.00 .. 4.00 %)"),
    ((1.01, 0.998, 1.02), "no difference between b and a: the interval of their ratio, 0.9980 .. "
                          "1.0200, holds 1.0"),
    ((1.0, 1.0, 1.0), "no difference between b and a: the interval of their ratio, 1.0000 .. "
                      "1.0000, holds 1.0"),
])
def test_verdicts(ratio, text):
    assert statistics.verdict("b", "a", statistics.Ratio(*ratio)) == text


def test_the_verdict_turns_with_the_times():
    rng = np.random.default_rng(4)
    base = rounds_of(rng, 100)
    words = [statistics.verdict("b", "a", statistics.ratio(rounds_of(rng, m), base))
             for m in (98, 100, 102)]
    assert ["faster" in words[0], "no difference" in words[1], "slower" in words[2]] == [True] * 3


def outcome_of(made, medians, rounds=40, seed=5):
    rng = np.random.default_rng(seed)
    times = np.stack([np.stack([rounds_of(rng, m, rounds), rounds_of(rng, m - 20, rounds)], axis=1)
                      for m in medians])
    launched = [(c.symbol,) for c in made.contenders]
    return run.Outcome([], times, None, launched, "GPU of a test")


@pytest.mark.parametrize("medians, words", [
    ((100, 95, 97), "best defined variant, bulk, and does not (ratio 1.0"),
    ((100, 95, 90), "best defined variant, bulk, and does"),
])
def test_an_undefined_form_has_to_beat_the_best_defined_one(medians, words):
    made = planned("combine", ["ld_na", "bulk", "ld_nc_na"], "cuda")
    lines = report.verdicts(made, outcome_of(made, medians))
    assert len(lines) == 3 and words in lines[2]
    assert lines[2].startswith("ld_nc_na: PTX leaves its loads undefined at a peer site")
    assert ("does not" in words) == ("does not" in lines[2])


def test_undefined_forms_alone_have_nothing_to_beat():
    made = planned("combine", ["ld_nc_na", "ld_nc_na_bare"], "cuda")
    lines = report.verdicts(made, outcome_of(made, (100, 100)))
    assert sum("and none is in this run" in line for line in lines) == 2


# -- bytes ------------------------------------------------------------------------------------

ROWS = np.array([[9, 4, 2], [3, 9, 1], [5, 6, 9]])      # [home, host]


def test_busiest():
    assert traffic.busiest_link(ROWS, [0, 1, 2]) == 11, "rank 2 sends 5 + 6"
    assert traffic.busiest_link(ROWS.T, [0, 1, 2]) == 11, "and gets as many back"
    assert traffic.busiest_link(ROWS, [0, 1, 0]) == 4 + 6, "ranks on one GPU share its links"
    assert traffic.busiest_link(ROWS, [0, 0, 0]) == 0
    assert traffic.busiest_rank(ROWS) == 19


def test_bytes_of_a_row():
    assert traffic.row_bytes(7168, "bf16") == 14336
    assert traffic.row_bytes(7168, "fp8") == 7168 + 4 * 56, "scales cross the link too"


# -- measure ----------------------------------------------------------------------------------

def test_spread():
    assert measure.spread(range(20, 0, -1)) == {"median_us": 10.5, "p10_us": 3, "p90_us": 18}


def test_wrong_rows_are_of_bits():
    want = np.array([[0.0, np.nan], [1, 2], [3, 4]], np.float32)
    got = want.copy()
    assert not len(bits.wrong_rows(got, want)), "the same NaN is right"
    got[0, 0] = -0.0
    got[2, 1] = 5
    assert bits.wrong_rows(got, want).tolist() == [0, 2]
    assert bits.wrong_rows(got[:, 0], want[:, 0]).tolist() == [0]
    assert not len(bits.wrong_rows(got[:0], want[:0]))


# -- run, on the CPU executor -----------------------------------------------------------------

@pytest.mark.parametrize("kernel, policies, options", [
    ("dispatch", "ld_na,bulk,aggressive", []),
    ("combine", "fast,ld_na,ld_volatile", []),
    ("combine", "fast,ld_nc_na_bare", ["--combine", "push"]),
    ("dispatch", "fast,safe", ["--arch", "sm_80"]),
])
def test_counts(kernel, policies, options, tmp_path, capsys):
    path = tmp_path / "ab.json"
    assert cli.main(["ab", kernel, "--policy", policies, "--executor", "emu", "--json", str(path),
                     *OPTIONS, *options]) == 0
    captured = capsys.readouterr()
    assert captured.err == "", "no bar without a terminal"
    assert "counts of the CPU executor" in captured.out and "not times" in captured.out
    assert "warp instr" in captured.out and "us" not in captured.out.split()
    made = json.loads(path.read_text())
    assert [v["name"] for v in made["variants"]] == policies.split(",")
    for variant in made["variants"]:
        assert variant["symbol"] in variant["launched"]
        assert len(variant["counts"]) == 2
        assert all(rank["warp_instructions"] > 0 for rank in variant["counts"])
        assert "times_us" not in variant
    assert made["rows"] > 0 and "figures" not in made and made["gpu"] is None


def test_the_race_checker_has_a_verdict_on_each(tmp_path, capsys):
    path = tmp_path / "ab.json"
    assert cli.main(["ab", "combine", "--policy", "ld_na,ld_nc_na", "--executor", "emu", "--json",
                     str(path), *OPTIONS[:-1]]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^all ranks .* check$", out, re.M)
    assert re.search(r"^ld_na .* clean$", out, re.M)
    assert re.search(r"^check: ld_nc_na: RACE \d+$\nRACE \(nc\): ", out, re.M)
    replay = re.search(r"^all of it: deepep-ptx (check combine .*)$", out, re.M)[1]
    checks = [variant["check"] for variant in json.loads(path.read_text())["variants"]]
    assert checks[0]["verdict"] == "clean" and checks[0]["replay"] is None
    assert checks[1]["verdict"].startswith("RACE ") and "sum_rows_vec" in checks[1]["reports"][0]
    assert checks[0]["runs"] == checks[1]["runs"] > 0
    assert cli.main(replay.split()) == 1


def test_no_check(tmp_path, capsys):
    path = tmp_path / "ab.json"
    assert cli.main(["ab", "combine", "--policy", "ld_na,ld_nc_na", "--executor", "emu", "--json",
                     str(path), *OPTIONS]) == 0
    assert not re.search("^check: ", capsys.readouterr().out, re.M)
    assert [variant["check"] for variant in json.loads(path.read_text())["variants"]] == [None] * 2


def test_counts_are_of_the_measured_call_alone(monkeypatch):
    """A combine's counts have no dispatch in them, and the same call stores the same."""
    made = planned("combine", ["ld_na", "ld_volatile"], combine="push")
    first, second = run.run(made, job_of(made)).counts
    for one, other in zip(first, second, strict=True):
        assert one["peer_store_bytes"] == other["peer_store_bytes"] > 0
        assert one["global_store_bytes"] == other["global_store_bytes"]


@pytest.mark.parametrize("kernel", ["dispatch", "combine"])
def test_a_load_form_changes_the_counts_of_waits_alone(kernel):
    """What docs/variants.md says of policies."""
    forms = ["ld_na", "ld_relaxed_sys", "ld_volatile", "ld_nc_na", "ld_nc_na_bare"]
    made = plan.make(kernel, forms, executor="emu", arch="sm_90")
    first, *others = ({name: sum(rank[name] for rank in ranks) for name in ranks[0]}
                      for ranks in run.run(made, job_of(made)).counts)
    moved = {name for name in first if "store" in name or "peer" in name}
    assert len(moved) == 4 and set(first) > moved
    for counts in others:
        for name, count in counts.items():
            assert count == pytest.approx(first[name], rel=0 if name in moved else 0.01), name


def test_the_number_of_sms_is_left_as_it_was():
    before = Buffer.num_sms
    made = planned(sms=3)
    run.run(made, job_of(made))
    assert Buffer.num_sms == before


WRONG = [("dispatch", "recv_x"), ("combine", "combined_x")]


@pytest.mark.parametrize("kernel, array", WRONG)
def test_a_wrong_row_is_reported_and_nothing_else(kernel, array, monkeypatch, tmp_path, capsys):
    honest = Emu.get

    def one_wrong(self, given):
        got = honest(self, given)
        its = kernel == "dispatch" or len(got) == SMALL["tokens"]       # not the dispatch before it
        if self.executor.rank == 1 and got.dtype == "bfloat16" and its:
            got.view("u2")[2, 3] ^= 1
        return got

    monkeypatch.setattr(Emu, "get", one_wrong)
    path = tmp_path / "ab.json"
    assert cli.main(["ab", kernel, "--policy", "ld_na,ld_volatile", "--executor", "emu", *OPTIONS,
                     "--json", str(path)]) == 1
    out = capsys.readouterr().out
    assert f"WRONG  ld_na: rank 1: {array}: first bad row 2, of 1 bad rows; column 3 is" in out
    assert "WRONG  ld_volatile: rank 1" in out and "no figures" in out
    assert "warp instr" not in out
    made = json.loads(path.read_text())
    assert [(w["name"], w["rank"], w["row"]) for w in made["wrong"]] == [("ld_na", 1, 2),
                                                                        ("ld_volatile", 1, 2)]
    assert not {"figures", "verdicts", "rows"} & made.keys()
    assert all("counts" not in variant for variant in made["variants"])


def test_a_wrong_shape_is_wrong():
    found = bits.first_wrong("a", 0, {"recv_x": np.zeros((1, 4))}, {"recv_x": np.zeros((2, 4))},
                             Emu(None))
    assert str(found) == "a: rank 0: recv_x: is float64 [1, 4], reference float64 [2, 4]"


# -- run, as on GPUs --------------------------------------------------------------------------

class Timed(Emu):
    """The CPU executor with times: 100 us for the first variant's kernel, 3 % more for others."""

    times = True
    calls = []
    symbols = sorted({v["symbol"] for v in select.load_table()["variants"]})

    def measure(self, align, call):
        result, _ = super().measure(align, call)
        rng = np.random.default_rng(len(self.calls))
        return result, Timing(120.0, False, tuple(
            (symbol, (100 if symbol.endswith("ld_na") else 103) + rng.random() / 10)
            for symbol in self.symbols))


@pytest.fixture
def timed(monkeypatch):
    """Two GPUs that are the CPU executor."""
    def on_emu(*args, executor, devices, **options):
        assert executor == "cuda" and list(devices) == [0, 1]
        return run_ranks(*args, executor="emu", **options)

    monkeypatch.setattr(run, "run_ranks", on_emu)
    monkeypatch.setattr(run, "machine_of", Timed)
    monkeypatch.setattr(Timed, "calls", [])
    honest = run.Calls._of_kernel

    def noted(self, timing):
        Timed.calls.append((self.comm.rank, self.contender.symbol))
        return honest(self, timing)

    monkeypatch.setattr(run.Calls, "_of_kernel", noted)
    monkeypatch.setattr(_cuda, "device_count", lambda: 2)
    monkeypatch.setattr(measure, "links", lambda gpus: {
        "copy_engine_one_way_gb_s": 200.0, "copy_engine_both_ways_gb_s": 100.0})
    return Timed


GPU_ARGV = ["--executor", "cuda", "--arch", "sm_90", "--rounds", "12", "--warmup", "2", *OPTIONS]


def test_the_record_of_a_timed_run(timed, tmp_path, capsys):
    path = tmp_path / "ab.json"
    assert cli.main(["ab", "dispatch", "--policy", "ld_na,bulk", "--json", str(path),
                     *GPU_ARGV]) == 0
    out = capsys.readouterr().out
    assert "bulk is 3.0" in out and "% slower than ld_na (95 %: " in out
    assert "copy engine 200.0 GB/s one way, 100.0 both ways" in out and "floor " in out
    made = json.loads(path.read_text())
    assert {"version", "date", "gpu", "driver", "seed", "shape", "links", "bytes", "floor_us",
            "ptx_inputs", "order", "verdicts", "assembler"} <= made.keys()
    assert (made["kernel"], made["rounds"], made["devices"]) == ("dispatch", 12, [0, 1])
    assert made["shape"] == SMALL | {"sms": 16}
    for variant in made["variants"]:
        assert np.array(variant["times_us"]).shape == (12, 2), "every raw time: round, rank"
    slower = np.array(made["variants"][1]["times_us"]).max(axis=1)
    figures = made["figures"][1]
    assert figures["median_us"] == pytest.approx(np.median(slower), abs=1e-3)
    assert figures["ratio"]["low"] > 1 and "ratio" not in made["figures"][0]
    wire = made["bytes"]["wire_busiest_gpu"]
    assert wire % (2 * SMALL["hidden"]) == 0
    assert made["floor_us"] == pytest.approx(wire / 100 / 1e3)
    assert figures["wire_gb_s"] == pytest.approx(wire / figures["median_us"] / 1e3)


def test_calls_are_interleaved_in_the_planned_order(timed):
    made = planned(policies=["ld_na", "bulk", "safe"], executor="cuda", num_gpus=2, rounds=6,
                   warmup=1)
    run.run(made, job_of(made))
    symbols = [c.symbol for c in made.contenders]
    want = symbols + [symbols[i] for i in made.order().ravel()] + symbols
    for rank in range(2):
        assert [symbol for r, symbol in timed.calls if r == rank] == want
    assert len(want) == made.num_calls


@pytest.mark.parametrize("mode", plan.COMBINE_MODES)
def test_a_combine_is_timed_too(mode, timed, capsys):
    assert cli.main(["ab", "combine", "--policy", "ld_na,ld_nc_na", "--combine", mode,
                     *GPU_ARGV]) == 0
    out = capsys.readouterr().out
    assert f"combine ({mode}) on " in out and "undefined at a peer site" in out


def test_bits_that_go_wrong_in_the_rounds_leave_no_figures(timed, monkeypatch, capsys):
    honest = Timed.get

    def wrong_at_last(self, given):
        got = honest(self, given)
        if len(self.calls) > 20 and got.dtype == "bfloat16":
            got.view("u2")[0, 0] ^= 1
        return got

    monkeypatch.setattr(Timed, "get", wrong_at_last)
    assert cli.main(["ab", "dispatch", "--policy", "ld_na,bulk", *GPU_ARGV]) == 1
    out = capsys.readouterr().out
    assert "first bad row 0" in out and "median" not in out and "slower" not in out


def test_no_garbage_is_collected_between_calls(timed, monkeypatch):
    enabled, honest = [], Timed.measure

    def noted(self, align, call):
        enabled.append(gc.isenabled())
        return honest(self, align, call)

    monkeypatch.setattr(Timed, "measure", noted)
    made = planned(executor="cuda", num_gpus=2, rounds=6, warmup=1)
    run.run(made, job_of(made))
    assert len(enabled) == 2 * made.num_calls and not any(enabled) and gc.isenabled()


def of_kernel(symbol, launches):
    calls = object.__new__(run.Calls)
    calls.contender = plan.Contender("x", {"symbol": symbol}, False)
    return calls._of_kernel(Timing(0.0, False, launches))


@pytest.mark.parametrize("launches, times", [
    ([], 0), ([("ep_layout", 50.0)], 0), ([("ep_x", 1.0), ("ep_x", 2.0)], 2)])
def test_a_kernel_that_did_not_run_once_gives_no_time(launches, times):
    with pytest.raises(DeepEPError, match=f"ep_x: launched {times} times"):
        of_kernel("ep_x", launches)


def test_the_time_is_that_of_the_kernel_asked_for():
    assert of_kernel("ep_x", [("ep_layout", 50.0), ("ep_x", 100.0)]) == 100.0


# -- machine code -----------------------------------------------------------------------------

def assembly(*opcodes, registers=32):
    """An `Assembly` of opcodes; ("BRA", 0) jumps to instruction 0."""
    items = [item if isinstance(item, tuple) else (item,) for item in opcodes]
    return Assembly(registers, 0, 0, tuple(Sass(opcode, None, tuple(targets), True)
                                           for opcode, *targets in items))


OLD = assembly("MOV", "LDG.E", "LDG.E", ("BRA", 1), "EXIT")
NEW = assembly("MOV", "LDG.E.CONSTANT", "LDG.E", ("BRA", 1), "EXIT", registers=30)


def test_changes_count_opcodes():
    assert sass.changes(sass.opcodes(OLD), sass.opcodes(NEW)) == {
        "LDG.E": (2, 1), "LDG.E.CONSTANT": (0, 1)}
    assert sass.changes(sass.opcodes(OLD), sass.opcodes(OLD)) == {}


def test_normalised_has_labels_and_no_addresses():
    assert sass.normalised(OLD) == ["    MOV", "L0:", "    LDG.E", "    LDG.E", "    BRA L0",
                                    "    EXIT"]


def test_diff_shows_what_moved():
    lines = sass.diff("a", OLD, "b", NEW)
    assert lines[:2] == ["--- a", "+++ b"]
    assert "-    LDG.E" in lines and "+    LDG.E.CONSTANT" in lines
    assert sass.diff("a", OLD, "b", OLD) == []


def tools_or_skip():
    try:
        return sass.ptxas.find()
    except ToolError as error:
        pytest.skip(str(error))


def test_sass_of_real_variants(capsys):
    tools_or_skip()
    assert cli.main(["ab", "dispatch", "--policy", "ld_na,ld_nc_na", "--executor", "emu",
                     "--sass", *OPTIONS]) == 0
    out = capsys.readouterr().out
    assert "registers" in out
    assert re.search(r"LDG\.E\.NA\.LTC256B\.128\.CONSTANT 0 -> [1-9]", out)
    assert "+++ ld_nc_na" in out and "-    LDG.E.NA.LTC256B.128\n" in out


def test_without_the_assembler_one_line_says_so(monkeypatch, tmp_path, capsys):
    def missing():
        raise ToolError("ptxas is not there")

    monkeypatch.setattr(sass.ptxas, "find", missing)
    path = tmp_path / "ab.json"
    assert cli.main(["ab", "dispatch", "--policy", "ld_na,bulk", "--executor", "emu", "--sass",
                     "--json", str(path), *OPTIONS]) == 0
    assert "SASS: not compared: ptxas is not there\n" in capsys.readouterr().out
    made = json.loads(path.read_text())
    assert made["assembler"] == {"missing": "ptxas is not there"}
    assert made["variants"][0]["sass"] is None


def test_lists_have_commas():
    assert names("a, b,,c") == ["a", "b", "c"]
    assert numbers("0,1") == [0, 1]
