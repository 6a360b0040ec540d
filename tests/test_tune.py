# SPDX-License-Identifier: MIT
"""`deepep-ptx tune`: with made-up times, so that what has to win is known."""

import dataclasses
import functools
import json
from dataclasses import replace

import numpy as np
import pytest

from deepep_ptx import Buffer, _cuda, cli, run_ranks, tuning
from deepep_ptx.cli.bench import rounds
from deepep_ptx.cli.measure import machine
from deepep_ptx.cli.tune import command, measure, plan, report
from deepep_ptx.cli.tune.decide import decide, survivors, winner_of
from deepep_ptx.cli.tune.plan import Candidate, Case
from deepep_ptx.cli.tune.state import State
from deepep_ptx.cli.tune.sweep import sweep
from deepep_ptx.tuning import load

GPU = "NVIDIA H100 80GB HBM3"


def planned(**options):
    return plan.make(**{"gpu": GPU, "arch": "sm_90", "num_gpus": 2, "tokens": (64, 4096),
                        "sms": (4, 8, 16), "policies": ("bulk",), "rounds": 20} | options)


class FakeBench:
    """Candidates whose times are `median` and a little noise; wrong: number -> text.

    over_after: rungs after which the budget is spent.
    """

    def __init__(self, medians, *, wrong=None, over_after=None, noise=0.002, seed=0):
        self.medians, self.wrong = list(medians), wrong or {}
        self.over_after = over_after
        self.noise = noise
        self.rng = np.random.default_rng(seed)
        self.measured = []
        self.checked = False

    def check(self):
        self.checked = True
        return [self.wrong.get(index) for index in range(len(self.medians))]

    def measure(self, indices, rounds):
        assert self.checked, "right bits come first"
        self.measured.append((tuple(indices), rounds))
        drift = self.rng.normal(1, 0.05, rounds)        # of the machine: it hits all alike
        return [self.medians[i] * drift * self.rng.normal(1, self.noise, rounds) for i in indices]

    def is_over(self):
        return self.over_after is not None and len(self.measured) >= self.over_after


def test_default_policies_are_those_that_run_on_the_gpu():
    def policies(**options):
        made = planned(policies=None, ops=("dispatch",), sms=(8,), **options)
        return {candidate.policy for candidate in made.candidates["dispatch"]}

    assert policies() == {"ld_na", "ld_relaxed_sys", "bulk"}
    assert policies(arch="sm_80") == {"ld_na", "ld_relaxed_sys"}
    assert policies(cta_smem=40 << 10) == {"ld_na", "ld_relaxed_sys"}


def candidates(*sms):
    return [Candidate(number, "bulk") for number in sms]


# -- one case ---------------------------------------------------------------------------------

def test_fewest_sms_within_two_percent_of_the_quickest_win():
    bench = FakeBench([200, 100.8, 100, 100.4])
    result = decide(candidates(4, 8, 16, 24), bench, [5, 5, 10])
    assert (result["winner"], result["quickest"]) == (1, 2) and result["complete"]
    assert result["candidates"][1]["median_us"] == pytest.approx(100.8, rel=0.05)
    assert [one["rounds"] for one in result["candidates"]] == [5, 20, 20, 20]
    assert [one["dropped"] for one in result["candidates"]] == [True, False, False, False]


def test_just_outside_of_two_percent_does_not_win():
    result = decide(candidates(4, 8), FakeBench([103, 100], noise=0), [5, 5])
    assert result["winner"] == result["quickest"] == 1


def test_of_equal_sms_the_quicker_one_wins():
    made = [Candidate(8, "bulk"), Candidate(8, "ld_na")]
    assert decide(made, FakeBench([101, 100], noise=0), [5])["winner"] == 1


def test_slower_ones_are_dropped_only_if_that_is_sure():
    rng = np.random.default_rng(0)
    best = 100 * rng.normal(1, 0.01, 10)
    times = {0: best, 1: best * 1.2, 2: best * 1.01, 3: best * rng.normal(1.03, 0.1, 10)}
    assert survivors(times, [0, 1, 2, 3]) == [0, 2, 3]
    assert survivors(times, [1]) == [1]


