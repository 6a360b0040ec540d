# SPDX-License-Identifier: MIT
"""`EventOverlap` by itself, and which events a call starts after."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deepep_ptx import Buffer, EventHandle, EventOverlap, run_ranks
from deepep_ptx.arguments import event_of
from tests.array_libraries import PretendGpu

ROOT = Path(__file__).resolve().parent.parent


class Waits:
    """In place of an `EventHandle`: counts."""

    def __init__(self, order):
        self.order = order

    def current_stream_wait(self):
        self.order.append("wait")


class Wrapper:
    """What a consumer wraps an event in."""

    def __init__(self, event):
        self.event = event


# -- waiting ----------------------------------------------------------------------------------

def test_a_wait_keeps_what_the_event_holds():
    order, tensors = [], (np.zeros(1),)
    event = EventOverlap(Waits(order), tensors)
    for _ in range(2):
        event.current_stream_wait()
    assert order == ["wait"] * 2 and event.extra_tensors is tensors and event.event is not None


@pytest.mark.parametrize("how", ["call", "keyword", "with"])
def test_a_wait_that_releases(how):
    order = []
    event = EventOverlap(Waits(order), (np.zeros(1),))
    if how == "call":
        event.current_stream_wait(True)
    elif how == "keyword":
        event.current_stream_wait(release_handle=True)
    else:
        with event(release_handle=True) as entered:
            assert entered is event and order == [] and event.extra_tensors is not None
    assert order == ["wait"] and event.event is None and event.extra_tensors is None
    event.current_stream_wait(release_handle=True)
    assert order == ["wait"]


def test_called_without_arguments_a_block_releases_nothing():
    order = []
    event = EventOverlap(Waits(order), ())
    with event() as entered:
        assert entered is event
    assert order == ["wait"] and event.event is not None and event.extra_tensors == ()


def test_a_block_that_fails_waits_too():
    order = []
    with pytest.raises(KeyError), EventOverlap(Waits(order)):
        raise KeyError
    assert order == ["wait"]


@pytest.mark.parametrize("how", ["constructor", "register"])
def test_the_hook_runs_once_behind_the_wait(how):
    order = []

    def hook():
        order.append(f"hook, holding {event.extra_tensors}")

    event = EventOverlap(Waits(order), "tensors", *([hook] if how == "constructor" else []))
    if how == "register":
        event.register_hook_after_wait(hook)
    assert event.hook_after_wait is hook
    event.current_stream_wait(release_handle=True)
    event.current_stream_wait()
    assert order == ["wait", "hook, holding tensors"] and event.hook_after_wait is None


def test_a_hook_without_an_event():
    """A call that has waited by itself: its hook runs where the caller would wait."""
    order = []
    event = EventOverlap()
    event.register_hook_after_wait(lambda: order.append("hook"))
    with event:
        assert order == []
    event.current_stream_wait()
    assert order == ["hook"]


def test_hooks_that_are_refused():
    event = EventOverlap(hook_after_wait=list)
    with pytest.raises(ValueError, match="^hook: must be one at a time"):
        event.register_hook_after_wait(list)
    for refused in (lambda hook: EventOverlap(None, None, hook),
                    EventOverlap().register_hook_after_wait):
        with pytest.raises(TypeError, match="^hook: must be a function without arguments, got int"):
            refused(3)


# -- previous_event ---------------------------------------------------------------------------

def test_whose_event_it_is():
    """Ours inside an object of another class; nothing inside is as no event."""
    def main(comm):
        executor = PretendGpu.of(comm).executor
        handle = EventHandle()
        handle._event = marker = object.__new__(Marker)
        for previous in (handle, EventOverlap(handle), Wrapper(handle)):
            assert event_of(previous, executor) is marker
        for previous in (None, EventOverlap(), Wrapper(None), EventHandle(), Torch(0),
                         Wrapper(Torch(0))):
            assert event_of(previous, executor) is None
        for previous in (Torch(0x77), Wrapper(Torch(0x77)), EventOverlap(Torch(0x77))):
            assert event_of(previous, executor).executor_name == "cuda"
        for previous in (3, "event", EventHandle, Torch, Wrapper(3), Wrapper(EventOverlap()),
                         Torch("event"), np.zeros(2)):
            with pytest.raises(TypeError, match="^previous_event: must be None, an EventOverlap or "
                                                "an EventHandle, an event with cuda_event"):
                event_of(previous, executor)

    run_ranks(main, 1, executor="emu")


class Marker:
    executor_name = "cuda"


class Torch:
    """What counts of a `torch.cuda.Event`; 0 before it is recorded."""

    def __init__(self, number):
        self.cuda_event = number


def test_a_call_behind_a_wrapped_event():
    def main(comm):
        idx = np.zeros((4, 1), np.int64)
        with Buffer(comm) as buffer:
            *_, event = buffer.get_dispatch_layout(idx, 4, async_finish=True)
            *_, event = buffer.get_dispatch_layout(
                idx, 4, previous_event=Wrapper(event.event), async_finish=True,
                allocate_on_comm_stream=True)
            event.current_stream_wait(release_handle=True)
            assert event.event is None

    run_ranks(main, 2, executor="emu")


SCRIPT = """
import json, sys
import numpy as np
sys.path[:0] = ["bench", "."]
import null_gpu
calls_made = null_gpu.load_driver()
from deepep_ptx import Buffer
from deepep_ptx._cuda import CudaExecutor
from tests.array_libraries import DeviceArrays
from tests.test_event_overlap import Torch, Wrapper

executor = CudaExecutor(0)
idx = DeviceArrays(executor).give(np.zeros((4, 2), np.int64))
idx.stream = 0x1000
buffer = Buffer(null_gpu.Copies(1, executor), 1 << 20)

def driver_calls(previous):
    before = calls_made()
    event = buffer.get_dispatch_layout(idx, 4, previous_event=previous, async_finish=True,
                                       stream=0x1000)[-1]
    after = calls_made()
    del event
    return {name: after[name] - before.get(name, 0) for name in after
            if name.startswith(("cuEventR", "cuStreamW", "cuLaunch"))}

driver_calls(None)
print(json.dumps([driver_calls(None), driver_calls(Torch(0x77)), driver_calls(Wrapper(Torch(0x77))),
                  driver_calls(None)]))
"""


def test_an_event_of_torch_is_waited_for_and_not_destroyed():
    """It takes the place of a record on the caller's stream.  (This driver frees what is destroyed,
    and would crash.)"""
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True,
                          timeout=100)
    assert done.returncode == 0, done.stderr[-3000:]
    plain, torch, wrapped, again = json.loads(done.stdout)
    assert torch == wrapped == plain | {"cuEventRecord": plain["cuEventRecord"] - 1}
    assert again == plain
