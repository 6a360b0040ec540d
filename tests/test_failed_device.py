# SPDX-License-Identifier: MIT
"""What calls say of a device that has failed, and what the end of a result asks of the driver: with
one that does nothing, until it is told to fail."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

SCRIPT = """
import ctypes
import json
import sys

import numpy as np

sys.path.insert(0, "bench")
import null_gpu

calls_made = null_gpu.load_driver()
fail_after = ctypes.CDLL("libcuda.so.1").null_break
fail_after.argtypes = ctypes.c_int, ctypes.c_uint64

from deepep_ptx import Buffer
from deepep_ptx._cuda import CudaExecutor, TimedEvent
from deepep_ptx._executor import Event
from deepep_ptx.arrays import BFLOAT16
from deepep_ptx.errors import DeepEPError
from tests.array_libraries import DeviceArrays

T, H, K, E = 4, 16, 2, 4
executor = CudaExecutor(0)
arrays = DeviceArrays(executor)


class Calls:
    def __init__(self, stream):
        def give(array):
            given = arrays.give(array)
            given.stream = stream
            return given

        self.buffer = buffer = Buffer(null_gpu.Copies(1, executor), 1 << 20)
        x, idx = give(np.zeros((T, H), BFLOAT16)), give(np.zeros((T, K), np.int64))
        per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(idx, E, stream=stream)
        layout = {"num_tokens_per_rank": per_rank, "is_token_in_rank": in_rank,
                  "num_tokens_per_expert": per_expert, "topk_idx": idx, "stream": stream,
                  "topk_weights": give(np.zeros((T, K), np.float32))}
        recv_x, _, _, _, handle, _ = buffer.dispatch(x, num_worst_tokens=T, **layout)
        self.by_name = {
            "layout": lambda: buffer.get_dispatch_layout(idx, E, stream=stream),
            "dispatch": lambda: buffer.dispatch(x, num_worst_tokens=T, **layout),
            "cached": lambda: buffer.dispatch(x, handle=handle, stream=stream),
            "combine": lambda: buffer.combine(recv_x, handle, stream=stream),
            "waiting": lambda: buffer.dispatch(x, **layout),
        }


def failures(name, stream, code):
    # [text, whether the buffer is aborted] of a call, by how much of its work is taken.
    found = []
    while True:
        calls = Calls(stream)
        fail_after(code, len(found))
        try:
            calls.by_name[name]()
            return found
        except DeepEPError as error:
            found.append([str(error), calls.buffer._core.is_aborted])
        finally:
            fail_after(0, 0)
        if name == "waiting" and len(found) == 5:
            return found            # streams are busy until the device breaks


def counts(stream):
    # By function, of the end of a result.
    calls = Calls(stream)
    kept = calls.by_name["cached"]()
    before = calls_made()
    del kept
    after = calls_made()
    return {function: after[function] - before[function] for function in after
            if after[function] != before[function]}


def idle_events():
    # cuEventCreate and cuEventDestroy of an event that keeps its time, then of two others.
    found = []
    for kind in TimedEvent, Event, Event:
        before = calls_made()
        kind(executor)
        after = calls_made()
        found.append([after[name] - before[name] for name in ("cuEventCreate", "cuEventDestroy")])
    return found


print(json.dumps(eval(sys.argv[1])))
"""


def in_script(expression):
    done = subprocess.run([sys.executable, "-c", SCRIPT, expression], cwd=ROOT, timeout=100,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


BROKEN, OTHER = 700, 400        # an illegal address breaks the context, an invalid handle does not
CALLERS = "an earlier kernel or copy of the caller on GPU 0 failed: error 700; nothing was launched"
WAIT = ["cuEventRecord", "cuStreamWaitEvent"]      # of one stream for another


@pytest.mark.parametrize("stream", [0, 0x1000])
@pytest.mark.parametrize("name", ["layout", "dispatch", "cached", "combine"])
def test_whose_failure_it_is(name, stream):
    """The caller's, as long as the call has launched nothing; then no rank hears of it but by a
    launch that failed."""
    before = [*(["cuStreamGetCaptureInfo"] if stream else []), *WAIT]
    # Behind the launch of a collective call: that of the copy for its handle, and the abort's,
    # which fails as well.
    end = WAIT if name == "layout" else ["cuLaunchKernelEx"] * (3 if name == "dispatch" else 2)
    functions = [*before, "cuLaunchKernelEx", *end]
    broken = in_script(f"failures({name!r}, {stream}, {BROKEN})")
    assert [text for text, _ in broken] == (
        [CALLERS] * (len(before) + 1) + [f"{function}: error 700 (error 700)" for function in end])
    other = in_script(f"failures({name!r}, {stream}, {OTHER})")
    assert [text for text, _ in other] == [f"{function}: error 400 (error 400)"
                                           for function in functions]
    aborted = [name != "layout" and i >= len(before) for i in range(len(functions))]
    assert [is_aborted for _, is_aborted in broken] == aborted
    assert [is_aborted for _, is_aborted in other] == aborted


def test_a_call_that_looks_back_at_earlier_ones():
    """What fails while it waits for them may be one of them."""
    found = in_script(f"failures('waiting', 0x1000, {BROKEN})")
    # Whether it is captured, and whether the buffer's stream is; then whether they are over.
    assert found[:3] == [[CALLERS, False]] * 3
    assert found[3:] == [["cuStreamQuery: error 700 (error 700)", False]] * 2


@pytest.mark.parametrize(("stream", "lasting"), [(0, True), (0x1000, False)])
def test_the_end_of_a_result(stream, lasting):
    """Where the next call's stream may be another one by the same number, it waits at once."""
    made = in_script(f"counts({stream})")
    for cheap in ("cuCtxGetCurrent", "cuThreadExchangeStreamCaptureMode"):
        made.pop(cheap, 0)
    assert made.pop("cuEventRecord") == 1
    assert made == ({} if lasting else {"cuStreamWaitEvent": 1, "cuStreamGetCaptureInfo": 2})


def test_events_that_are_given_out_again():
    """Not those that keep their time, which nobody else needs."""
    assert in_script("idle_events()") == [[1, 1], [1, 0], [0, 0]]
