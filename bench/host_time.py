#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What a call costs the host: how long each call of a buffer takes to return.

One process per rank.  Calls are small and made in short series, so that no queue is full; between
two series the GPUs come to rest.  A call's time has the end of the results of the call before it in
it, which it replaces.  `dispatch, waiting` has the GPU's part in it, for which the host waits.

    python bench/host_time.py --ranks 2 --out FILE
    python bench/host_time.py --null                   no GPU: a driver that does nothing
    python bench/host_time.py --null --profile 'dispatch, cached'

With --null the host's own part is left: what Python, Cython and C take, beside the number of driver
calls, each of which takes a real driver 0.1 to 2 us.
"""

import argparse
import cProfile
import datetime
import json
import os
import platform
import pstats
import re
import sys
import time
from pathlib import Path

import null_gpu
import torch

from deepep_ptx import Buffer, __version__
from deepep_ptx.cli import catalogue, measure
from deepep_ptx.comm import as_comm

WARM_UP = 20        # series
SERIES = 8          # calls: more than one is queued, and far fewer than a queue has room for


def main():
    args = parse_args()
    record = {
        "program": "bench/host_time.py",
        "version": __version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "host": cpu_name(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "arguments": {k: v for k, v in vars(args).items() if k not in ("out", "profile")},
    }
    if args.null:
        record["gpu"], by_rank = "null", [on_null(args)]
    else:
        record["gpu"], record["driver"] = torch.cuda.get_device_name(0), measure.driver_version()
        by_rank = on_gpus(args)
    # The slowest rank's: a layer takes as long as that.
    record["calls"] = {name: max((calls[name] for calls in by_rank), key=lambda c: c["median_us"])
                       for name in by_rank[0]}
    show(record)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=1) + "\n")
    catalogue.warn_if_stale()
    return 0


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=64, help="per rank")
    parser.add_argument("--hidden", type=int, default=7168)
    parser.add_argument("--experts", type=int, default=256)
    parser.add_argument("--topk", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=250, help=f"series of {SERIES} calls")
    parser.add_argument("--null", action="store_true", help="a driver that does nothing")
    parser.add_argument("--profile", metavar="CALL", help="with --null: where the host's time goes")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def cpu_name():
    """Of the host's processor."""
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.machine()


# -- ranks --------------------------------------------------------------------------------------

def on_null(args):
    calls_made = null_gpu.load_driver()
    from deepep_ptx._cuda import CudaExecutor

    null_gpu.pretend(torch)
    with Buffer(null_gpu.Copies(args.ranks, CudaExecutor(0)), low_latency_mode=True,
                arena_limit_bytes=arena_bytes(args)) as buffer:
        calls = make_calls(buffer, args, "cpu")
        del calls["dispatch, waiting"]          # nobody writes the totals
        if args.profile:
            profile(calls[args.profile])
        times = {name: measure.spread(time_call(call, args, rest)) for name, call in calls.items()}
        for name, call in calls.items():
            kept, before = call(), calls_made()
            kept = call()
            after = calls_made()
            times[name]["driver_calls"] = {function: after[function] - before[function]
                                           for function in after
                                           if after[function] != before[function]}
            del kept
    return times


def rest():
    """The null GPU has nothing to come to rest from."""


def profile(call):
    profiler = cProfile.Profile()
    kept = call()
    with profiler:
        for _ in range(20000):
            kept = call()
    del kept
    pstats.Stats(profiler).sort_stats("tottime").print_stats(25)


def on_gpus(args):
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29573")
    results = torch.multiprocessing.get_context("spawn").SimpleQueue()
    torch.multiprocessing.spawn(gpu_main, (args, results), args.ranks)
    return results.get()


