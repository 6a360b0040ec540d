# SPDX-License-Identifier: MIT
"""Files that anybody may edit, damaged by seed: a reader takes them, or raises its own error, which
names the file, and nothing else."""

import json
import shutil
import tomllib

import numpy as np
import pytest

from deepep_ptx import rendered, select
from deepep_ptx.cli.demo import jobfile
from deepep_ptx.cli.tune.state import State
from deepep_ptx.errors import DeepEPError, TuningError
from deepep_ptx.toolchain import lock, params, render, variants
from deepep_ptx.toolchain.errors import ToolchainError
from deepep_ptx.tuning import Entry, Header, load, save
from tests.fuzz.files import damaged, damaged_npz
from tests.weakened import ROOT

RUNS = 150
SEEDS = range(4)
HEADER = Header("0.1.0", "NVIDIA H100 80GB HBM3", 2, 1, "2026-11-24", "580", 0, {"hidden": 7168})
ENTRIES = [Entry(op, 2, tokens, 16384, 16, "bulk", {"stages": 2}, 105.5)
           for op in ("dispatch", "combine_pull") for tokens in (64, 4096)]


def check_all(seed, path, whole, read, error, damage=damaged):
    """`read` of RUNS damaged versions of a file's bytes; some are refused, or nothing is tested."""
    rng, refused = np.random.default_rng(seed), 0
    path.write_bytes(whole)
    read()
    for run in range(RUNS):
        data = damage(rng, whole)
        path.write_bytes(data)
        try:
            read()
        except error as found:
            refused += 1
            text = str(found)
            assert path.name in text, text
            text.encode()
        except Exception as found:
            kept = path.with_name(f"{path.name}.{seed}.{run}")
            shutil.copy(path, kept)
            raise AssertionError(f"{type(found).__name__} of {kept}: {found}") from found
    assert refused > RUNS // 10


@pytest.mark.parametrize("seed", SEEDS)
def test_tuning_files(seed, tmp_path):
    path = tmp_path / "h100.json"
    save(path, HEADER, ENTRIES)

    def read():
        load(path).check(HEADER.gpu, 2, "sm_90")

    check_all(seed, path, path.read_bytes(), read, TuningError)


@pytest.mark.parametrize("seed", SEEDS)
def test_states_of_tune(seed, tmp_path):
    class Plan:
        def document(self):
            return {"gpu": "x", "cases": ["dispatch bf16, 64 tokens"]}

    path = tmp_path / "h100.json.state"
    whole = json.dumps({"plan": Plan().document(), "finished": {"a": {"winner": 1}}}, indent=1)
    check_all(seed, path, whole.encode(), lambda: State.begin(path, Plan(), True), ValueError)


@pytest.mark.parametrize("seed", SEEDS)
def test_job_files(seed, tmp_path):
    rng = np.random.default_rng(seed)
    path = tmp_path / "job.npz"
    np.savez(path, x=rng.integers(0, 9, (5, 16), np.uint16), dtype="bfloat16",
             topk_idx=rng.integers(-1, 4, (5, 2)), topk_weights=rng.random((5, 2), np.float32),
             num_tokens=[2, 3], num_experts=4)
    check_all(seed, path, path.read_bytes(), lambda: jobfile.load(path), ValueError, damaged_npz)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_lock(seed, tmp_path):
    root = tmp_path
    path = root / lock.LOCK
    path.parent.mkdir()
    text = (ROOT / lock.LOCK).read_text().splitlines(keepends=True)
    whole = "".join(text[:3] + [line for line in text if line.startswith("[")
                                or line.startswith("ep_abort") or not line.strip()])
    tomllib.loads(whole)
    check_all(seed, path, whole.encode(), lambda: lock.ship(root), ToolchainError)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_table_of_variants(seed, tmp_path):
    layout = params.load(ROOT)
    path = tmp_path / variants.TABLE
    path.parent.mkdir()
    check_all(seed, path, (ROOT / variants.TABLE).read_bytes(),
              lambda: variants.load(tmp_path, layout), ToolchainError)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_index_of_the_package(seed, tmp_path, monkeypatch):
    """What passes its check can be used: a policy is chosen on both targets, or refused."""
    path = tmp_path / render.INDEX
    document = json.loads((ROOT / render.OUTPUT / render.INDEX).read_text())
    kernels = {row["kernel"]: row for row in document["variants"]}
    document["variants"] = list(kernels.values())       # less to read, and to damage
    monkeypatch.setattr(select, "rendered", lambda: tmp_path)

    def read():
        select.load_table.cache_clear()
        table = select.load_table()
        for policy in ("fast", "aggressive", "bulk"):
            try:
                select.choose(policy, "sm_90", table)
            except ValueError as error:
                assert str(error).startswith(("policy: ", "arch: ")), error

    check_all(seed, path, json.dumps(document, indent=1).encode(), read, DeepEPError)
    select.load_table.cache_clear()


@pytest.mark.parametrize("seed", SEEDS)
def test_the_figures_of_the_package(seed, tmp_path):
    path = tmp_path / lock.FIGURES
    document = json.loads((ROOT / render.OUTPUT / lock.FIGURES).read_text())
    document["variants"] = dict(list(document["variants"].items())[:3])
    check_all(seed, path, json.dumps(document, indent=1).encode(),
              lambda: select.whole(rendered.read_figures, path), DeepEPError)
