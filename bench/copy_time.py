#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What the copy of a result out of the arena takes on one GPU, beside the driver's copy of as many
bytes (`cuMemcpyAsync`) and what the memory's bandwidth allows.

Both in turn in each round, each behind a flush of the L2 cache; medians of the kernel's own time.

    PYTHONPATH=. python bench/copy_time.py --out FILE
"""

import argparse
import datetime
import json
import statistics
from pathlib import Path

import torch

from deepep_ptx import Buffer, __version__, run_ranks
from deepep_ptx.cli.measure import driver_version

FLUSH_BYTES = 256 << 20
EXPERTS = 8


def rows_of(args, dtype, device):
    x = torch.randn(args.rows, args.hidden, device=device).bfloat16()
    if dtype == "BF16":
        return x
    return x.to(torch.float8_e4m3fn), torch.ones(args.rows, args.hidden // 128, device=device)


def measure(comm, args):
    """dtype -> bytes of the result, and lists of microseconds of the kernel and of the driver."""
    executor = comm.executor
    device = torch.device("cuda", executor.device)
    torch.cuda.set_device(device)
    torch.manual_seed(args.seed)
    flush = torch.zeros(FLUSH_BYTES // 4, device=device)
    found = {}
    with torch.cuda.stream(torch.cuda.Stream()), Buffer(comm, zero_copy=False) as buffer:
        idx = torch.randint(0, EXPERTS, (args.rows, 1), device=device)
        per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(idx, EXPERTS)
        for dtype in ("BF16", "FP8"):
            x = rows_of(args, dtype, device)
            handle = buffer.dispatch(x, num_tokens_per_rank=per_rank, is_token_in_rank=in_rank,
                                     num_tokens_per_expert=per_expert)[4]
            arrays = x if isinstance(x, tuple) else (x,)
            nbytes = sum(array.nbytes for array in arrays)
            source, target = (executor.alloc(nbytes) for _ in range(2))
            kernel, driver = [], []
            for turn in range(args.warm_up + args.rounds):
                flush.zero_()
                torch.cuda.synchronize()
                executor.profile(8)
                buffer.dispatch(x, handle=handle)
                took = dict(executor.launch_times())["ep_copy"]
                executor.profile(0)
                flush.zero_()
                torch.cuda.synchronize()
                copied = executor.time_copy(target, source, nbytes, times=1)
                if turn >= args.warm_up:
                    kernel.append(took)
                    driver.append(copied)
            executor.free(source)
            executor.free(target)
            found[dtype] = {"bytes": nbytes, "copy_us": kernel, "driver_us": driver}
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("rows", 8160), ("hidden", 7168), ("rounds", 50), ("warm-up", 5),
                          ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found, = run_ranks(measure, 1, args, executor="cuda")
    result = {}
    for dtype, times in found.items():
        medians = {name: statistics.median(times[name]) for name in ("copy_us", "driver_us")}
        gb_s = {name.replace("_us", "_gb_s"): round(2 * times["bytes"] / us / 1e3)
                for name, us in medians.items()}
        result[dtype] = {"bytes": times["bytes"],
                         **{name: round(us, 1) for name, us in medians.items()}, **gb_s}
        print(dtype, result[dtype])
    if args.out:
        args.out.write_text(json.dumps({
            "what": "us of the copy of a result, beside the driver's copy; GB/s read and written",
            "date": str(datetime.date.today()), "gpu": torch.cuda.get_device_name(),
            "driver": driver_version(), "version": __version__,
            **{k: v for k, v in vars(args).items() if k != "out"}, "medians": result,
        }, indent=1) + "\n")


if __name__ == "__main__":
    main()