def test_each_rung_measures_who_is_left():
    bench = FakeBench([400, 200, 100, 104])
    decide(candidates(1, 2, 4, 8), bench, [5, 5, 10])
    assert bench.measured[0] == ((0, 1, 2, 3), 5)
    assert all(set(later) <= {2, 3} for later, _ in bench.measured[1:])


def test_one_that_is_left_is_not_measured_against_itself():
    bench = FakeBench([400, 100])
    result = decide(candidates(1, 2), bench, [5, 5, 10])
    assert bench.measured == [((0, 1), 5)] and result["complete"] and result["winner"] == 1


def test_a_wrong_candidate_is_not_timed_and_never_wins():
    bench = FakeBench([10, 100, 200], wrong={0: "rank 1: recv_x: first bad row 3"})
    result = decide(candidates(4, 8, 16), bench, [5, 5])
    assert result["winner"] == 1
    assert result["candidates"][0] == {
        "sms": 4, "policy": "bulk", "knobs": {}, "rounds": 0, "dropped": False,
        "wrong": "rank 1: recv_x: first bad row 3"}
    assert all(0 not in indices for indices, _ in bench.measured)


def test_nobody_is_right():
    result = decide(candidates(4, 8), FakeBench([1, 2], wrong={0: "a", 1: "b"}), [5])
    assert result["winner"] is result["quickest"] is None


def test_a_spent_budget_cuts_a_case_short_after_its_first_rung():
    bench = FakeBench([101, 100, 100.5], over_after=1)
    result = decide(candidates(4, 8, 16), bench, [5, 5, 10])
    assert not result["complete"] and result["winner"] == 0
    assert [rounds for _, rounds in bench.measured] == [5]


def test_winner_of_nobody():
    assert winner_of(candidates(1), {}, []) == (None, None)


# -- plans ------------------------------------------------------------------------------------

def test_cases_and_candidates():
    made = planned(dtypes=("bf16", "fp8"), policies=("fast", "bulk", "ld_na"),
                   knobs={"stages": [2, 4], "stage_bytes": [4096]})
    assert [str(case) for case in made.cases] == [
        "dispatch bf16, 64 tokens", "dispatch bf16, 4096 tokens", "dispatch fp8, 64 tokens",
        "dispatch fp8, 4096 tokens", "combine_pull bf16, 64 tokens",
        "combine_pull bf16, 4096 tokens", "combine_push bf16, 64 tokens",
        "combine_push bf16, 4096 tokens"]
    found = made.candidates["dispatch"]
    assert len(set(found)) == len(found)        # fast is another name of one of them
    assert {one.policy for one in found} == {"bulk", "ld_na"}
    assert {one.knobs for one in found if one.policy == "ld_na"} == {()}
    assert {one.knobs for one in found if one.policy == "bulk"} == {
        (("stages", 2), ("stage_bytes", 4096)), (("stages", 4), ("stage_bytes", 4096))}
    assert {one.sms for one in found} == {4, 8, 16}


def test_a_path_that_shared_memory_has_no_room_for_is_left_out():
    made = planned(policies=("fast", "bulk"), cta_smem=99 << 10)
    assert {one.policy for one in made.candidates["dispatch"]} == {"ld_na", "bulk"}
    assert {one.policy for one in made.candidates["combine_pull"]} == {"ld_na"}
    assert {one.policy for one in made.candidates["combine_push"]} == {"ld_na"}


def test_undefined_loads_are_left_out_where_they_are_undefined():
    made = planned(policies=("ld_nc_na", "bulk"))
    assert {one.policy for one in made.candidates["dispatch"]} == {"ld_nc_na", "bulk"}
    assert {one.policy for one in made.candidates["combine_pull"]} == {"bulk"}
    with pytest.raises(ValueError, match="^--policies: ld_nc_na has no loads that PTX defines in"):
        planned(ops=("combine_pull",), policies=("ld_nc_na",))


@pytest.mark.parametrize("rounds, rungs", [(5, [5]), (8, [5, 3]), (20, [5, 5, 10]),
                                           (40, [5, 5, 10, 20]), (50, [5, 5, 10, 20, 10])])
def test_rungs(rounds, rungs):
    made = planned(rounds=rounds)
    assert made.rungs() == rungs and sum(rungs) == rounds
    assert made.num_calls(made.cases[0]) == 3 * (1 + 3 * len(rungs) + rounds)


