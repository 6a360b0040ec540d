# SPDX-License-Identifier: MIT
"""`deepep-ptx doctor`: here, on machines that are made up, and on a driver that is."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deepep_ptx import Buffer, RankError, cli, run_ranks, select
from deepep_ptx._buffer import param_bytes
from deepep_ptx.cli import catalogue, doctor, environment
from deepep_ptx.cli.doctor import child, gpu, install, machine, selftest, tuning, variables
from deepep_ptx.cli.doctor.result import OK, PROBLEM, WARNING, Result
from deepep_ptx.tuning import Header, save

ROOT = Path(__file__).resolve().parents[1]
H100 = {"name": "NVIDIA H100", "arch": 90, "memory": 80 << 30}
NO_DRIVER = {"version": None, "least": 12040, "why": "no libcuda", "gpus": [], "links": []}
ROUND_TRIP = {"mismatches": []}


def driver(num_gpus, **link):
    """What `probe.gpus` says of that many H100s; keywords change all links."""
    return {"version": 13000, "least": 12040, "why": None, "gpus": [H100] * num_gpus,
            "links": [{"from": i, "to": j, "access": True, "atomics": True, "rank": 0} | link
                      for i in range(num_gpus) for j in range(num_gpus) if i != j]}


def a_machine(tmp_path, environ=(), **answers):
    """A machine whose children answer with keywords: documents, or errors to raise."""
    def ask(name, *args, limit_s):
        assert limit_s > 0
        answer = answers[name](*args) if callable(answers[name]) else answers[name]
        if isinstance(answer, Exception):
            raise answer
        return answer
    return doctor.Machine(dict(environ), tmp_path, ask)


def only(check, made):
    (result,) = check(made)
    return result


# -- here -------------------------------------------------------------------------------------


@pytest.fixture
def clean(monkeypatch):
    """None of the variables that the doctor knows is set."""
    known = {variable.name for variable in environment.VARIABLES}
    for name in [*known, *(name for name, _ in environment.without_effect(os.environ))]:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.fixture
def no_gpu(clean):
    """Nobody finds a GPU here, also where there is one."""
    honest = child.ask

    def ask(name, *args, limit_s):
        return NO_DRIVER if name == "gpus" else honest(name, *args, limit_s=limit_s)

    clean.setattr(doctor, "Machine", lambda environ: machine.Machine(environ, "/nowhere", ask))
    return clean


def test_doctor_without_a_gpu(capsys, no_gpu):
    assert cli.main(["doctor"]) == 0
    *lines, total = capsys.readouterr().out.splitlines()
    assert total.endswith(", 0 problem")
    assert all(line.split()[0] in doctor.STATUSES for line in lines)
    told, = (line for line in lines if "no GPU" in line)
    assert told.startswith(f"warning  {'driver':<15} no GPU: only the CPU executor runs (")
    assert "ok       cpu self test   2 ranks, dispatch and combine, bit-exact" in lines


def test_doctor_json(capsys, no_gpu):
    no_gpu.setenv("CUDA_LAUNCH_BLOCKING", "1")
    assert cli.main(["doctor", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["counts"][PROBLEM] == 1
    (problem,) = (check for check in document["checks"] if check["status"] == PROBLEM)
    assert problem["check"] == "environment"
    assert problem["text"].startswith("CUDA_LAUNCH_BLOCKING: ") and problem["fix"] == "unset it"
    assert sum(document["counts"].values()) == len(document["checks"])


def test_a_check_that_fails_is_a_problem_and_the_rest_run(tmp_path):
    def broken(machine):
        raise OSError("no such luck")

    def fine(machine):
        yield Result("fine", OK, "indeed")

    first, second = doctor.examine(a_machine(tmp_path), [broken, fine])
    assert (first.check, first.status) == ("broken", PROBLEM)
    assert "OSError: no such luck" in first.text
    assert second.status == OK


# -- what is installed ------------------------------------------------------------------------


def test_extensions_are_those_that_are_built():
    assert set(install.EXTENSIONS) == {path.stem for path in
                                       (ROOT / "cysrc/deepep_ptx").glob("_*.pyx")}
    assert only(install.extensions, None).status == OK


def test_an_extension_that_does_not_load(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepep_ptx._emu", None)
    result = only(install.extensions, None)
    assert result.status == PROBLEM and "_emu does not load" in result.text
    assert "make build" in result.fix


def test_packages(monkeypatch):
    assert {result.check for result in install.packages(None)} == {"numpy", "ml_dtypes", "tqdm"}
    assert all(result.status == OK for result in install.packages(None))
    monkeypatch.setattr(install, "_version", {"numpy": "1.9.3", "tqdm": "4.60"}.get)
    found = {result.check: result for result in install.packages(None)}
    assert found["numpy"].text == "1.9.3 is too old" and "numpy>=1.26" in found["numpy"].fix
    assert found["ml_dtypes"].text == "is not installed"
    assert found["ml_dtypes"].fix.startswith("pip install 'ml_dtypes>=")
    assert found["tqdm"].status == OK
    assert all(result.status == OK for result in install.optional_packages(None))


def test_requirements_of_an_installed_package(monkeypatch, tmp_path):
    monkeypatch.setattr(install.deepep_ptx, "__file__", str(tmp_path / "deepep_ptx/__init__.py"))
    monkeypatch.setattr(install.metadata, "requires",
                        lambda name: ["numpy>=1.26", 'torch==2.13.0; extra == "torch"'])
    assert install._requirements() == ["numpy>=1.26"]


def test_kernels_of_another_build(monkeypatch):
    assert only(install.kernels, None).status == OK
    honest, size = select.read_text, param_bytes("abort")
    monkeypatch.setattr(select, "read_text", lambda variant: honest(variant).replace(
        f"ep_abort(.param .align 16 .b8 p[{size}]", f"ep_abort(.param .align 16 .b8 p[{size + 8}]"))
    result = only(install.kernels, None)
    assert result.status == PROBLEM
    assert result.text.endswith(": sm_80/ep_abort, sm_90/ep_abort")


def test_a_kernel_that_the_build_does_not_know(monkeypatch):
    """Rendered since the build: the doctor and every buffer say what to do."""
    table = select.load_table()
    added = [row | {"kernel": "later"} for row in table["variants"] if row["kernel"] == "abort"]
    newer = table | {"variants": [*table["variants"], *added]}
    monkeypatch.setattr(select, "load_table", lambda: newer)
    result = only(install.kernels, None)
    assert result.status == PROBLEM and "build again" in result.fix
    assert result.text.endswith(": sm_80/ep_abort, sm_90/ep_abort")
    with pytest.raises(RankError) as failed:
        run_ranks(Buffer, 2, executor="emu")
    assert isinstance(failed.value.__cause__, ImportError)
    assert str(failed.value).endswith("parameter bytes, this build 0; build again")


def test_kernels_that_are_not_there(monkeypatch, tmp_path):
    monkeypatch.setattr(select, "rendered", lambda: tmp_path)
    result = only(install.kernels, None)
    assert result.status == PROBLEM and result.text.endswith(".ptx is not there")


def test_kernels_older_than_their_sources(monkeypatch):
    monkeypatch.setattr(catalogue, "current", lambda root: False)
    result = only(install.kernels, None)
    assert (result.status, result.fix) == (WARNING, "make gen")


def test_kernels_whose_table_is_damaged(monkeypatch, tmp_path):
    (tmp_path / "variants.json").write_text("[" * 100_000)
    monkeypatch.setattr(select, "rendered", lambda: tmp_path)
    select.load_table.cache_clear()
    result = only(install.kernels, None)
    assert result.status == PROBLEM and "variants.json: must be JSON: it is nested" in result.text


def test_no_assembler_is_fine(monkeypatch):
    def missing():
        raise install.ptxas.ToolError("ptxas is not there")
    monkeypatch.setattr(install.ptxas, "find", missing)
    assert only(install.assembler, None).status == OK


# -- tuning files -----------------------------------------------------------------------------


def test_tuning_files(tmp_path):
    header = Header("0.1.0", "NVIDIA H100", 2, 1, "2026-11-24", "580", 0, {})
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    here = a_machine(tmp_path, environ, gpus=driver(2))
    assert only(tuning.files, here).text.startswith("none: a model says how many SMs")
    folder = tmp_path / "deepep_ptx" / "tuning"
    save(folder / "b.json", header, [])
    found = only(tuning.files, here)
    assert found.status == OK
    assert found.text == f"{folder}/b.json: for 2 ranks on NVIDIA H100, by 0.1.0 on 2026-11-24"
    # Of a machine without a GPU nobody knows what would fit.
    assert only(tuning.files, a_machine(tmp_path, environ, gpus=NO_DRIVER)).status == OK
    save(folder / "a.json", Header("0", "NVIDIA A100", 2, 1, "", "", 0, {}), [])
    (folder / "c.json").write_text("{")
    other, _, broken = tuning.files(here)
    assert other.status == broken.status == WARNING
    assert "a.json: for 2 ranks on NVIDIA A100" in other.text
    assert other.text.endswith("here is NVIDIA H100") and "deepep-ptx tune" in other.fix
    assert "c.json: file: must be JSON: Expecting" in broken.text


def test_a_tuning_file_that_the_variable_names(tmp_path):
    path = tmp_path / "t.json"
    save(path, Header("0.1.0", "NVIDIA H100", 2, 1, "2026-11-24", "580", 0, {}), [])
    environ = {"XDG_CONFIG_HOME": str(tmp_path), "DEEPEP_PTX_TUNING": str(path)}
    save(tmp_path / "deepep_ptx" / "tuning" / "u.json", Header("0", "A", 2, 1, "", "", 0, {}), [])
    named, users = tuning.files(a_machine(tmp_path, environ, gpus=driver(2)))
    assert named.text.startswith(f"DEEPEP_PTX_TUNING: {path}: for 2 ranks on NVIDIA H100")
    assert users.text.startswith("not looked at beside the variable: ")
    (variable,) = (v for v in environment.VARIABLES if v.name == "DEEPEP_PTX_TUNING")
    assert environment.judge(variable, environ) is None
    path.write_text("[]")
    finding = environment.judge(variable, environ)
    assert finding.severity == PROBLEM
    assert finding.text == f"{path}: file: must be an object, got 'list'"


# -- environment ------------------------------------------------------------------------------


def test_environment(tmp_path):
    environ = {"DEEPEP_PTX_POLICY": "ld_wishful", "DEEPEP_PTX_EXECUTOR": "cuda",
               "CUDA_MODULE_LOADING": "EAGER", "HOME": "/root"}
    policy, executor, loading = variables.environment(
        a_machine(tmp_path, environ, gpus=NO_DRIVER))
    assert policy.status == PROBLEM and "did you mean" not in policy.text
    assert policy.text.startswith("DEEPEP_PTX_POLICY: unknown policy 'ld_wishful'")
    assert executor.status == PROBLEM and "no GPU is usable" in executor.text
    assert (loading.status, loading.text) == (OK, "CUDA_MODULE_LOADING: 'EAGER'")
    _, executor, _ = variables.environment(a_machine(tmp_path, environ, gpus=driver(1)))
    assert executor.status == OK
    assert only(variables.environment, a_machine(tmp_path)).status == OK


def test_variables_of_others_have_no_effect(tmp_path):
    environ = {"NVSHMEM_IB_SL": "1", "NVSHMEM_DIR": "/x", "EP_JIT_DEBUG": "1", "DEEPEP_X": "",
               "TORCH_CUDA_ARCH_LIST": "9.0", "DISABLE_SM90_FEATURES": "1", "MY_EP_HOME": ""}
    results = list(variables.without_effect(a_machine(tmp_path, environ)))
    assert all(result.status == WARNING for result in results)
    assert {result.text.split()[0] for result in results} == environ.keys() - {"DEEPEP_X",
                                                                               "MY_EP_HOME"}
    assert list(variables.without_effect(a_machine(tmp_path))) == []


# -- GPUs -------------------------------------------------------------------------------------


def test_no_driver_and_no_gpu_is_a_warning(tmp_path):
    made = a_machine(tmp_path, gpus=NO_DRIVER)
    result = only(gpu.driver, made)
    assert (result.status, result.fix) == (WARNING, "") and "no libcuda" in result.text
    for check in (gpu.gpus, gpu.peers, gpu.nvlink, gpu.ipc, gpu.shared_memory, selftest.gpu):
        assert list(check(made)) == [], "the driver's line says it"


def test_a_container_without_its_gpus(tmp_path):
    version = tmp_path / "proc/driver/nvidia/version"
    version.parent.mkdir(parents=True)
    version.write_text("580.65")
    result = only(gpu.driver, a_machine(tmp_path, gpus=NO_DRIVER))
    assert result.status == WARNING and "--gpus all" in result.fix


def test_a_gpu_without_its_driver_is_a_problem(tmp_path):
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidia0").touch()
    result = only(gpu.driver, a_machine(tmp_path, gpus=NO_DRIVER))
    assert result.status == PROBLEM and "no libcuda" in result.text and result.fix
    hidden = a_machine(tmp_path, {"CUDA_VISIBLE_DEVICES": ""}, gpus=NO_DRIVER)
    assert only(gpu.driver, hidden).status == WARNING


def test_a_driver_that_does_not_answer_is_a_problem(tmp_path):
    made = a_machine(tmp_path, gpus=child.ChildError("no answer within 60 s"))
    result = only(gpu.driver, made)
    assert result.status == PROBLEM and "no answer within 60 s" in result.text
    assert list(gpu.peers(made)) == []


def test_gpus(tmp_path):
    facts = driver(2)
    facts["gpus"] = [H100, {"name": "Tesla V100", "arch": 70, "memory": 32 << 30}]
    made = a_machine(tmp_path, gpus=facts)
    assert only(gpu.driver, made).text == "for CUDA 13.0, at least 12.4 is needed"
    new, old = gpu.gpus(made)
    assert (new.check, new.status) == ("gpu 0", OK)
    assert new.text == "NVIDIA H100, compute capability 9.0, 80 GiB"
    assert old.status == PROBLEM and old.text.endswith("7.0, 32 GiB: below 8.0")


def test_peers_and_nvlink(tmp_path):
    def results(facts):
        made = a_machine(tmp_path, gpus=facts)
        return only(gpu.peers, made), only(gpu.nvlink, made)

    assert [result.status for result in results(driver(1))] == [OK, OK]
    assert [result.status for result in results(driver(8))] == [OK, OK]
    peers, nvlink = results(driver(3, atomics=False))
    assert (peers.status, nvlink.status) == (OK, WARNING)
    assert "0-1, 0-2, 1-2" in nvlink.text
    facts = driver(3)
    facts["links"][0]["access"] = False        # from 0 to 1
    peers, nvlink = results(facts)
    assert peers.status == PROBLEM and peers.text.endswith(": 0>1")
    assert nvlink.status == OK


def test_ipc(tmp_path):
    asked = []

    def share(devices, limit_s):
        asked.append(devices)
        return dict.fromkeys(map(str, devices))

    facts = driver(3)
    facts["links"][1]["access"] = False        # from 0 to 2
    assert only(gpu.ipc, a_machine(tmp_path, gpus=facts, share=share)).status == OK
    assert asked == [[0, 1]]
    made = a_machine(tmp_path, gpus=driver(2), share={"0": None, "1": "CUDA_ERROR_MAP_FAILED"})
    result = only(gpu.ipc, made)
    assert result.status == PROBLEM and "GPU 1" in result.text and "--ipc=host" in result.fix
    made = a_machine(tmp_path, gpus=driver(2), share=child.ChildError("killed by SIGSEGV"))
    assert "killed by SIGSEGV" in only(gpu.ipc, made).text


def test_shared_memory(tmp_path, monkeypatch):
    made = a_machine(tmp_path, gpus=driver(1))
    assert only(gpu.shared_memory, made).status == WARNING
    (tmp_path / "dev/shm").mkdir(parents=True)
    usage = shutil.disk_usage(tmp_path)
    for size, status in ((64 << 20, WARNING), (16 << 30, OK)):
        monkeypatch.setattr(gpu.shutil, "disk_usage",
                            lambda path, size=size: type(usage)(size, 0, size))
        assert only(gpu.shared_memory, made).status == status


def test_rdma_is_for_information(tmp_path):
    assert "nvidia-peermem not loaded" in only(gpu.rdma, a_machine(tmp_path)).text
    (tmp_path / "sys/module/nvidia_peermem").mkdir(parents=True)
    result = only(gpu.rdma, a_machine(tmp_path))
    assert result.status == OK and "nvidia-peermem loaded" in result.text


# -- self tests -------------------------------------------------------------------------------


def test_self_tests(tmp_path):
    asked = []

    def round_trip(*args):
        asked.append(args)
        return ROUND_TRIP

    for count in (1, 8):
        made = a_machine(tmp_path, gpus=driver(count), round_trip=round_trip)
        assert only(selftest.cpu, made).status == only(selftest.gpu, made).status == OK
    assert asked == [("emu", 2), ("cuda", 2), ("emu", 2), ("cuda", 8)]


@pytest.mark.parametrize("answer, says", [
    ({"mismatches": ["rank 0: recv_x row 1", "rank 1: x"]}, "recv_x row 1, and 1 more"),
    (child.ChildError("killed by SIGILL"), "killed by SIGILL")])
def test_a_self_test_that_fails_is_a_problem(tmp_path, answer, says):
    result = only(selftest.cpu, a_machine(tmp_path, round_trip=answer))
    assert result.status == PROBLEM and says in result.text


# -- children ---------------------------------------------------------------------------------


def test_a_child_answers_with_a_document():
    assert child.ask("round_trip", "emu", 2, limit_s=60)["mismatches"] == []


def test_a_child_that_hangs_is_ended(monkeypatch, tmp_path):
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nexec sleep 60\n")
    script.chmod(0o755)
    monkeypatch.setattr(child.sys, "executable", str(script))
    began = time.monotonic()
    with pytest.raises(child.ChildError, match="no answer within 0.2 s"):
        child.ask("gpus", limit_s=0.2)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("body, says", [
    ("kill -SEGV $$", "killed by SIGSEGV"), ("echo no driver >&2; exit 3", "no driver"),
    ("exit 4", "exit code 4")])
def test_a_child_that_fails_says_why(monkeypatch, tmp_path, body, says):
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    monkeypatch.setattr(child.sys, "executable", str(script))
    with pytest.raises(child.ChildError, match=says):
        child.ask("gpus", limit_s=60)


def test_errors_of_the_package_are_one_line_of_the_child():
    with pytest.raises(child.ChildError, match="^num_ranks: must|^ValueError: num_ranks: must"):
        child.ask("round_trip", "emu", 65, limit_s=60)


# -- a driver that can only be asked ----------------------------------------------------------


@pytest.fixture(scope="module")
def fake_driver(tmp_path_factory):
    """A folder with a libcuda.so.1 of ours."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("driver")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "libcuda.so.1",
                    ROOT / "tests/fake_libcuda.c"], check=True)
    return folder


