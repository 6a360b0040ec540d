# SPDX-License-Identifier: MIT
"""A dispatch whose arrays are memory of cuda.core's, on a stream of its own: torch and CuPy
are not needed."""

import numpy as np
import pytest

from deepep_ptx import Buffer, reference, run_ranks
from deepep_ptx.arrays import DeviceArray
from tests.gpu.cuda_core import core_stream, need_cuda_core, on_gpu

pytestmark = pytest.mark.gpu

R, T, H, K, E = 2, 24, 64, 3, 8


def inputs():
    """x int32, topk_idx int64 and topk_weights float32 of every rank, in three lists."""
    rng = np.random.default_rng(3)
    return ([rng.integers(0, 1 << 30, (T, H), dtype=np.int32) for _ in range(R)],
            [np.argsort(rng.random((T, E)))[:, :K].copy() for _ in range(R)],
            [rng.random((T, K), dtype=np.float32) for _ in range(R)])


def test_a_dispatch():
    need_cuda_core()
    utils = pytest.importorskip("cuda.core.utils")
    if not hasattr(utils.StridedMemoryView, "from_buffer"):
        pytest.skip("this cuda.core has no views of its memory")
    given = inputs()

    def main(comm):
        stream = core_stream(comm.executor)
        x, idx, weights = (on_gpu(stream, arrays[comm.rank]) for arrays in given)
        comm.barrier()          # what a rank allocates may wait for its GPU, and so for a kernel
        with Buffer(comm) as buffer:
            per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(idx, E, stream=stream)
            recv_x, recv_idx, recv_weights, _, _, _ = buffer.dispatch(
                x, num_tokens_per_rank=per_rank, is_token_in_rank=in_rank,
                num_tokens_per_expert=per_expert, topk_idx=idx, topk_weights=weights,
                stream=stream)
            assert type(recv_x) is DeviceArray
            shown = utils.StridedMemoryView.from_any_interface(
                recv_x, stream_ptr=int(stream.handle))
            assert (shown.ptr, shown.shape, shown.dtype) == (recv_x.address, recv_x.shape, np.int32)
            comm.barrier()
            return [array.numpy() for array in (recv_x, recv_idx, recv_weights)]

    wants = reference.dispatch(*given, E)
    for got, want in zip(run_ranks(main, R, executor="cuda", timeout_s=60.0), wants, strict=True):
        for array, name in zip(got, ("recv_x", "recv_topk_idx", "recv_topk_weights"), strict=True):
            np.testing.assert_array_equal(array, getattr(want, name), err_msg=name)
