# SPDX-License-Identifier: MIT
"""The table of the public API, and round trips with the text for sm_80, on GPUs.

Two ranks with a GPU each where there are two, else on the same one.
"""

import pytest

torch = pytest.importorskip("torch")

from deepep_ptx import run_ranks  # noqa: E402
from deepep_ptx._cuda import device_count  # noqa: E402
from tests.api_shapes import SHAPES, job_of, round_trip  # noqa: E402
from tests.api_table import groups, run_group  # noqa: E402
from tests.gpu.cuda_core import need_cuda_core  # noqa: E402
from tests.gpu.libraries import (  # noqa: E402
    CoreGpu,
    CuPyGpu,
    DeviceGpu,
    NumPyGpu,
    TorchGpu,
    need_cupy,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]

R = 2
LIBRARIES = [TorchGpu, CuPyGpu, DeviceGpu, NumPyGpu, CoreGpu]


def on_gpus(main, library, **run):
    """main(comm) on ranks; with CuPy on as many as there are GPUs, since its allocations may wait
    for a device on which another rank's kernel waits for this one."""
    num_ranks = R
    if library is CuPyGpu:
        need_cupy()
        num_ranks = min(R, device_count())
    if library is CoreGpu:
        need_cuda_core()

    def rank_main(comm):
        torch.cuda.set_device(comm.executor.device)
        main(comm)

    run_ranks(rank_main, num_ranks, executor="cuda", timeout_s=60.0, **run)


@pytest.mark.parametrize(("library", "group"), [
    pytest.param(library, group, id=f"{library.__name__}-{group}")
    for library in LIBRARIES for group in groups(library in (DeviceGpu, CoreGpu))])
def test_rows(library, group):
    on_gpus(lambda comm: run_group(comm, library, group), library)


@pytest.mark.parametrize("library", [TorchGpu, NumPyGpu], ids=lambda library: library.__name__)
def test_sm_80(library):
    """All shapes in one run."""
    for shape in SHAPES:
        job_of(shape)

    def main(comm):
        for shape in SHAPES:
            try:
                round_trip(comm, library, shape)
            except BaseException as error:
                error.add_note(str(shape))
                raise

    on_gpus(main, library, arch="sm_80")