def test_estimates_grow_with_the_work():
    made = planned()
    small, large = made.cases[:2]
    assert 0 < made.estimate_s(small) < made.estimate_s(large)
    assert planned(rounds=40).estimate_s(large) > made.estimate_s(large)


@pytest.mark.parametrize("options, text", [
    ({"ops": ("combine",)}, "--ops: must be of dispatch, combine_pull, combine_push, got 'combin"),
    ({"ops": ()}, "--ops: must name at least one of dispatch"),
    ({"dtypes": ("fp4",)}, "--dtypes: must be of bf16, fp8, got 'fp4'"),
    ({"dtypes": ("fp8",), "ops": ("combine_pull",)}, "--dtypes: must have bf16 for combine"),
    ({"dtypes": ("fp8",), "hidden": 136}, "--hidden: must be a multiple of 128 with fp8, got 136"),
    ({"hidden": 12}, "--hidden: must be a positive multiple of 8 (16 bytes), got 12"),
    ({"tokens": ()}, "--tokens: must name at least one number"),
    ({"tokens": (0,)}, "--tokens: must be at least 1, got 0"),
    ({"sms": (-1,)}, "--sms: must be 1..132, got -1"),
    ({"sms": (16, 1000)}, "--sms: must be 1..132, got 1000"),
    ({"tokens": (64, 10**8)}, "--tokens: must be at most "),
    ({"knobs": {"stage_bytes": [0]}}, "--stage-bytes: must be a multiple of 16 in [16, 1"),
    ({"rounds": 4}, "--rounds: must be at least 5, got 4"),
    ({"seed": -1}, "--seed: must be at least 0, got -1"),
    ({"timeout_s": 0}, "--timeout-s: must be above 0"),
    ({"ranks": 0}, "--ranks: must be 1..64, got 0"),
    ({"ranks": 65}, "--ranks: must be 1..64, got 65"),
    ({"devices": [0, 2]}, "--devices: must be below 2, the GPUs there are; got 0, 2"),
    ({"devices": [0, 1], "ranks": 3}, "--devices: must name one GPU per rank, 3; got 2"),
    ({"experts": 9}, "--experts: must be a multiple of --ranks (2), got 9"),
    ({"topk": 33}, "--topk: must be 1..32, got 33"),
    ({"policies": ("quick",)}, "--policies: unknown policy 'quick'"),
])
def test_bad_options(options, text):
    with pytest.raises(ValueError) as caught:
        planned(**options)
    assert str(caught.value).startswith(text)


def test_a_plan_is_json():
    made = planned(knobs={"stages": [2]})
    assert json.loads(json.dumps(made.document())) == made.document()
    assert planned(knobs={"stages": [2]}).document() == made.document() != planned().document()


# -- the whole run, with a machine that is made up ----------------------------------------------

class FakeGpus:
    """Calls are quickest at 8 SMs; fails: cases before which it is interrupted."""

    def __init__(self, fails=(), wrong=None):
        self.fails, self.wrong, self.ran = set(fails), wrong, []

    def run(self, made, case, decide, progress, is_over):
        if str(case) in self.fails:
            raise KeyboardInterrupt
        self.ran.append(str(case))
        bench = FakeBench([case.tokens / 10 * abs(8.5 - one.sms) + 20
                           for one in made.candidates[case.op]], wrong=self.wrong)
        bench.is_over = is_over
        result = decide(bench=bench)
        for indices, number in bench.measured:
            for _ in range(len(indices) * number):
                progress()
        return result


class Bar:
    n = 0

    def update(self, more=1):
        self.n += more

    def set_description(self, text):
        self.text = text


@pytest.fixture
def two_h100s(monkeypatch, tmp_path):
    """The command believes that it is on two of them; the user's files are in tmp_path."""
    class Gpu:
        device_name, arch, cta_smem = GPU, "sm_90", 227 << 10

    monkeypatch.setattr(_cuda, "device_count", lambda: 2)
    monkeypatch.setattr(_cuda, "CudaExecutor", lambda device: Gpu)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path


def tune(*argv, machine=None):
    args = cli.parser(["tune"]).parse_args(
        ["tune", "--tokens", "64,4096", "--sms", "4,8,16", "--policies", "bulk", *argv])
    return command.command(args, machine or FakeGpus())


