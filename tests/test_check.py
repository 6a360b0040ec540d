# SPDX-License-Identifier: MIT
"""`deepep-ptx check`: workloads, verdicts, records and replays, harnesses, what docs/verifier.md
shows."""

import json
import re
from pathlib import Path

import pytest

from deepep_ptx import cli, reference, select
from deepep_ptx.cli.check import pool, rounds, runs
from deepep_ptx.cli.check.findings import Finding, Result, grouped, verdict
from deepep_ptx.cli.check.workloads import WORKLOADS
from deepep_ptx.emu.kernel import load_image
from deepep_ptx.toolchain.ptx_text import digest

ROOT = Path(__file__).resolve().parents[1]
PTX = ROOT / "examples/verifier/ping_pong.ptx"
HARNESS = PTX.with_suffix(".py")
QUICK = ["--arch", "sm_90", "--seeds", "1", "--scheduler", "rr", "--jobs", "1"]


def check(*argv):
    """The exit code of the command."""
    return cli.main(["check", *map(str, argv)])


def printed(capsys):
    """Lines on stdout."""
    return capsys.readouterr().out.splitlines()


def change(monkeypatch, old, new, of="ep_"):
    """The texts that run from now on have `new` in place of `old`."""
    honest = select.read_text

    def read_text(variant):
        text = honest(variant)
        if not variant["symbol"].startswith(of):
            return text
        assert old in text, variant
        return text.replace(old, new)

    monkeypatch.setattr(select, "read_text", read_text)


# -- workloads --------------------------------------------------------------------------------

SYNCHRONISES = re.compile(r"\b(bar|fence|mbarrier|cp\.async|vote|shfl|elect|atom|red)\.|"
                          r"\.(release|acquire|acq_rel|relaxed|volatile)\.")
# Statements that no workload comes to, and why.
NOT_REACHED = {
    # Its own rank is never late by a time limit, see unexecuted.toml.
    ("ptx/role/dispatch/await_numbers.inc",
     "red.relaxed.cta.shared.max.u32 [s_verdict], r_code;"),
    # More ranks than a warp has lanes: seconds a run.
    ("ptx/role/dispatch/list_rows.inc", "vote.sync.ballot.b32 r_mask, p_in, 0xffffffff;"),
    ("ptx/role/low_latency/count_waits.inc", "@p_1 ld.relaxed.sys.global.u64 v_seen, [a_1];"),
    # A CTA gives up on a rank whose numbers another one has: a schedule in some tens.
    ("ptx/role/low_latency/await_counts.inc",
     "@q red.relaxed.cta.shared.max.u32 [s_again], 1;"),
    # Two replays of one captured call at the same time, which is a mistake.
    ("ptx/role/exchange/claim_call.inc", "red.relaxed.cta.shared.max.u32 [s_verdict], r_code;"),
    # A host gives up while its kernel is about to.
    ("ptx/role/exchange/wait_flag.inc", "ld.relaxed.sys.global.u32 r, [a_ring + 8];"),
}


def unreached(ran):
    """(file, statement) of what synchronises and was not executed in any of its copies."""
    executed = {}
    for (symbol, text), flags in ran.items():
        image = load_image(text, symbol)
        for place, statement, flag in zip(image.lines[image.insns["line"][:len(flags)]],
                                          map(bytes.decode, image.texts), flags, strict=False):
            if SYNCHRONISES.search(statement):
                key = image.files[place["file"]].decode(), int(place["line"]), statement
                executed[key] = executed.get(key, False) or bool(flag)
    return {(file, statement) for (file, _, statement), was in executed.items() if not was}


@pytest.mark.parametrize(("arch", "policy"), [("sm_90", "bulk"), ("sm_80", "safe")])
def test_the_workloads_come_to_all_that_synchronises(arch, policy):
    ran = {}
    for workload in WORKLOADS.values():
        if not workload.is_for(workload.variants(policy, arch)):
            continue
        for scheduler in ("rr", "random", "late-async"):
            outcome = workload.run(policy, arch=arch, scheduler=scheduler, check=None)
            assert outcome.is_clean, (workload.name, outcome)
            for kernel, flags in outcome.ran.items():
                ran[kernel] = ran.get(kernel, False) | flags
    assert unreached(ran) <= NOT_REACHED
    shipped = {row["symbol"] for row in select.choose(policy, arch).values()}
    assert shipped <= {symbol for symbol, _ in ran}


