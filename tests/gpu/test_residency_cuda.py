# SPDX-License-Identifier: MIT
"""Calls of several buffers that do not fit on a GPU side by side: they finish, or reach their time
limit; none hangs."""

import pytest

torch = pytest.importorskip("torch")

from deepep_ptx import Buffer, run_ranks  # noqa: E402
from deepep_ptx._cuda import device_count  # noqa: E402
from deepep_ptx.errors import DeepEPTimeoutError  # noqa: E402
from tests.gpu.test_async_cuda import SLEEP, layout_of, make  # noqa: E402
from tests.test_residency import HINT  # noqa: E402

LIMIT_S = 1.0
BUFFERS = 4                         # each with all of the GPU that its rank can have


class Side:
    """A buffer, the stream of its calls, and a call that takes all the SMs that it may have."""

    def __init__(self, comm, stream):
        self.buffer = Buffer(comm, timeout_s=LIMIT_S)
        self.stream = stream
        self.x, self.idx, self.weights = make(comm.rank)
        with torch.cuda.stream(self.stream):
            self.layout, _ = layout_of(self.buffer, self.idx)
        self.worst = comm.size * len(self.x)

    def call(self):
        most = self.buffer._max_sms
        with torch.cuda.stream(self.stream):
            recv_x, *_, handle, _ = self.buffer.dispatch(
                self.x, **self.layout, topk_idx=self.idx, topk_weights=self.weights,
                num_worst_tokens=self.worst, num_sms=most)
            return self.buffer.combine(recv_x, handle, num_sms=most)[0]

    def is_right(self, out):
        self.stream.synchronize()
        copies = self.layout["is_token_in_rank"].sum(1, keepdim=True)
        return torch.equal(out.float(), copies * self.x.float())


@pytest.mark.parametrize("order", ["one stream", "same order", "crossed"])
def test_more_ctas_than_the_gpu_holds(order):
    # Streams that wait for one event start in an order of the GPU's, also where all ranks have
    # queued their calls in the same one, and ranks that share a GPU race for its SMs.  Only calls
    # on one stream never overlap.
    def main(comm):
        torch.cuda.set_device(comm.executor.device)
        shared = torch.cuda.Stream()
        sides = [Side(comm, shared if order == "one stream" else torch.cuda.Stream())
                 for _ in range(BUFFERS)]
        assert all(side.is_right(side.call()) for side in sides)
        assert sides[-1].buffer._core.is_crowded
        failed = set()
        for _ in range(10):
            comm.barrier()
            torch.cuda._sleep(SLEEP // 10)
            start = torch.cuda.current_stream().record_event()
            begun = []
            for side in sides[::-1] if order == "crossed" and comm.rank else sides:
                if side not in failed:
                    side.stream.wait_event(start)
                    begun.append((side, side.call()))
            for side, out in begun:
                try:
                    side.buffer.check()
                    assert side.is_right(out)
                except DeepEPTimeoutError as error:
                    assert HINT in str(error)
                    failed.add(side)
        numbers = [i for i, side in enumerate(sides) if side in failed]
        everybody = comm.allgather(numbers)
        assert all(others == numbers for others in everybody), "they fail on all ranks, or on none"
        assert order != "one stream" or not numbers
        for i in numbers:
            sides[i].buffer.reset()
        assert all(side.is_right(side.call()) for side in sides)
        for side in sides:
            side.buffer.destroy()
        return len(numbers)

    run_ranks(main, 2, executor="cuda", devices=[0, min(1, device_count() - 1)])
