# SPDX-License-Identifier: MIT
"""Whether the calls of a process's buffers fit on a GPU side by side."""

import pytest

from deepep_ptx import Buffer, run_ranks
from deepep_ptx.errors import DeepEPTimeoutError
from tests.test_buffer_life import dispatch, raised, tokens

HINT = "calls of this process's buffers do not fit on the GPU side by side"


def crowded(buffer):
    return buffer._core.is_crowded


def call(buffer, num_sms):
    dispatch(buffer, *tokens(buffer.rank), num_sms=num_sms)
    return crowded(buffer)


def test_the_largest_calls_of_all_buffers_count():
    def main(comm):
        with Buffer(comm) as a, Buffer(comm) as b, Buffer(comm) as c:
            most = a._max_sms
            assert not call(a, most), "one fits"
            assert not call(a, 1)
            assert call(b, 1), "beside all that the other has had"
            assert call(a, 1)
            assert call(c, 1)

    run_ranks(main, 2, executor="emu")


def test_buffers_fit_that_share_the_gpu():
    def main(comm):
        with Buffer(comm) as a, Buffer(comm) as b:
            half = a._max_sms // 2
            assert not call(a, half) and not call(b, half) and not call(a, 1)
            assert call(b, half + 1) and call(a, 1)

    run_ranks(main, 2, executor="emu")


@pytest.mark.parametrize("end", ["destroy", "drop", "leave"])
def test_a_buffer_that_is_gone_takes_nothing(end):
    def main(comm):
        a, b = Buffer(comm), Buffer(comm)
        assert not call(a, a._max_sms) and call(b, 1)
        if end == "destroy":
            a.destroy()
        elif end == "leave":
            a._leave()
        del a
        assert not call(b, 1)
        b.destroy()

    run_ranks(main, 1, executor="emu")


def test_a_limit_reached_on_a_crowded_gpu_says_what_may_be_wrong():
    def main(comm):
        with Buffer(comm, timeout_s=1e-4) as a, Buffer(comm, timeout_s=1e-4) as b:
            for buffer, hint in ((a, False), (b, True)):
                call(buffer, buffer._max_sms)
                if comm.rank == 0:
                    error = raised(dispatch, buffer, *tokens(0))
                    assert isinstance(error, DeepEPTimeoutError)
                    assert (HINT in str(error)) == hint, error
                buffer.reset()

    run_ranks(main, 2, executor="emu")