def test_the_runs_are_all_that_is_asked_for_and_nothing_twice():
    found = runs.runs_of("all", ["fast", "safe", "bulk"], ["sm_80", "sm_90"],
                         schedulers=["rr", "random"], seeds=range(3, 5))
    assert len(set(found)) == len(found)
    assert {(run.scheduler, run.seed) for run in found} == {
        ("rr", 3), ("rr", 4), ("random", 3), ("random", 4)}
    assert len([run for run in found if run.case == "layout" and run.arch == "sm_90"]) == 4
    assert {run.case for run in found} == set(WORKLOADS)
    assert all(run.arch == "sm_90" for run in found if run.case == "rings")
    files = {row["file"] for run in found for row in run.variants}
    assert files >= {row["file"] for arch, policy in [("sm_80", "fast"), ("sm_80", "safe"),
                                                      ("sm_90", "fast"), ("sm_90", "bulk")]
                     for row in select.choose(policy, arch).values()}


def test_default_policies():
    assert runs.default_policies(["sm_80"]) == ["fast", "safe"]
    assert runs.default_policies(["sm_80", "sm_90"]) == ["fast", "safe", "bulk"]


# -- verdicts ---------------------------------------------------------------------------------

def test_clean(capsys):
    assert check("combine", "--policy", "fast", "--case", "many,mixed", *QUICK) == 0
    out = printed(capsys)
    assert out[0] == "2 runs; schedulers rr; seeds 0:1; memory sc"
    assert re.search(r"combine +sm_90  bulk  - +ep_combine_bulk +2 +clean", "\n".join(out))
    assert out[-1].startswith("clean; docs/verifier.md")


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_what_is_used_by_default_is_clean(arch, capsys):
    assert check("--arch", arch, "--seeds", "1", "--jobs", "1") == 0, capsys.readouterr().out
    shipped = {row["symbol"] for policy in runs.default_policies([arch])
               for row in select.choose(policy, arch).values()}
    assert {line.split()[4] for line in printed(capsys)[3:-3]} == shipped


def test_no_limit_passes_while_a_store_becomes_visible(capsys):
    """Nothing moves but time, which must not jump over the store to the time limit of its wait."""
    assert check("ll_combine", "--case", "ll-hook-sums", "--scheduler", "rr", "--seeds", "3:9",
                 "--memory", "weak", "--jobs", "1") == 0, capsys.readouterr().out


def test_and_right_under_weak_visibility(capsys):
    assert check("--arch", "sm_90", "--policy", "fast,bulk", "--seeds", "7:8", "--jobs", "1",
                 "--case", "mixed,many,cached,rings,worst", "--memory", "weak") == 0, \
        capsys.readouterr().out


def test_undefined_loads_are_reported_and_replayed(tmp_path, capsys):
    path = tmp_path / "record.json"
    assert check("combine", "--policy", "ld_nc_na", "--case", "push,layout", *QUICK, "--json",
                 path) == 1
    out = "\n".join(printed(capsys))
    assert "RACE (nc): ld.global.nc of memory that is written while its grid runs" in out
    assert re.search(r"ep_combine_vec_ld_nc_na +1 +RACE \d+ +case push, rr, seed 0", out)
    again = re.search(r"^  again deepep-ptx check (combine .* --seeds 0:1)$", out, re.M)[1]
    assert check(*again.split()) == 1
    assert "RACE (nc)" in "\n".join(printed(capsys))

    made = json.loads(path.read_text())
    assert made["format"] == 1 and made["arguments"]["seeds"] == [0, 1]
    combine, = (row for row in made["variants"] if row["kernel"] == "combine")
    assert combine["first"] == made["found"][0] and re.fullmatch(r"[0-9a-f]{64}", combine["sha256"])
    assert made["findings"][0]["race"]["kind"] == "nc"
    assert made["findings"][0]["race"]["second"]["file"] == "ptx/role/combine/sum_rows_vec.inc"

    assert check("--replay", path, "--json", tmp_path / "second.json") == 1
    assert printed(capsys)[0] == f"1 run of {path}"
    second = json.loads((tmp_path / "second.json").read_text())
    assert second["findings"] == made["findings"] and second["found"] == made["found"]


def test_a_release_that_is_none(monkeypatch, capsys):
    change(monkeypatch, "st.release.sys", "st.relaxed.sys", of="ep_dispatch")
    assert check("dispatch", "--policy", "fast", "--case", "push", *QUICK) == 1
    out = printed(capsys)
    assert re.search(r"dispatch .* RACE \d+ +case push, rr, seed 0$", out[3])
    assert any("ptx/role/dispatch/" in line for line in out)
    assert out[-1].startswith("not clean: ")