def test_a_file_that_buffers_take(two_h100s, capsys):
    assert tune() == 0
    path = two_h100s / "deepep_ptx" / "tuning" / "nvidia-h100-80gb-hbm3-2.json"
    out = capsys.readouterr().out
    assert f"wrote {path}: 6 entries" in out and "dispatch bf16, 4096 tokens" in out
    made = load(path)
    made.check(GPU, 2, "sm_90")
    assert {key: entry.sms for key, entry in made.entries.items()} == {
        (op, 2, tokens, 16384): 8 for op in ("dispatch", "combine_pull", "combine_push")
        for tokens in (64, 4096)}
    assert made.header.shape["hidden"] == 7168 and made.header.gpu == GPU
    assert [each.name for each in path.parent.iterdir()] == [path.name]     # no state is left
    assert tune() == 0
    assert {each.name for each in path.parent.iterdir()} == {path.name, f"{path.name}.old"}


def test_a_wrong_candidate_is_exit_code_1_and_in_the_report(two_h100s, capsys):
    text = "dispatch: rank 1: recv_x: first bad row 3, of 2 bad rows"
    assert tune("--ops", "dispatch", machine=FakeGpus(wrong={1: text})) == 1
    assert f"WRONG  {text}" in capsys.readouterr().out
    assert {entry.sms for entry in load(command.default_path(GPU, 2)).entries.values()} == {4}


def test_nobody_is_right_and_no_file_is_written(two_h100s, capsys):
    wrong = dict.fromkeys(range(3), "bad")
    assert tune("--ops", "dispatch", machine=FakeGpus(wrong=wrong)) == 1
    assert "none is right" in capsys.readouterr().out
    assert not command.default_path(GPU, 2).exists()


def test_an_interrupted_run_goes_on_where_it_was(two_h100s, capsys):
    out = two_h100s / "t.json"
    options = ("--out", str(out), "--ops", "dispatch,combine_pull")
    with pytest.raises(KeyboardInterrupt):
        tune(*options, machine=FakeGpus(fails=["combine_pull bf16, 64 tokens"]))
    state = two_h100s / "t.json.state"
    assert len(json.loads(state.read_text())["finished"]) == 2 and not out.exists()

    with pytest.raises(ValueError, match=r"^--resume: must be given, or .*t.json.state removed: it "
                                         "has 2 finished cases"):
        tune(*options)
    with pytest.raises(ValueError, match="^--resume: .* is of another plan: its seed is 0, this o"):
        tune(*options, "--resume", "--seed", "1")
    machine = FakeGpus()
    assert tune(*options, "--resume", machine=machine) == 0
    assert machine.ran == ["combine_pull bf16, 64 tokens", "combine_pull bf16, 4096 tokens"]
    assert len(load(out).entries) == 4 and not state.exists()
    with pytest.raises(ValueError, match="^--resume: there is no .*nothing was interrupted"):
        tune(*options, "--resume")


@pytest.mark.parametrize("text", ["", "[]", '{"plan": {}}'])
def test_a_state_that_is_none(two_h100s, text):
    (two_h100s / "t.json.state").write_text(text)
    with pytest.raises(ValueError, match="^--resume: .*t.json.state is no state of a run"):
        tune("--out", str(two_h100s / "t.json"), "--resume")


def test_a_spent_budget_leaves_cases_for_later(two_h100s, capsys):
    made = planned()
    state = State.begin(two_h100s / "s", made, False)
    ticks = iter(range(100))
    sweep(made, state, FakeGpus(), Bar(), budget_s=6, clock=lambda: next(ticks))
    assert 0 < len(state.finished) < len(made.cases)
    assert list(state.finished)[0] == "dispatch bf16, 64 tokens"
    assert tune("--budget-s", "0") == 0
    out = capsys.readouterr().out
    assert "the budget is spent: 6 of 6 cases were not measured; --resume goes on" in out
    assert not command.default_path(GPU, 2).exists()


def test_the_bar_ends_full_whoever_was_dropped(two_h100s):
    made, bar = planned(), Bar()
    sweep(made, State.begin(two_h100s / "s", made, False), FakeGpus(), bar)
    assert bar.n == sum(map(made.num_calls, made.cases))