@pytest.fixture
def fake(fake_driver, clean):
    def ask(**settings):
        clean.setenv("LD_LIBRARY_PATH", str(fake_driver))
        for name, value in settings.items():
            clean.setenv(f"FAKE_{name.upper()}", str(value))
        return child.ask("gpus", limit_s=60)
    return ask


def test_the_driver_is_asked(fake):
    found = fake(gpus=2)
    assert (found["version"], found["least"], found["why"]) == (13000, 12040, None)
    assert found["gpus"] == [{"name": "Fake H100", "arch": 90, "memory": 80 << 30}] * 2
    assert found["links"] == [
        {"from": 0, "to": 1, "access": True, "atomics": True, "rank": 0},
        {"from": 1, "to": 0, "access": True, "atomics": True, "rank": 0}]


def test_gpus_over_pcie(fake):
    assert not any(link["atomics"] for link in fake(gpus=3, nvlink=0)["links"])


def test_gpus_that_do_not_reach_each_other(fake):
    assert not any(link["access"] for link in fake(gpus=2, peers=0)["links"])


def test_a_driver_without_gpus(fake):
    found = fake(gpus=0)
    assert (found["why"], found["gpus"]) == ("the driver shows no GPU", [])


def test_gpus_that_cannot_run_are_problems(fake, capsys):
    fake(gpus=2)
    assert cli.main(["doctor", "--json"]) == 1
    found = {check["check"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert found["driver"]["status"] == found["peers"]["status"] == found["nvlink"]["status"] == OK
    for name in ("ipc", "gpu self test"):
        assert found[name]["status"] == PROBLEM
        assert "the cuda executor cannot use GPU 0: cuDevicePrimaryCtxRetain" in found[name]["text"]


def test_a_driver_that_hangs(fake, clean):
    fake(gpus=1)
    clean.setenv("FAKE_HANG", "1")
    with pytest.raises(child.ChildError, match="no answer within 2 s"):
        child.ask("gpus", limit_s=2)