def gpu_main(rank, args, results):
    torch.cuda.set_device(rank % torch.cuda.device_count())
    torch.distributed.init_process_group("gloo", rank=rank, world_size=args.ranks)
    comm = as_comm(torch.distributed.group.WORLD)

    def rest():
        torch.cuda.synchronize()
        comm.barrier()

    with Buffer(comm, low_latency_mode=True, arena_limit_bytes=arena_bytes(args)) as buffer:
        calls = make_calls(buffer, args, "cuda")
        times = {name: measure.spread(time_call(call, args, rest)) for name, call in calls.items()}
        del calls
    by_rank = comm.allgather(times)
    if rank == 0:
        results.put(by_rank)
    torch.distributed.destroy_process_group()


def arena_bytes(args):
    """Room for the results that live at the same time: each case's own, and one being replaced."""
    return Buffer.get_size_hint(args.tokens, args.hidden, args.topk, args.ranks, live_results=8)


# -- calls --------------------------------------------------------------------------------------

def make_calls(buffer, args, device):
    """name -> a function that makes one call and returns its results."""
    torch.manual_seed(buffer.rank)
    x = torch.ones((args.tokens, args.hidden), dtype=torch.bfloat16).to(device)
    topk_idx = torch.rand((args.tokens, args.experts)).topk(args.topk).indices.to(device)
    weights = torch.rand((args.tokens, args.topk)).to(device)
    per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(topk_idx, args.experts)
    worst = args.tokens * args.ranks
    layout = {"num_tokens_per_rank": per_rank, "is_token_in_rank": in_rank,
              "num_tokens_per_expert": per_expert, "topk_idx": topk_idx, "topk_weights": weights}
    recv_x, _, recv_weights, _, handle, _ = buffer.dispatch(x, num_worst_tokens=worst, **layout)

    def low_latency_pair(return_recv_hook=False):
        _, _, handle, _, hook = buffer.low_latency_dispatch(
            x, topk_idx, args.tokens, args.experts, return_recv_hook=return_recv_hook)
        if hook is not None:
            hook()
        out, _, hook = buffer.low_latency_combine(y, topk_idx, weights, handle,
                                                  return_recv_hook=return_recv_hook)
        if hook is not None:
            hook()
        return out

    y = torch.ones((args.experts // args.ranks, worst, args.hidden), dtype=torch.bfloat16)
    y = y.to(device)
    return {
        "layout": lambda: buffer.get_dispatch_layout(topk_idx, args.experts),
        "dispatch, cached": lambda: buffer.dispatch(x, handle=handle),
        "dispatch, worst case": lambda: buffer.dispatch(x, num_worst_tokens=worst, **layout),
        "dispatch, waiting": lambda: buffer.dispatch(x, **layout),
        "combine": lambda: buffer.combine(recv_x, handle),
        "combine, weights": lambda: buffer.combine(recv_x, handle, topk_weights=recv_weights),
        "low-latency pair": low_latency_pair,
        "low-latency pair, hooks": lambda: low_latency_pair(return_recv_hook=True),
    }


def time_call(call, args, rest):
    """Microseconds of each call."""
    times = []
    for series in range(WARM_UP + args.rounds):
        rest()
        kept = call()       # wakes what has gone to sleep, and is replaced by the next
        for _ in range(SERIES):
            begin = time.perf_counter_ns()
            kept = call()
            end = time.perf_counter_ns()
            if series >= WARM_UP:
                times.append((end - begin) / 1e3)
        del kept
    rest()
    return times


# -- results ------------------------------------------------------------------------------------

def show(record):
    print(f"{record['gpu']}, {record['host']}, Python {record['python']}, torch {record['torch']}: "
          "us per call")
    print(f"{'':22} {'median':>8} {'p10':>8} {'p90':>8}  driver calls")
    for name, call in record["calls"].items():
        made = ", ".join(f"{function} {count:g}"
                         for function, count in call.get("driver_calls", {}).items())
        print(f"{name:22} {call['median_us']:8.2f} {call['p10_us']:8.2f} {call['p90_us']:8.2f}  "
              f"{made}")


if __name__ == "__main__":
    sys.exit(main())