def test_dry_run(two_h100s, capsys):
    class Refuses:
        def run(self, *args):
            pytest.fail("it ran")

    assert tune("--dry-run", "--rounds", "20", "--stages", "2,4", machine=Refuses()) == 0
    out = capsys.readouterr().out
    assert "dispatch: bulk x 4, 8, 16 SMs x stages 2, 4" in out
    assert "rungs of 5, 5, 10 rounds, each after 3" in out
    calls = 6 * (1 + 3 * 3 + 20)
    assert f"{6 * calls:,} calls at most, each a launch" in out and "about " in out
    assert [line.split()[-2] for line in out.splitlines() if " tokens  " in line] == [
        str(calls)] * 6
    assert not list(two_h100s.iterdir())


def test_dry_run_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(_cuda, "device_count", lambda: 0)
    assert cli.main(["tune", "--dry-run", "--ranks", "4"]) == 0
    out = capsys.readouterr().out
    assert "no GPU here" in out and "would tune 4 ranks on NVIDIA H100 80GB HBM3" in out


def test_without_a_gpu_nothing_is_tuned(monkeypatch, capsys):
    monkeypatch.setattr(_cuda, "device_count", lambda: 0)
    assert cli.main(["tune"]) == 1
    assert "tune: times calls on GPUs, and none is usable: " in capsys.readouterr().err


def test_out_must_have_a_directory(two_h100s):
    with pytest.raises(ValueError, match="^--out: cannot write .*: there is no directory "):
        tune("--out", str(two_h100s / "none" / "t.json"))


@pytest.mark.parametrize(("argv", "start"), [
    (["--out", "."], "--out: cannot write .: it is a directory"),
    (["--out", "no/such/t.json"], "--out: cannot write no/such/t.json: there is no directory "),
    (["--budget-s", "-1"], "--budget-s: must be 0..1e+09, got -1.0"),
    (["--budget-s", "nan"], "--budget-s: must be 0..1e+09, got nan"),
    (["--sms", "1000"], "--sms: must be 1..132, got 1000"),
    (["--hidden", "1000000000"], "--hidden: must be at most "),
])
def test_a_dry_run_refuses_what_a_run_would(argv, start, capsys):
    assert cli.main(["tune", "--dry-run", *argv]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"deepep-ptx: {start}") and captured.err.count("\n") == 1


# -- reports ----------------------------------------------------------------------------------

def test_cases_of_one_class_give_one_entry():
    made = planned(ops=("dispatch",), tokens=(33, 64))
    finished = {str(case): FakeGpus().run(made, case, lambda bench: decide(
        made.candidates["dispatch"], bench, [5]), lambda: None, None) for case in made.cases}
    (entry,) = report.entries(made, finished)
    assert entry.tokens == 64
    winner = finished["dispatch bf16, 64 tokens"]["candidates"][
        finished["dispatch bf16, 64 tokens"]["winner"]]
    assert entry.median_us == round(winner["median_us"], 3)


def test_compare(two_h100s, capsys):
    old, new = two_h100s / "old.json", two_h100s / "new.json"
    header = report.header(planned())
    first = tuning.Entry("dispatch", 2, 64, 16384, 8, "bulk", {}, 20.0)
    second = replace(first, tokens=4096, sms=16, policy="ld_na", knobs={"stages": 4},
                     median_us=200.0)
    tuning.save(old, header, [first, second])
    tuning.save(new, replace(header, ranks=4), [
        replace(second, sms=13, median_us=190.0), replace(first, op="combine_pull")])
    assert cli.main(["tune", "--compare", str(old), str(new)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"old: 2 ranks on {GPU}, driver ")
    assert lines[2] == "not the same ranks: the ratios are not of the code alone"
    cells = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines[4:]]
    assert cells[0] == ["case", "old", "us", "new", "us", "ratio"]
    name = "up to {} tokens of 16384 bytes, itemsize 2"
    assert cells[1:] == [
        ["combine_pull, " + name.format(64), "-", "8 SMs, bulk", "20.0"],
        ["dispatch, " + name.format(64), "8 SMs, bulk", "20.0", "-"],
        ["dispatch, " + name.format(4096), "16 SMs, ld_na, stages 4", "200.0",
         "13 SMs, ld_na, stages 4", "190.0", "0.950"]]


