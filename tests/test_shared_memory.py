# SPDX-License-Identifier: MIT
"""Devices whose CTAs can have less shared memory than an H100's."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deepep_ptx import Buffer, _emu, run_ranks, runtime, select
from deepep_ptx._limits import MIN_STAGES
from deepep_ptx.errors import RankError
from deepep_ptx.toolchain import params, variants
from tests.test_roundtrip import PLAIN, assert_round_trip, make_inputs

ROOT = Path(__file__).resolve().parents[1]
SM_120 = 99 << 10           # bytes, as the driver says for sm_86, sm_89 and sm_120
R = PLAIN["num_ranks"]


@pytest.fixture
def small(monkeypatch):
    """Ranks run on GPUs of 99 KiB a CTA."""
    monkeypatch.setattr(runtime, "World", functools.partial(_emu.World, cta_smem=SM_120))


def symbols(policy, **device):
    chosen = select.choose(policy, "sm_90", **device)
    return {kernel: row["symbol"] for kernel, row in chosen.items()}


def test_constants_are_those_of_the_kernels():
    constants = params.load(ROOT).constants
    assert variants.MIN_STAGES == MIN_STAGES == constants["EP_MIN_STAGES"]
    assert constants["EP_STAGE_EXTRA"] == variants.STAGE_EXTRA


def test_variants_that_take_more_are_not_chosen():
    assert symbols("fast", cta_smem=227 << 10, num_ranks=64) == symbols("fast")
    assert symbols("fast", cta_smem=SM_120, num_ranks=64) == symbols("ld_na")
    bulk = symbols("bulk", cta_smem=SM_120, num_ranks=8)      # wherever a kernel can have it
    assert bulk == symbols("ld_na") | {"dispatch": "ep_dispatch_bulk"}


def test_a_variant_takes_more_with_more_ranks():
    (row,) = (v for v in select.load_table()["variants"] if v["symbol"] == "ep_dispatch_bulk")
    least = variants.least_smem(row, 8)
    assert symbols("bulk", cta_smem=least, num_ranks=8)["dispatch"] == "ep_dispatch_bulk"
    with pytest.raises(ValueError, match=rf"^policy: 'bulk' has no variant for {least} bytes of "
                       rf"shared memory per CTA; ep_dispatch_bulk takes {least + 64}$"):
        symbols("bulk", cta_smem=least, num_ranks=9)


def test_what_is_asked_for_by_name_is_refused():
    with pytest.raises(ValueError, match=rf"^policy: 'ep_combine_bulk' has no variant for {SM_120} "
                       r"bytes of shared memory per CTA; ep_combine_bulk takes \d+$"):
        symbols("ep_combine_bulk", cta_smem=SM_120)
    with pytest.raises(ValueError, match=r"^arch: no variant of dispatch runs with 20000 bytes"):
        symbols("fast", cta_smem=20000)


@pytest.mark.parametrize("policy, dispatch", [(None, "ep_dispatch_vec_ld_na"),
                                              ("bulk", "ep_dispatch_bulk")])
def test_a_buffer_falls_back(small, policy, dispatch):
    def main(comm):
        with Buffer(comm, policy=policy) as buffer:
            return comm.executor.cta_smem, {k: v["symbol"] for k, v in buffer.variants.items()}

    for cta_smem, chosen in run_ranks(main, R, executor="emu"):
        assert cta_smem == SM_120
        assert chosen["dispatch"] == dispatch and chosen["combine"] == "ep_combine_vec_ld_na"


@pytest.mark.parametrize("policy", [None, "bulk"])
def test_round_trip(small, policy):
    case = PLAIN | {"policy": policy}
    assert_round_trip(case, [make_inputs(case, seed) for seed in range(2)])


def test_rings_are_as_large_as_the_device_has_room_for(small):
    """A stage that fits an H100 is refused here, by the call that would take it."""
    stage_bytes = (SM_120 - 33280 - 64 * R) // 8 // MIN_STAGES // 16 * 16 - 16

    def main(comm):
        with Buffer(comm, policy="bulk", stage_bytes=stage_bytes + 16) as buffer:
            idx = np.zeros((4, 1), np.int64)
            per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(idx, R)
            buffer.dispatch(np.ones((4, 8), np.float32), num_tokens_per_rank=per_rank,
                            is_token_in_rank=in_rank, num_tokens_per_expert=per_expert)

    with pytest.raises(RankError) as error:
        run_ranks(main, R, executor="emu")
    assert isinstance(error.value.__cause__, ValueError)
    assert str(error.value.__cause__) == (
        f"stage_bytes: must be a multiple of 16 in [16, {stage_bytes}] for ep_dispatch_bulk, got "
        f"{stage_bytes + 16}")


CUDA = """
from bench import null_gpu
null_gpu.load_driver()
from deepep_ptx import Buffer
from deepep_ptx._cuda import CudaExecutor
executor = CudaExecutor(0)
buffer = Buffer(null_gpu.Copies(1, executor), tuning=False)
print(executor.cta_smem, *(buffer.variants[kernel]["symbol"] for kernel in ("dispatch", "combine")))
"""


@pytest.mark.parametrize("cta_smem, combine", [(SM_120, "ep_combine_vec_ld_na"),
                                               (227 << 10, "ep_combine_bulk")])
def test_the_driver_is_asked(cta_smem, combine):
    environ = {name: value for name, value in os.environ.items()
               if name not in ("DEEPEP_PTX_POLICY", "DISABLE_AGGRESSIVE_PTX_INSTRS")}
    done = subprocess.run([sys.executable, "-c", CUDA], cwd=ROOT, capture_output=True, text=True,
                          timeout=100, env=environ | {"NULL_CTA_SMEM": str(cta_smem),
                                                      "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{cta_smem} ep_dispatch_vec_ld_na {combine}\n"
