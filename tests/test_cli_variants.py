# SPDX-License-Identifier: MIT
"""`deepep-ptx variants`, `render` and `env`; how the commands are found and how they fail."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import deepep_ptx
from deepep_ptx import cli, select
from deepep_ptx.cli import catalogue, environment

PACKAGE = Path(deepep_ptx.__file__).parent
ROOT = PACKAGE.parent


def run(capsys, *argv):
    """(exit code, what it printed, what it complained about)."""
    code = cli.main(list(argv))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def refused(capsys, *argv):
    """The one line with which bad input is refused."""
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "") and err.count("\n") == 1
    return err.removeprefix("deepep-ptx: ").rstrip()


@pytest.fixture
def clean(monkeypatch):
    """No variable of the table is set."""
    for variable in environment.VARIABLES:
        monkeypatch.delenv(variable.name, raising=False)
    return monkeypatch


# -- the command ------------------------------------------------------------------------------


def test_every_command_has_help(capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(["--help"])
    out = capsys.readouterr().out
    assert error.value.code == 0
    assert all(re.search(rf"^ +{name} +\w", out, re.MULTILINE) for name in cli.COMMANDS)


def test_only_the_command_asked_for_is_loaded():
    code = ("import sys; from deepep_ptx import cli; cli.main(['env']); "
            "sys.exit(any(name.startswith('deepep_ptx._') or name == 'numpy' "
            "for name in sys.modules))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["info", "demo"])
def test_a_broken_build_is_one_line_that_names_doctor(command):
    code = ("import sys; sys.modules['deepep_ptx._emu'] = None; "
            f"from deepep_ptx import cli; sys.exit(cli.main([{command!r}]))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "deepep_ptx._emu" in done.stderr and "deepep-ptx doctor" in done.stderr


# -- variants ---------------------------------------------------------------------------------


def document(capsys, *argv):
    code, out, err = run(capsys, "variants", *argv, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def test_variants_lists_all_that_ships(capsys):
    code, out, _ = run(capsys, "variants")
    head, *lines = out.splitlines()
    assert code == 0 and head.split()[:4] == ["kernel", "arch", "path", "policy"]
    assert len(lines) == len(select.load_table()["variants"])
    assert all(variant["symbol"] in line for variant, line in
               zip(select.load_table()["variants"], lines, strict=True))


def test_what_aliases_pick_is_marked(capsys):
    rows = document(capsys)["variants"]
    for arch in catalogue.archs():
        for alias in select.load_table()["aliases"]:
            marked = {row["symbol"] for row in rows
                      if row["arch"] == arch and alias in row["picked_by"]}
            chosen = {variant["symbol"] for variant in select.choose(alias, arch).values()}
            assert marked == chosen


def test_undefined_forms_are_marked(capsys):
    rows = {row["symbol"]: row for row in document(capsys, "--arch", "sm_90")["variants"]}
    assert rows["ep_dispatch_vec_ld_nc_na"]["defined"] is True
    assert rows["ep_combine_vec_ld_nc_na"]["defined"] is False
    assert rows["ep_combine_bulk"]["defined"] is True
    assert rows["ep_layout"]["defined"] is None
    _, out, _ = run(capsys, "variants", "ep_combine_vec_ld_nc_na", "--arch", "sm_90")
    assert " NO " in out and "aggressive" in out


def test_variants_of_a_kernel(capsys):
    found = document(capsys, "abort", "ep_dispatch_bulk")["variants"]
    assert [(row["symbol"], row["arch"]) for row in found] == [
        ("ep_dispatch_bulk", "sm_90"), ("ep_abort", "sm_80"), ("ep_abort", "sm_90")]


def test_figures_are_the_locks(capsys):
    rows = document(capsys, "--arch", "sm_90")["variants"]
    lock = (ROOT / "ptx/variants.lock").read_text().partition("[sm_90]")[2]
    for row in rows:
        line = re.search(rf"^{row['symbol']} = .*registers = (\d+), spills = (\d+)", lock,
                         re.MULTILINE)
        if row["registers"] is not None:         # else the lock is older than the text
            assert (row["registers"], row["spills"]) == (int(line[1]), int(line[2]))


@pytest.mark.parametrize("figures", [
    {}, {"ptxas": "0.0.0", "variants": {"sm_90/ep_abort.ptx": {"sha256": "of another text",
                                                              "registers": 7}}}])
def test_no_figures_rather_than_wrong_ones(capsys, monkeypatch, figures):
    monkeypatch.setattr(catalogue, "_load_figures", lambda: figures)
    (row,) = document(capsys, "ep_abort", "--arch", "sm_90")["variants"]
    assert row["registers"] is row["spills"] is None
    line = run(capsys, "variants", "ep_dispatch_bulk")[1].splitlines()[1].split()
    assert line[9:11] == ["-", "-"]
    # Not what is fixed without the part that nobody knows.
    (row,) = document(capsys, "ep_dispatch_bulk")["variants"]
    static = row["static_smem"]
    assert line[8] == ("-" if static is None else f"{static + row['smem']}+64/rank")


def test_unknown_kernel_offers_the_nearest(capsys):
    line = refused(capsys, "variants", "dispach")
    assert line.startswith("unknown kernel or symbol 'dispach'; did you mean dispatch")
    assert "combine" in refused(capsys, "variants", "??")


# -- render -----------------------------------------------------------------------------------


def shipped(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*.ptx")}


def test_render_writes_all_that_ships(capsys, tmp_path):
    code, out, err = run(capsys, "render", "--out", str(tmp_path / "new/ptx"))
    assert (code, err) == (0, "")
    assert shipped(tmp_path / "new/ptx") == shipped(PACKAGE / "_ptx")
    assert out.splitlines() == [f"wrote {tmp_path}/new/ptx/{variant['file']}"
                                for variant in select.load_table()["variants"]]


def test_one_symbol_is_printed_on_its_newest_target(capsys):
    code, out, _ = run(capsys, "render", "ep_abort")
    assert code == 0 and out == (PACKAGE / "_ptx/sm_90/ep_abort.ptx").read_text()
    _, out, _ = run(capsys, "render", "ep_abort", "--arch", "sm_80")
    assert out == (PACKAGE / "_ptx/sm_80/ep_abort.ptx").read_text()


def test_render_to_stdout(capsys):
    _, out, _ = run(capsys, "render", "layout", "abort", "--arch", "sm_90", "--stdout")
    assert re.findall(r"\.entry (\w+)", out) == ["ep_layout", "ep_abort"]


@pytest.mark.parametrize("policy, arch, symbol", [
    ("safe", "sm_80", "ep_dispatch_vec_ld_relaxed_sys"), ("bulk", "sm_90", "ep_dispatch_bulk"),
    ("ep_dispatch_vec_ld_volatile", "sm_90", "ep_dispatch_vec_ld_volatile")])
def test_render_what_a_policy_picks(capsys, tmp_path, policy, arch, symbol):
    run(capsys, "render", "dispatch", "--policy", policy, "--arch", arch, "--out", str(tmp_path))
    assert list(shipped(tmp_path)) == [f"{arch}/{symbol}.ptx"]


def test_a_policy_of_new_targets_only(capsys, tmp_path):
    run(capsys, "render", "dispatch", "--policy", "bulk", "--out", str(tmp_path))
    assert list(shipped(tmp_path)) == ["sm_90/ep_dispatch_bulk.ptx"]


def test_files_are_overwritten_by_force_only(capsys, tmp_path):
    argv = ["render", "abort", "layout", "--arch", "sm_90", "--out", str(tmp_path)]
    mine = tmp_path / "sm_90/ep_abort.ptx"
    mine.parent.mkdir()
    mine.write_text("// mine\n")
    assert refused(capsys, *argv) == f"--out: {mine} is there and differs; --force overwrites it"
    assert shipped(tmp_path) == {"sm_90/ep_abort.ptx": "// mine\n"}, "nothing was written"
    assert run(capsys, *argv, "--force")[0] == 0
    assert mine.read_text() == (PACKAGE / "_ptx/sm_90/ep_abort.ptx").read_text()
    code, out, _ = run(capsys, *argv)
    assert code == 0 and out.count("is there already") == 2 and "wrote" not in out


def test_render_refuses(capsys, tmp_path):
    assert refused(capsys, "render").startswith("say where ")
    assert "did you mean ep_abort" in refused(capsys, "render", "ep_abord")
    assert refused(capsys, "render", "ep_dispatch_bulk", "--arch", "sm_80") == \
        "no variant of ep_dispatch_bulk is for sm_80"
    assert refused(capsys, "render", "--policy", "ld_wishful", "--stdout").startswith(
        "--policy: unknown policy 'ld_wishful'")
    assert refused(capsys, "render", "ep_dispatch_bulk", "--policy", "safe") == \
        "--policy: 'safe' picks other variants of ep_dispatch_bulk"
    file = tmp_path / "file"
    file.write_text("")
    assert refused(capsys, "render", "abort", "--out", str(file)).startswith("--out: cannot write ")
    with pytest.raises(SystemExit) as error:
        cli.main(["render", "abort", "--out", "x", "--stdout"])
    assert error.value.code == 2


# -- env --------------------------------------------------------------------------------------


def test_env_shows_values_and_what_is_wrong(capsys, clean):
    clean.setenv("DEEPEP_PTX_POLICY", "ld_wishful")
    clean.setenv("DEEPEP_PTX_EXECUTOR", "emu")
    code, out, err = run(capsys, "env")
    blocks = {block.split()[0]: block for block in out.split("\n\n")}
    assert (code, err) == (0, "")
    assert list(blocks) == [variable.name for variable in environment.VARIABLES]
    assert "= 'ld_wishful'" in blocks["DEEPEP_PTX_POLICY"]
    assert "problem   unknown policy 'ld_wishful'" in blocks["DEEPEP_PTX_POLICY"]
    assert "= 'emu'" in blocks["DEEPEP_PTX_EXECUTOR"]
    assert "problem" not in blocks["DEEPEP_PTX_EXECUTOR"]
    assert "is not set" in blocks["CUDA_VISIBLE_DEVICES"]


def test_env_json(capsys, clean):
    clean.setenv("DISABLE_AGGRESSIVE_PTX_INSTRS", "0")
    found = {item["name"]: item for item in json.loads(run(capsys, "env", "--json")[1])}
    assert found["DISABLE_AGGRESSIVE_PTX_INSTRS"]["value"] == "0"
    assert found["DISABLE_AGGRESSIVE_PTX_INSTRS"]["finding"]["severity"] == "warning"
    assert found["CUDA_HOME"]["value"] is found["CUDA_HOME"]["finding"] is None
    assert all(item["does"] and item["accepts"] and item["unset"] and item["read"]
               for item in found.values())


@pytest.mark.parametrize("name, value, severity", [
    ("DEEPEP_PTX_POLICY", "fast", None),
    ("DEEPEP_PTX_POLICY", "bulk", None),
    ("DEEPEP_PTX_POLICY", "ep_dispatch_vec_ld_na", None),
    ("DEEPEP_PTX_POLICY", "", None),
    ("DEEPEP_PTX_POLICY", "aggressive", "warning"),
    ("DEEPEP_PTX_POLICY", "fastest", "problem"),
    ("DISABLE_AGGRESSIVE_PTX_INSTRS", "1", None),
    ("DISABLE_AGGRESSIVE_PTX_INSTRS", "yes", "problem"),
    ("DEEPEP_PTX_EXECUTOR", "cuda", None),
    ("DEEPEP_PTX_EXECUTOR", "gpu", "problem"),
    ("CUDA_VISIBLE_DEVICES", "0,1", None),
    ("CUDA_VISIBLE_DEVICES", "", "warning"),
    ("CUDA_VISIBLE_DEVICES", "-1", "warning"),
    ("CUDA_DEVICE_MAX_CONNECTIONS", "32", None),
    ("CUDA_DEVICE_MAX_CONNECTIONS", "1", "warning"),
    ("CUDA_DEVICE_MAX_CONNECTIONS", "64", "problem"),
    ("CUDA_DEVICE_MAX_CONNECTIONS", "many", "problem"),
    ("CUDA_LAUNCH_BLOCKING", "0", None),
    ("CUDA_LAUNCH_BLOCKING", "1", "problem"),
    ("CUDA_MODULE_LOADING", "EAGER", None),
    ("CUDA_MODULE_LOADING", "lazy", "problem"),
    ("CUDA_DISABLE_PTX_JIT", "1", "problem"),
    ("CUDA_CACHE_DISABLE", "1", "warning"),
    ("CUDA_HOME", "/opt/cuda", None),
])
def test_values_are_judged(name, value, severity):
    (variable,) = (v for v in environment.VARIABLES if v.name == name)
    finding = environment.judge(variable, {name: value})
    assert (finding and finding.severity) == severity
    assert finding is None or (finding.text and finding.fix)


def test_the_table_has_every_variable_that_the_sources_read():
    name = re.compile(r"""environ(?:\.get\(|\.setdefault\(|\[)["'](\w+)["']|getenv\("(\w+)"\)""")
    sources = [path for folder, kinds in ((PACKAGE, ("*.py",)),
                                          (ROOT / "cysrc", ("*.c", "*.h", "*.pyx")))
               for kind in kinds for path in folder.rglob(kind)]
    read = {a or b for path in sources for a, b in name.findall(path.read_text())}
    assert {"DEEPEP_PTX_POLICY", "DEEPEP_PTX_EXECUTOR", "CUDA_HOME"} <= read
    assert read <= {variable.name for variable in environment.VARIABLES}