def test_wrong_bits_are_of_the_kernel_that_makes_them(monkeypatch, capsys):
    honest = reference.layout

    def other(topk_idx, num_experts, num_ranks):
        per_rank, per_expert, in_rank = honest(topk_idx, num_experts, num_ranks)
        return per_rank, per_expert + 1, in_rank

    monkeypatch.setattr(rounds.reference, "layout", other)
    assert check("--policy", "fast", "--case", "worst", *QUICK) == 1
    out = printed(capsys)
    verdicts = {line.split()[0]: " ".join(line.split()[6:8]) for line in out[3:7]}
    assert verdicts == {"layout": "WRONG bits", "dispatch": "clean", "combine": "clean",
                        "copy": "clean"}
    assert any(line.startswith("WRONG round 0: rank 0: layout: num_tokens_per_expert: first bad")
               for line in out)


def test_a_fault(monkeypatch, capsys):
    change(monkeypatch, "bar.sync        0;", "bar.sync        0, 32;", of="ep_layout")
    assert check("layout", "--case", "layout", *QUICK) == 1
    out = printed(capsys)
    assert "FAULT uninitialised" in out[3]
    assert any(line.startswith("FAULT uninitialised: ") for line in out)


def finding(kind, *texts, key=()):
    return Finding(kind, {"RACE": "order", "WRONG": "bits", "FAULT": "livelock"}[kind], texts, key,
                   "")


def test_equal_findings_are_one():
    race, wrong = finding("RACE", "a"), finding("WRONG", "a")
    other = finding("RACE", "a", key=(7,))
    groups = grouped((run, Result(found, {})) for run, found in [
        (1, [race, race]), (2, [wrong]), (3, [race, other])])
    assert [group.runs for group in groups] == [[1, 3], [2], [3]]
    assert verdict(groups) == "RACE 2, WRONG bits"
    assert verdict([]) == "clean"


def test_processes_find_the_same():
    planned = runs.runs_of("combine", ["ld_nc_na"], ["sm_90"], cases=["worst"], schedulers=["rr"],
                           seeds=range(2 * pool.RUNS_OF_PROCESS))
    results = pool.results(planned, 2)
    assert [run for run, _ in results] == planned
    assert results[-2:] == pool.results(planned[-2:], 1)
    assert any(result.findings for _, result in results)


@pytest.mark.parametrize("argv, start", [
    (["dispach"], "KERNEL: must be all, a file *.ptx, or one of layout, dispatch, combine, "
                  "ll_dispatch, ll_combine, copy, abort, ll_dispatch_shrink, ll_combine_shrink, "
                  "ll_mask, ll_logfmt_combine;"),
    (["my.ptx"], "--harness: must say how my.ptx is run"),
    (["all", "--ranks", "1"], "--ranks: must be 2..8"),
    (["all", "--seeds", "0"], "--seeds: must be N or A:B"),
    (["all", "--seeds", "5:5"], "--seeds: must be N or A:B"),
    (["all", "--seeds=-1:2"], "--seeds: must be N or A:B"),
    (["all", "--seeds", "x"], "--seeds: must be N or A:B"),
    (["all", "--scheduler", "hope"], "--scheduler: must be of rr, random, late-async, got 'hope'"),
    (["all", "--case", "pulls"], "--case: must be of layout, pull, "),
    (["copy", "--case", "layout"], "--case: none of layout runs copy"),
    (["all", "--policy", "ld_wishful"], "--policy: unknown policy 'ld_wishful'"),
    (["all", "--policy", "bulk", "--arch", "sm_80"], "--policy: 'bulk' has no variant"),
    (["all", "--jobs", "0"], "--jobs: must be at least 1"),
    (["all", "--json", "no/such/folder/x.json"], "--json: cannot write"),
    (["all", "--replay", "no/such/file"], "--replay: cannot read no/such/file"),
    (["copy", "--replay", "x"], "KERNEL: comes with the record"),
    (["--replay", "x", "--seeds", "1"], "--seeds: comes with the record"),
    ([PTX, "--harness", HARNESS, "--policy", "fast"], "--policy: is for the kernels of this"),
    ([PTX, "--harness", HARNESS, "--ranks", "65"], "--ranks: must be 1..64"),
    (["no/such.ptx", "--harness", HARNESS], "FILE: cannot read no/such.ptx"),
    ([PTX, "--harness", "no/such.py"], "--harness: cannot read no/such.py"),
    ([PTX, "--harness", PTX], f"--harness: must be a Python file, got {PTX}"),
])
def test_bad_input_is_one_line_and_exit_code_2(argv, start, capsys):
    assert check(*argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"deepep-ptx: {start}") and captured.err.count("\n") == 1


