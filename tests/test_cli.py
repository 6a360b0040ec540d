# SPDX-License-Identifier: MIT
"""The command: what it prints, what it returns, what it says of bad input."""

import subprocess
import sys

import numpy as np
import pytest

from deepep_ptx import __version__, _cuda, cli, cuda_ranks
from deepep_ptx.cli import demo
from deepep_ptx.cli.demo.command import settings_of

SMALL = ["--ranks", "2", "--tokens", "3", "--hidden", "16", "--experts", "4", "--groups", "2",
         "--topk-groups", "1", "--topk", "2"]


def test_demo(capsys):
    assert cli.main(["demo", *SMALL]) == 0
    out = capsys.readouterr().out
    assert "bit-exact     yes" in out and "warp instr" in out and "wire MB" in out
    assert "2 ranks, 6 tokens" in out


@pytest.mark.parametrize("more", [[], ["--compare-dtypes"]])
def test_demo_of_low_latency_calls(more, capsys):
    assert cli.main(["demo", *SMALL, "--hidden", "128", "--mode", "ll", "--reduce", "exact",
                     *more]) == 0
    out = capsys.readouterr().out
    assert "mode          low latency" in out and "2 ranks, 6 tokens" in out
    assert ("dispatch instr" in out) == bool(more) == ("warp instr  wire MB" not in out)


def test_every_setting_is_an_option():
    args = cli.parser().parse_args(["demo"])
    assert demo.Settings(**settings_of(args)) == demo.Settings()


def test_options_reach_the_settings():
    args = cli.parser().parse_args(["demo", *SMALL, "--seed", "7", "--combine", "push", "--worst",
                                    "--arch", "sm_80", "--unit", "bytes", "--checks", "off",
                                    "--policy", "safe", "--text", "x", "--scheduler", "rr",
                                    "--executor", "emu", "--dtype", "bf16", "--input", "i",
                                    "--save-input", "s", "--plot", "p"])
    assert demo.Settings(**settings_of(args)) == demo.Settings(
        num_ranks=2, num_tokens=3, hidden=16, num_experts=4, num_groups=2, num_topk_groups=1,
        num_topk=2, seed=7, combine="push", worst=True, arch="sm_80", unit="bytes", checks="off",
        policy="safe", text="x", executor="emu", dtype="bf16", input="i", save_input="s", plot="p")


def test_a_wrong_bit_is_exit_code_1(monkeypatch, capsys):
    honest = demo.check

    def one_wrong(outputs, wanted, bar):
        outputs[1].arrays["recv_x"].view("u2")[0, 3] ^= 1
        return honest(outputs, wanted, bar)

    monkeypatch.setattr(demo, "check", one_wrong)
    assert cli.main(["demo", *SMALL]) == 1
    out = capsys.readouterr().out
    assert "bit-exact     NO" in out and "rank 1: recv_x row 0, column 3 is" in out


