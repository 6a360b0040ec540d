# SPDX-License-Identifier: MIT
"""What `child.ask` runs in another process; every function returns a plain document."""

import json
import sys

from deepep_ptx.cli.doctor.child import ChildError, ask
from deepep_ptx.errors import DeepEPError

_NUM_BYTES = 4096
_PATTERN = 0xA5


def main(name, *args):
    """Print what a function of this module returns, as the last line; one line on failure."""
    try:
        print(json.dumps(globals()[name](*args)))
    except (DeepEPError, ChildError) as error:
        sys.exit(" ".join(str(error).split()))


def gpus():
    """What the driver says: its version and the least that will do, why no GPU is usable, each GPU,
    each ordered pair of them."""
    from deepep_ptx import _cuda

    count = _cuda.device_count()
    return {
        "version": _cuda.driver_version(),
        "least": _cuda.MIN_DRIVER,
        "why": _cuda.why_not(),
        "gpus": [_cuda.describe_device(i) for i in range(count)],
        "links": [{"from": i, "to": j, **_cuda.describe_link(i, j)}
                  for i in range(count) for j in range(count) if i != j],
    }


def round_trip(executor, num_ranks):
    """A small job through `Buffer`; the arrays that are not the reference's, in words."""
    from deepep_ptx.cli import demo

    report = demo.run(num_ranks=num_ranks, num_tokens=4, hidden=256, num_experts=2 * num_ranks,
                      num_groups=num_ranks, num_topk_groups=1, num_topk=2, policy="fast",
                      executor=executor)
    return {"mismatches": [str(mismatch) for mismatch in report.mismatches]}


def share(devices, limit_s):
    """Export memory of GPU 0, and ask another process which of `devices` read it right."""
    from deepep_ptx._cuda import CudaExecutor

    owner = CudaExecutor(0)
    address = owner.alloc(_NUM_BYTES)
    owner.fill(address, _PATTERN, _NUM_BYTES)
    return ask("read_shared", owner.export_memory(address).hex(), devices, limit_s=limit_s)


def read_shared(handle, devices):
    """device -> None, or what went wrong there, of memory that another process exported."""
    from deepep_ptx._cuda import CudaExecutor

    found = {}
    for device in devices:
        try:
            reader = CudaExecutor(device)
            address = reader.import_memory(bytes.fromhex(handle))
            wrong = (reader.read(address, _NUM_BYTES) != _PATTERN).any()
            reader.release_memory(address)
            found[device] = "other bytes arrive" if wrong else None
        except DeepEPError as error:
            found[device] = str(error)
    return found