# -- records ----------------------------------------------------------------------------------

@pytest.fixture
def recorded(tmp_path, capsys):
    """The record of the example with a release less."""
    path = relaxed(tmp_path)
    assert check(path, "--harness", HARNESS, "--seeds", "2", "--scheduler", "rr", "--json",
                 tmp_path / "record.json") == 1
    capsys.readouterr()
    return tmp_path / "record.json"


def relaxed(folder):
    path = folder / "relaxed.ptx"
    path.write_text(PTX.read_text().replace("st.release", "st.relaxed"))
    return path


@pytest.mark.parametrize("change, says", [
    ({"format": 2}, "format must be 1, as this is; the record has 2"),
    ({"version": "0.0.1"}, "version must be '"),
    ({"program": "deepep-ptx ab"}, "program must be 'deepep-ptx check'"),
    ({"found": []}, "is of a check that found nothing"),
    ({"found": [{"case": "pull"}]}, "is no whole record: TypeError"),
    ({"found": None}, "is no whole record"),
    ({"variants": [{"file": "sm_90/ep_gone.ptx", "sha256": ""}]},
     "variant sm_90/ep_gone.ptx: there is none now"),
    ({"variants": [{"file": str(PTX), "sha256": digest(PTX.read_text()), "harness": str(HARNESS),
                    "harness_sha256": "0"}]}, f"variant {HARNESS} has changed since"),
    ({"variants": [{"file": "sm_90/ep_copy.ptx", "sha256": "0"}]},
     "variant sm_90/ep_copy.ptx has changed since"),
])
def test_records_that_are_refused(change, says, recorded, capsys):
    recorded.write_text(json.dumps(json.loads(recorded.read_text()) | change))
    assert check("--replay", recorded) == 2
    error = capsys.readouterr().err
    assert error.startswith("deepep-ptx: --replay: ") and says in error and error.count("\n") == 1


def test_a_file_that_has_changed(recorded, capsys):
    assert check("--replay", recorded) == 1
    file = json.loads(recorded.read_text())["variants"][0]["file"]
    Path(file).write_text(PTX.read_text())
    assert check("--replay", recorded) == 2
    assert f"variant {file} has changed since" in capsys.readouterr().err


@pytest.mark.parametrize("text, says", [("[]", "is no record"), ("{", "is no JSON")])
def test_what_is_no_record(text, says, tmp_path, capsys):
    path = tmp_path / "x.json"
    path.write_text(text)
    assert check("--replay", path) == 2
    assert says in capsys.readouterr().err


# -- harnesses --------------------------------------------------------------------------------

def harness(folder, text):
    path = folder / "harness.py"
    path.write_text(text)
    return path


def test_a_harness_that_raises(tmp_path, capsys):
    wrong = harness(tmp_path, HARNESS.read_text().replace("== TURNS,", "== TURNS + 1,"))
    assert check(PTX, "--harness", wrong, "--seeds", "1") == 1
    out = printed(capsys)
    assert "WRONG AssertionError" in out[3]
    at = out.index("WRONG in the harness:")
    frames = [line for line in out if line.startswith("  File ")]
    assert frames == [f'  File "{wrong}", line 23, in run'] and at
    assert "AssertionError: the value is 8 after 8 turns" in out


@pytest.mark.parametrize("text, says", [
    ("x = 1", " must have a function run(world, *kernels)"),
    ("x = ", ":1: SyntaxError: "),
    ("\nx = y", ":2: NameError: name 'y' is not defined"),
    ("ENTRY = 'pong'\ndef run(world, pong): pass", ": ENTRY: symbol must be one of ping_pong"),
    ("RANKS = 'two'\ndef run(world, pong): pass", ": RANKS: "),
    ("RANKS = 0\ndef run(world, pong): pass", ": RANKS: must be in [1, 64], got 0"),
    ("raise SystemExit(0)", ":1: SystemExit: 0"),
])
def test_what_is_no_harness(text, says, tmp_path, capsys):
    path = harness(tmp_path, text)
    assert check(PTX, "--harness", path) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"deepep-ptx: --harness: {path}{says}") and error.count("\n") == 1