def test_compare_names_the_file_that_is_none(two_h100s, capsys):
    assert cli.main(["tune", "--compare", "no/such/file", "no/other"]) == 2
    assert capsys.readouterr().err.startswith(
        "deepep-ptx: --compare: no/such/file: file: must be one that can be read")


# -- on ranks ---------------------------------------------------------------------------------

def small(**options):
    return planned(tokens=(6,), hidden=64, topk=2, experts=4, sms=(2, 3), **options)


def on_ranks(made, case, decide):
    """What `measure.Gpus` does, on the CPU executor: every rank's result."""
    return run_ranks(measure._rank_main, made.ranks, made, case, decide, lambda: None,
                     lambda: False, executor="emu", arch=made.arch)


@pytest.mark.parametrize("op", ["dispatch", "combine_pull", "combine_push"])
def test_every_candidate_is_checked_on_all_ranks(op):
    made = small(ops=(op,), policies=("bulk", "ld_na"))
    seen = on_ranks(made, made.cases[0], lambda bench: (bench.check(), bench.is_over()))
    assert seen == [([None] * len(made.candidates[op]), False)] * 2


def test_a_wrong_row_is_of_the_candidate_that_made_it(monkeypatch):
    made = small(ops=("dispatch",))
    honest, calls = machine.Emu.measure, []

    def one_wrong(self, align, call):
        got, counts = honest(self, align, call)
        if getattr(call, "case", None) and call.case.sms == 3 and self.executor.rank == 1:
            got["recv_x"] = got["recv_x"].copy()
            got["recv_x"].view("u2")[2, 5] ^= 1
        calls.append(call)
        return got, counts

    monkeypatch.setattr(machine.Emu, "measure", one_wrong)
    first, second = on_ranks(made, made.cases[0], lambda bench: bench.check())
    assert first == second and first[0] is None
    assert "rank 1: recv_x: first bad row 2, of 1 bad rows; column 5 is" in first[1]


class Timed(machine.Emu):
    """The CPU executor with times: 100 us on 3 SMs, 150 on 2, and 10 more on rank 1."""

    times = True

    def measure(self, align, call):
        result, _ = super().measure(align, call)
        us = {2: 150.0, 3: 100.0}[call.case.sms] + 10 * self.executor.rank
        return result, machine.Timing(us, False, (("ep_kernel", us),))

    def measure_whole(self, align, call):
        raise AssertionError("only kernels decide")


@pytest.mark.parametrize("op", ["dispatch", "combine_pull", "combine_push"])
def test_the_slower_ranks_kernels_decide_on_all_ranks_alike(op, monkeypatch):
    def on_emu(*args, executor, devices, **options):
        assert executor == "cuda" and devices == [0, 1]
        results = run_ranks(*args, executor="emu", **options)
        assert results[0] == results[1]
        return results

    monkeypatch.setattr(measure, "run_ranks", on_emu)
    monkeypatch.setattr(rounds, "machine_of", lambda executor, torch: Timed(executor))
    made, calls, before = small(ops=(op,)), [], Buffer.num_sms
    result = measure.Gpus().run(made, made.cases[0], functools.partial(
        decide, made.candidates[op], rungs=[5, 5]), lambda: calls.append(op), lambda: False)
    assert result["winner"] == result["quickest"] == 1
    assert [(one["sms"], one["median_us"], one["rounds"], one["dropped"])
            for one in result["candidates"]] == [(2, 160.0, 5, True), (3, 110.0, 5, False)]
    assert len(calls) == 2 * (1 + plan.WARMUP + 5) and Buffer.num_sms is before


def test_a_bench_case_for_each_candidate():
    made = planned(ops=("combine_push",), knobs={"stages": [4]})
    cases = measure.cases_of(made, made.cases[1])
    assert [(case.what, case.tokens, case.sms, case.policy) for case in cases] == [
        ("combine-push", 4096, sms, "bulk") for sms in (4, 8, 16)]
    assert all(case.tuning == {"tuning": False, "stages": 4} for case in cases)
    assert len({str(case) for case in cases}) == len(cases)


def test_plans_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        planned().seed = 1
    assert str(Case("dispatch", "bf16", 8)) == "dispatch bf16, 8 tokens"