@pytest.mark.parametrize("argv, start", [
    (["--hidden", "12"], "--hidden: must"),
    (["--topk", "64"], "--topk: must"),
    (["--experts", "63"], "--experts: must be a positive multiple of --ranks (2), got 63; try "
                          "--experts 64, or --ranks 1 or 3"),
    (["--experts", "64", "--groups", "8", "--ranks", "3"],
     "--experts: must be a positive multiple of --ranks (3), got 64; try --experts 72, or --ranks "
     "2 or 4"),
    (["--experts", "0"], "--experts: must be a positive multiple of --ranks (2), got 0; try "
                         "--experts 2\n"),
    (["--groups", "3"], "--groups: must divide"),
    (["--tokens", "1000000000"], "--tokens: must be at most 134217726 with"),
    (["--hidden", "1000000000"], "--hidden: must be at most "),
    (["--policy", "ld_wishful"], "--policy: "),
    (["--scheduler", "hope"], "--scheduler: "),
    (["--text", "no/such/file"], "--text: cannot read"),
    (["--input", "no/such/file"], "--input: cannot read no/such/file: No such file"),
    (["--save-input", "no/such/file"], "--save-input: cannot write no/such/file: No such file"),
    (["--dtype", "fp8"], "--hidden: must be a multiple of 128 with dtype fp8, got 16"),
    (["--dtype", "fp8", "--hidden", "128", "--combine", "pull"], "--combine: must be push"),
    (["--compare-dtypes"], "--hidden: must be a multiple of 128 with dtype fp8, got 16"),
    (["--mode", "ll"], "--hidden: must be a multiple of 128 with mode ll, got 16"),
    (["--mode", "ll", "--worst"], "--worst: must not be set with mode ll"),
    (["--mode", "ll", "--combine", "push"], "--combine: must not be set with mode ll"),
    (["--reduce", "exact"], "--reduce: must not be set with mode normal"),
])
def test_bad_input_is_one_line_and_exit_code_2(argv, start, capsys):
    assert cli.main(["demo", *SMALL, *argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"deepep-ptx: {start}") and captured.err.count("\n") == 1


def test_empty_text(tmp_path, capsys):
    path = tmp_path / "empty"
    path.write_text("\n")
    assert cli.main(["demo", *SMALL, "--text", str(path)]) == 2
    assert capsys.readouterr().err.startswith("deepep-ptx: --text: must not be empty")


def test_a_job_saved_and_run_again(tmp_path, capsys):
    path = str(tmp_path / "job.npz")
    assert cli.main(["demo", *SMALL, "--save-input", path]) == 0
    table = capsys.readouterr().out.splitlines()[2:6]
    assert cli.main(["demo", "--input", path]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[2:6] == table, "rows, instructions and bytes are the same"
    assert f"2 ranks, 6 tokens ({path}), hidden 16, 4 experts, top-2, seed 0" == out[0]


def test_entries_of_a_file_keep_their_names(tmp_path, capsys):
    path = tmp_path / "job.npz"
    with path.open("wb") as file:
        np.savez(file, x=np.zeros((2, 8), np.uint16), dtype="bfloat16")
    assert cli.main(["demo", "--input", str(path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"deepep-ptx: --input: {path}: entry 'topk_idx' must be there")
    assert "num_tokens" in err and err.count("\n") == 1


def test_no_matplotlib_is_said_before_anything_runs(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    monkeypatch.setattr(demo, "run_ranks", lambda *args, **kw: pytest.fail("it ran"))
    for more in [], ["--compare-dtypes", "--hidden", "128"]:
        assert cli.main(["demo", *SMALL, "--plot", "p.png", *more]) == 2
        assert capsys.readouterr().err == ("deepep-ptx: --plot: needs matplotlib, which is not "
                                           "installed: pip install matplotlib\n")


@pytest.mark.parametrize("argv", [["demo", "--ranks", "many"], ["demo", "--arch", "sm_70"],
                                  ["demo", "--executor", "tpu"], ["demo", "--mode", "fast"],
                                  ["fly"], []])
def test_unparsable(argv, capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(argv)
    assert error.value.code == 2
    assert "deepep-ptx" in capsys.readouterr().err


def test_info(capsys):
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    for word in (__version__, "executor", "gpu", "sm_90", "fast", "ptxas", "ep_dispatch_vec_ld_na",
                 "ep_combine_bulk"):
        assert word in out


def test_info_follows_arch_and_policy(capsys):
    assert cli.main(["info", "--arch", "sm_80", "--policy", "aggressive"]) == 0
    assert "ep_dispatch_vec_ld_nc_na" in capsys.readouterr().out


def test_info_unknown_policy(capsys):
    assert cli.main(["info", "--policy", "ld_wishful"]) == 2
    assert capsys.readouterr().err.startswith("deepep-ptx: --policy: ")


def test_as_a_module():
    done = subprocess.run([sys.executable, "-m", "deepep_ptx", "demo", *SMALL],
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "silent but for the report"
    assert "bit-exact     yes" in done.stdout


def test_one_rank(capsys):
    assert cli.main(["demo", *SMALL, "--ranks", "1", "--tokens", "1", "--groups", "1"]) == 0
    assert capsys.readouterr().out.startswith("1 rank, 1 token (words, 1 distinct), hidden 16, 4 ")


def test_help_explains_the_report(capsys):
    with pytest.raises(SystemExit):
        cli.main(["demo", "--help"])
    out = capsys.readouterr().out
    for word in ("wire MB", "logical MB", "busiest", "experts hit", "late-async", "bulk"):
        assert word in out


def test_no_gpu(monkeypatch, capsys):
    monkeypatch.setattr(_cuda, "device_count", lambda: 0)
    monkeypatch.setattr(_cuda, "why_not", lambda: "no driver here")
    assert cli.main(["info"]) == 0
    assert "none usable: no driver here" in capsys.readouterr().out
    monkeypatch.setattr(cuda_ranks, "device_count", lambda: 0)
    monkeypatch.setattr(cuda_ranks, "why_not", lambda: "no driver here")
    assert cli.main(["demo", *SMALL, "--executor", "cuda"]) == 1
    assert capsys.readouterr().err == \
        "deepep-ptx: --executor: 'cuda' cannot be used: no driver here\n"


@pytest.mark.parametrize("command", [f"demo {' '.join(SMALL)}", "info", "demo --help"])
def test_a_reader_that_leaves_early(command):
    done = subprocess.run(f"{sys.executable} -m deepep_ptx {command} | head -c 1",
                          shell=True, capture_output=True, text=True, timeout=120)
    assert len(done.stdout) == 1 and done.stderr == ""


@pytest.mark.parametrize(("argv", "start"), [
    (["demo", "--tokens", "1e3"], "deepep-ptx: --tokens: invalid int value: '1e3'"),
    (["demo", "--tok", "3"], "deepep-ptx: unrecognized arguments: --tok 3"),
    (["dmeo"], "deepep-ptx: COMMAND: invalid choice: 'dmeo' (choose from "),
    (["render", "ep_layout", "--arch", "sm_70"], "deepep-ptx: --arch: invalid choice: 'sm_70'"),
])
def test_what_the_parser_refuses_is_one_line_too(argv, start, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    err = capsys.readouterr().err
    assert caught.value.code == 2 and err.startswith(start) and err.count("\n") == 1


@pytest.mark.parametrize(("value", "code", "text"), [
    ("gpu", 2, "DEEPEP_PTX_EXECUTOR: 'gpu' is not one of 'emu', 'cuda'"),
    ("cuda", 1, "DEEPEP_PTX_EXECUTOR: 'cuda' is asked for, and nothing would run; gpu: "),
])
def test_info_with_an_executor_that_is_not_there(value, code, text, monkeypatch, capsys):
    monkeypatch.setenv("DEEPEP_PTX_EXECUTOR", value)
    monkeypatch.setattr(_cuda, "device_count", lambda: 0)
    monkeypatch.setattr(_cuda, "why_not", lambda: "for the test")
    assert cli.main(["info"]) == code
    assert capsys.readouterr().err.startswith(f"deepep-ptx: {text}")


def test_ctrl_c_is_one_line(monkeypatch, capsys):
    def interrupted(**settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run", interrupted)
    assert cli.main(["demo"]) == 130
    assert capsys.readouterr().err == "deepep-ptx: interrupted\n"


def test_a_policy_of_other_targets_is_not_unknown(capsys):
    assert cli.main(["info", "--arch", "sm_80", "--policy", "bulk"]) == 2
    assert capsys.readouterr().err.startswith(
        "deepep-ptx: --policy: 'bulk' has no variant that runs on sm_80, only on sm_90")


@pytest.mark.parametrize(("argv", "prog"), [
    (["demo", "--no-such"], "deepep-ptx demo"),
    (["ab", "dispatch", "--policy", "ld_na,bulk", "--no-such"], "deepep-ptx ab"),
    (["bench", "intranode", "--no-such"], "deepep-ptx bench intranode"),
    (["variants", "--no-such", "3"], "deepep-ptx variants"),
    (["--no-such"], "deepep-ptx"),
])
def test_what_a_command_does_not_know_points_to_its_own_help(argv, prog, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 2
    assert capsys.readouterr().err.endswith(f"; see {prog} --help\n")


@pytest.mark.parametrize("command", ["variants", "info", "render ep_abort"])
def test_output_that_cannot_be_written_is_one_line(command):
    done = subprocess.run(f"{sys.executable} -m deepep_ptx {command} >/dev/full", shell=True,
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr == "deepep-ptx: cannot write the output: No space left on device\n"


def test_no_memory_is_one_line(monkeypatch, capsys):
    def hungry(**settings):
        return np.empty(1 << 60, np.uint8)

    monkeypatch.setattr(demo, "run", hungry)
    assert cli.main(["demo"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("deepep-ptx: not enough memory: Unable to allocate")
    assert err.count("\n") == 1


@pytest.mark.parametrize("argv", [
    ["ab", "dispatch", "--policy", "ld_na,bulk", "--dry-run", "--json"],
    ["bench", "intranode", "--executor", "emu", "--out"],
])
def test_records_that_cannot_be_written_are_refused_before_anything_runs(argv, tmp_path, capsys):
    for path, why in ((tmp_path, "it is a directory"),
                      (tmp_path / "no" / "x.json", f"there is no directory {tmp_path / 'no'}")):
        assert cli.main([*argv, str(path)]) == 2
        assert capsys.readouterr().err == f"deepep-ptx: {argv[-1]}: cannot write {path}: {why}\n"