def test_a_harness_that_exits_has_not_passed(tmp_path, capsys):
    path = harness(tmp_path, "import sys\ndef run(world, kernel): sys.exit(0)")
    assert check(PTX, "--harness", path, "--seeds", "1", "--scheduler", "rr") == 1
    assert any("FAULT SystemExit" in line for line in printed(capsys))


def test_a_harness_that_runs_nothing(tmp_path, capsys):
    path = harness(tmp_path, "def run(world, kernel): pass")
    assert check(PTX, "--harness", path, "--seeds", "1", "--scheduler", "rr") == 1
    assert any("no kernel ran" in line for line in printed(capsys))


def test_what_no_run_comes_to(tmp_path, capsys):
    file = tmp_path / "branch.ptx"
    file.write_text(PTX.read_text().replace("    bra             $turn;", """\
    setp.gt.u32     q, i_turn, 99;
    @!q bra         $turn;
    ld.global.u32   r, [a_value];
    st.global.u32   [a_value], r;"""))
    assert check(file, "--harness", HARNESS, "--seeds", "1", "--lines", "--json",
                 tmp_path / "x.json") == 0
    out = printed(capsys)
    assert "not executed: 2 lines of the kernels, about which this says nothing; --lines lists " \
           "them" in out
    assert out[-1] == f"  {file}:34-35"
    assert json.loads((tmp_path / "x.json").read_text())["not_executed"] == [f"{file}:34-35"]


def test_several_kernels_and_ranks(tmp_path, capsys):
    text = PTX.read_text()
    body = text[text.index(".visible"):]
    file = tmp_path / "two.ptx"
    file.write_text(text + body.replace("ping_pong", "other"))
    path = harness(tmp_path, HARNESS.read_text().replace("def run(world, ping_pong):", """\
ENTRY = ("other", "ping_pong")


def run(world, other, ping_pong):
    assert world.num_ranks == 4 and (other.symbol, ping_pong.symbol) == ENTRY
    two(world, other)
    two(world, ping_pong)


def two(world, ping_pong):"""))
    argv = [file, "--harness", path, "--seeds", "1", "--ranks", "4"]
    assert check(*argv) == 0
    assert "other, ping_pong" in "\n".join(printed(capsys))


def test_an_unknown_form(tmp_path, capsys):
    file = tmp_path / "bad.ptx"
    file.write_text(PTX.read_text().replace("add.u32         r, r, 1", "ad.u32          r, r, 1"))
    assert check(file, "--harness", HARNESS) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and f"{file}:26: " in captured.err and "'ad'" in captured.err


def test_a_kernel_that_never_ends(tmp_path, capsys):
    file = tmp_path / "never.ptx"
    file.write_text(PTX.read_text().replace("    setp.ge.u32     q, i_turn", "    bra $turn;\n"
                                            "    setp.ge.u32     q, i_turn"))
    assert check(file, "--harness", HARNESS, "--seeds", "1", "--scheduler", "rr") == 1
    out = printed(capsys)
    assert "FAULT never-ending" in out[3]
    assert any(f"{file}:18" in line for line in out)


# -- what the page says -----------------------------------------------------------------------

PAGE = (ROOT / "docs/verifier.md").read_text()
BLOCKS = re.findall(r"^```\w*\n(.*?)^```$", PAGE, re.M | re.S)


def test_the_files_of_the_page():
    assert PTX.read_text() in BLOCKS and HARNESS.read_text() in BLOCKS
    assert 25 <= sum(bool(line.strip()) for line in PTX.read_text().splitlines()) <= 35


@pytest.mark.parametrize("which", [0, 1, 2])
def test_the_sessions_of_the_page(which, tmp_path, monkeypatch, capsys):
    session = [block for block in BLOCKS if block.startswith("$ ")][which]
    commands = [line[2:].split() for line in session.splitlines() if line.startswith("$ ")]
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    if which:
        relaxed(tmp_path)
    if which == 1:
        assert commands.pop(0) == ["sed", "s/st.release/st.relaxed/", str(PTX.relative_to(ROOT)),
                                   ">", "relaxed.ptx"]
    (command,) = commands
    assert command[0] == "deepep-ptx" and cli.main(command[1:]) == bool(which)
    rest = iter(printed(capsys))
    shown = [line for line in session.splitlines() if not line.startswith("$ ")]
    assert [line for line in shown if line != "..." and line not in rest] == []


def test_the_report_that_the_page_explains_is_that_of_its_session():
    report = next(block for block in BLOCKS if block.startswith("RACE "))
    assert report in [block for block in BLOCKS if block.startswith("$ ")][1]
