#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What it costs that results are torch's own tensors: whole calls, between events of the caller's
stream, with results that are lent to torch (the default), views (`zero_copy=True`) and copies
(`zero_copy=False`), the three in turn in each round.

One process per GPU.  Before each call the ranks meet in an all-reduce, the L2 cache is flushed, and
the GPU is held for a while, so that the host is ahead.  Times are those of the slower rank.

    torchrun --nproc-per-node 2 bench/torch_results.py --out FILE
"""

import argparse
import datetime
import json
import os
import statistics
from pathlib import Path

import torch
from torch import distributed

from deepep_ptx import Buffer, __version__
from deepep_ptx.cli import catalogue

MODES = {"lent": None, "views": True, "copies": False}
FLUSH_BYTES = 256 << 20
HOLD_CYCLES = 600_000       # about 0.3 ms


def inputs(args, rank, device):
    """Of one rank, by its seed: x in both types, choices of a uniform router, weights."""
    torch.manual_seed(args.seed + rank)
    x = torch.randn(args.tokens, args.hidden, device=device).bfloat16()
    scores = torch.rand(args.tokens, args.experts, device=device)
    topk_idx = scores.topk(args.topk, dim=1).indices
    fp8 = x.to(torch.float8_e4m3fn), torch.ones(args.tokens, args.hidden // 128, device=device)
    return {"BF16": x, "FP8": fp8}, topk_idx, torch.ones(args.tokens, args.topk, device=device)


class Caller:
    """Makes the calls of one mode."""

    def __init__(self, group, mode, xs, topk_idx, weights, args):
        self.buffer = Buffer(group, zero_copy=MODES[mode], timeout_s=20)
        self.xs = xs
        per_rank, _, per_expert, in_rank, _ = self.buffer.get_dispatch_layout(topk_idx,
                                                                              args.experts)
        self.layout = {"num_tokens_per_rank": per_rank, "num_tokens_per_expert": per_expert,
                       "is_token_in_rank": in_rank, "topk_idx": topk_idx, "topk_weights": weights}
        self.num_sms = args.sms
        self.handle = self.buffer.dispatch(xs["BF16"], **self.layout)[4]

    def calls(self):
        """name -> a call that returns what is kept until the next one."""
        found = {}
        for dtype, x in self.xs.items():
            found[f"dispatch {dtype}, waiting"] = lambda x=x: self.buffer.dispatch(
                x, num_sms=self.num_sms, **self.layout)
            found[f"dispatch {dtype}, cached"] = lambda x=x: self.buffer.dispatch(
                x, handle=self.handle, num_sms=self.num_sms)
        return found

    def combine(self, rows):
        """Of rows that are a dispatch's result."""
        return self.buffer.combine(rows, self.handle, num_sms=self.num_sms)


def timed(call, flush):
    """Microseconds, and what the call returned."""
    distributed.all_reduce(flush[:1])
    flush.zero_()
    torch.cuda._sleep(HOLD_CYCLES)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    kept = call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e3, kept


def measure(args, group, device):
    """name -> mode -> list of microseconds of this rank."""
    rank = distributed.get_rank()
    given = inputs(args, rank, device)
    callers = {mode: Caller(group, mode, *given, args) for mode in MODES}
    flush = torch.zeros(FLUSH_BYTES // 4, device=device)
    times = {}
    for turn in range(args.warm_up + args.rounds):
        for name in callers["lent"].calls():
            for mode, caller in callers.items():
                taken, result = timed(caller.calls()[name], flush)
                found = {name: taken}
                if name == "dispatch BF16, cached":
                    found["combine of a result"], _ = timed(
                        lambda caller=caller, rows=result[0]: caller.combine(rows), flush)
                if turn >= args.warm_up:
                    for what, time in found.items():
                        times.setdefault(what, {}).setdefault(mode, []).append(time)
                del result
    stats = {mode: caller.buffer.stats() for mode, caller in callers.items()}
    for caller in callers.values():
        caller.buffer.destroy()
    return times, stats


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("tokens", 4096), ("hidden", 7168), ("topk", 8), ("experts", 256),
                          ("sms", 16), ("rounds", 30), ("warm-up", 5), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    device = torch.device("cuda", torch.cuda.current_device())
    distributed.init_process_group("nccl", device_id=device)
    times, stats = measure(args, distributed.group.WORLD, device)
    everybody = [None] * distributed.get_world_size()
    distributed.all_gather_object(everybody, times)
    if distributed.get_rank() == 0:
        medians = {name: {mode: round(statistics.median(map(max, zip(
            *(of[name][mode] for of in everybody), strict=True))), 1) for mode in modes}
            for name, modes in times.items()}
        for name, modes in medians.items():
            print(f"{name:<24}" + "".join(f"{mode} {time:8.1f}   "
                                          for mode, time in modes.items()))
        print(stats)
        if args.out:
            args.out.write_text(json.dumps({
                "what": "us of whole calls by results", "date": str(datetime.date.today()),
                "gpu": torch.cuda.get_device_name(), "torch": torch.__version__,
                "version": __version__, "ranks": len(everybody),
                **{k: v for k, v in vars(args).items() if k != "out"}, "medians": medians,
            }, indent=1) + "\n")
        catalogue.warn_if_stale()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
