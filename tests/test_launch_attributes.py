# SPDX-License-Identifier: MIT
"""What launches ask of the executor beside a grid and its stream, and the event of a call's start;
of the driver with one that does nothing."""

import json
import subprocess
import sys
from pathlib import Path

from deepep_ptx import Buffer, run_ranks
from tests.test_buffer_life import dispatch, tokens

ROOT = Path(__file__).resolve().parent.parent

SCRIPT = """
import ctypes
import json
import sys

import numpy as np

sys.path.insert(0, "bench")
import null_gpu

calls = null_gpu.load_driver()
driver = ctypes.CDLL("libcuda.so.1")

from deepep_ptx import Buffer, EventHandle
from deepep_ptx._cuda import CudaExecutor
from deepep_ptx.arrays import BFLOAT16
from tests.array_libraries import DeviceArrays

COOPERATIVE, LAUNCH_COMPLETION_EVENT = 2, 12       # of CUlaunchAttributeID
STREAM = 0x1000
T, H, K, E = 4, 16, 2, 4

executor = CudaExecutor(0)
arrays = DeviceArrays(executor)
x, idx, weights = (arrays.give(np.zeros(shape, dtype)) for shape, dtype in (
    ((T, H), BFLOAT16), ((T, K), np.int64), ((T, K), np.float32)))


def attributes():
    # Name -> value, of the newest launch.
    value = ctypes.c_uint64()
    made = {}
    if driver.null_attribute(COOPERATIVE, ctypes.byref(value)):
        made["cooperative"] = value.value & 0xFFFFFFFF
    if driver.null_attribute(LAUNCH_COMPLETION_EVENT, ctypes.byref(value)):
        made["started"] = value.value
    return made


def found(event):
    # Attributes of the newest launch, and whether a wait for the start of its call is one for the
    # event that it had, on the caller's stream.
    made = attributes()
    stream, waited = ctypes.c_void_p(), ctypes.c_void_p()
    before = calls()["cuStreamWaitEvent"]
    event.current_stream_wait_start()
    if calls()["cuStreamWaitEvent"] > before:
        driver.null_waited(ctypes.byref(stream), ctypes.byref(waited))
        made["waits"] = (stream.value, waited.value) == (STREAM, made.get("started"))
    if "started" in made:
        made["started"] = made["started"] != 0
    return made


def of_calls(buffer, **how):
    # Of a layout, a cached dispatch and a combine.
    how["stream"] = STREAM
    per_rank, _, per_expert, in_rank, event = buffer.get_dispatch_layout(idx, E, **how)
    layout = found(event)
    recv_x, _, _, _, handle, _ = buffer.dispatch(
        x, num_worst_tokens=T, num_tokens_per_rank=per_rank, is_token_in_rank=in_rank,
        num_tokens_per_expert=per_expert, topk_idx=idx, topk_weights=weights, stream=STREAM)
    again = buffer.dispatch(x, handle=handle, **how)[-1]
    sent = found(again)
    return layout, sent, found(buffer.combine(recv_x, handle, **how)[-1])


result = {}
with Buffer(null_gpu.Copies(1, executor), 1 << 20, zero_copy=True) as buffer:
    result["plain"] = of_calls(buffer)
    result["async"] = of_calls(buffer, async_finish=True)
    before = calls()["cuEventCreate"]
    for _ in range(10):
        of_calls(buffer)
    result["made"] = calls()["cuEventCreate"] - before
    with Buffer(null_gpu.Copies(1, executor), 1 << 20, zero_copy=True) as other:
        Buffer.set_num_sms(other._max_sms)
        of_calls(other)
        result["crowded"] = of_calls(buffer)
        result["crowded async"] = of_calls(buffer, async_finish=True)
waits = calls()["cuStreamWaitEvent"]
EventHandle().current_stream_wait_start()
result["of the host's"] = calls()["cuStreamWaitEvent"] - waits
print(json.dumps(result))
"""


def test_attributes_reach_the_driver():
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, timeout=100,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    start, cooperative = {"started": True, "waits": True}, {"cooperative": 1}
    assert result["plain"] == [{}, {}, {}]
    assert result["async"] == [{}, start, start]
    assert result["made"] == 0
    assert result["crowded"] == [{}, cooperative, cooperative]
    assert result["crowded async"] == [{}, cooperative | start, cooperative | start]
    assert result["of the host's"] == 0


def test_on_the_cpu_executor_nobody_waits_for_a_start():
    def main(comm):
        with Buffer(comm) as buffer:
            x, idx, weights = tokens(comm.rank)
            handle = dispatch(buffer, x, idx, weights)[4]
            _, _, _, _, _, event = buffer.dispatch(x, handle=handle, async_finish=True)
            started = buffer._in_flight[-1].started
            event.current_stream_wait_start()
            assert not started.done
            event.current_stream_wait()
            assert started.done                     # or later: with the end
            event.current_stream_wait_start()

    run_ranks(main, 2, executor="emu")
