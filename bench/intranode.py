#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Kernel times of dispatch and combine on this machine's GPUs, beside what its links can do.

Correctness first: every policy's results are compared bit for bit with the reference.  Then rounds
of dispatch and combine, policies interleaved in random order, random data, every launch timed with
events.  Both kernels of a call are queued back to back (worst-case mode), so that ranks start
together.  Written out with it: the copy engine's bandwidth between two GPUs, both ways at once, and
the round trip of a flag, of the same run.

    python bench/intranode.py --ranks 2 --tokens 4096 --policy fast bulk --sms 16 24 --out FILE
    python bench/intranode.py --devices 0 1 0 1 0 1 0 1 --sms 12
    torchrun --nproc-per-node 2 bench/intranode.py          one process per GPU
"""

import argparse
import datetime
import json
import os
import random
import statistics
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import torch

from deepep_ptx import Buffer, __version__, measure, reference, run_ranks
from deepep_ptx.comm import as_comm

WARM_UP = 3


def main():
    args = parse_args()
    record = {
        "program": "bench/intranode.py",
        "version": __version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "gpu": torch.cuda.get_device_name(0),
        "gpus": torch.cuda.device_count(),
        "driver": measure.driver_version(),
        "arguments": {k: v for k, v in vars(args).items() if k != "out"},
    }
    in_processes = "LOCAL_RANK" in os.environ
    record["layout"] = "processes" if in_processes else "threads"
    record["links"] = links() if os.environ.get("LOCAL_RANK", "0") == "0" else {}
    if in_processes:
        results = run_processes(args)
        if results is None:
            return 0
    else:
        devices = args.devices or [rank % torch.cuda.device_count() for rank in range(args.ranks)]
        record["devices"] = devices
        results = run_ranks(rank_main, len(devices), args, executor="cuda", devices=devices)
    record["rows"] = results[0]["rows"]
    record["cases"] = merge([result["times"] for result in results], record)
    show(record)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=1) + "\n")
    return 0


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2, help="threads, GPUs in turn")
    parser.add_argument("--devices", type=int, nargs="+", help="GPU of each rank, for --ranks")
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096], help="per rank")
    parser.add_argument("--hidden", type=int, default=7168)
    parser.add_argument("--experts", type=int, default=256)
    parser.add_argument("--topk", type=int, default=8)
    parser.add_argument("--policy", nargs="+", default=["fast"])
    parser.add_argument("--sms", type=int, nargs="+", default=[16, 24])
    parser.add_argument("--combine", nargs="+", choices=("pull", "push"), default=["pull", "push"])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def links():
    """Of GPUs 0 and 1, with a flag's round trip; {} with one GPU."""
    if torch.cuda.device_count() < 2:
        return {}
    return measure.links(ping_pong=(Path(__file__).parent / "ping_pong.ptx").read_text())


def run_processes(args):
    """The results of all ranks on rank 0, None on the others."""
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("gloo")
    comm = as_comm(torch.distributed.group.WORLD)
    results = comm.allgather(rank_main(comm, args))
    torch.distributed.destroy_process_group()
    return results if comm.rank == 0 else None


# -- one rank ---------------------------------------------------------------------------------

def rank_main(comm, args):
    device = torch.device("cuda", comm.executor.device)
    torch.cuda.set_device(device)
    times, rows = {}, {}
    for tokens in args.tokens:
        inputs = [make_inputs(rank, tokens, args) for rank in range(comm.size)]
        wanted = reference.dispatch([x for x, _, _ in inputs], [i for _, i, _ in inputs],
                                    [w for _, _, w in inputs], args.experts)
        own = [tensor.to(device) for tensor in as_torch(inputs[comm.rank])]
        rows[tokens] = {"received": len(wanted[comm.rank].recv_x), "sent": sent_rows(wanted, comm)}
        time_calls(comm, args, tokens, own, wanted, times)
    return {"times": times, "rows": rows}


def make_inputs(rank, tokens, args):
    rng = np.random.default_rng([args.seed, rank, tokens])
    x = torch.from_numpy(rng.standard_normal((tokens, args.hidden), np.float32)).bfloat16()
    scores = rng.random((tokens, args.experts))
    topk_idx = np.argpartition(-scores, args.topk, axis=1)[:, :args.topk].astype(np.int64)
    weights = rng.random((tokens, args.topk), np.float32)
    return numpy_bf16(x), topk_idx, weights


def numpy_bf16(tensor):
    return tensor.contiguous().view(torch.int16).cpu().numpy().view(ml_dtypes.bfloat16)


def as_torch(arrays):
    x, topk_idx, weights = arrays
    yield torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    yield torch.from_numpy(topk_idx)
    yield torch.from_numpy(weights)


def sent_rows(wanted, comm):
    """Rows that this rank sends to other GPUs, and to all ranks."""
    prefix = wanted[comm.rank].rank_prefix_matrix
    matrix = np.diff(prefix, axis=0, prepend=0)
    devices = comm.allgather(comm.executor.device)
    remote = [d for d in range(comm.size) if devices[d] != comm.executor.device]
    return {"remote": int(matrix[comm.rank, remote].sum()), "all": int(matrix[comm.rank].sum())}


def time_calls(comm, args, tokens, own, wanted, times):
    x, topk_idx, weights = own
    worst = tokens * comm.size
    slot = worst * (args.hidden * 2 + args.topk * 12 + 4) + (1 << 20)
    cases = [(policy, sms, combine) for policy in args.policy for sms in args.sms
             for combine in args.combine]
    buffers = {policy: Buffer(comm, num_nvl_bytes=-(-3 * slot // 128) * 128, policy=policy,
                              timeout_s=10.0) for policy in args.policy}
    mine = wanted[comm.rank]
    order = random.Random(args.seed)
    for turn in range(WARM_UP + args.rounds):
        order.shuffle(cases)
        for case in cases:
            policy, sms, combine = case
            buffer = buffers[policy]
            Buffer.set_num_sms(sms)
            comm.barrier()
            per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(topk_idx, args.experts)
            comm.barrier()
            comm.executor.profile(16)
            recv_x, _, recv_weights, _, handle, _ = buffer.dispatch(
                x, num_tokens_per_rank=per_rank, is_token_in_rank=in_rank,
                num_tokens_per_expert=per_expert, topk_idx=topk_idx, topk_weights=weights,
                num_worst_tokens=worst)
            pushed = recv_x.clone() if combine == "push" else recv_x
            torch.cuda.synchronize()
            comm.barrier()
            combined, _, _ = buffer.combine(pushed, handle, topk_weights=recv_weights)
            launches = comm.executor.launch_times()
            comm.executor.profile(0)
            if turn == 0:
                compare(comm, case, recv_x, combined, mine, wanted)
            if turn >= WARM_UP:
                name = (tokens, *case)
                times.setdefault(name, []).append(launches)
            del recv_x, recv_weights, handle, pushed, combined
    comm.barrier()
    for buffer in buffers.values():
        buffer.destroy()


def compare(comm, case, recv_x, combined, mine, wanted):
    got = numpy_bf16(recv_x)[:len(mine.recv_x)]
    check(comm, case, "recv_x", got, mine.recv_x)
    want, _ = reference.combine([w.recv_x for w in wanted], wanted)[comm.rank]
    check(comm, case, "combined_x", numpy_bf16(combined), want)


def check(comm, case, name, got, want):
    bad = measure.wrong_rows(got, want)
    if len(bad):
        raise SystemExit(f"{case}: rank {comm.rank}: {name} is wrong in {len(bad)} rows, first "
                         f"row {bad[0]}: no times")


# -- results --------------------------------------------------------------------------------------

def merge(by_rank, record):
    """Per case: medians over rounds of the slowest rank's kernel times, and bandwidths."""
    row_bytes = record["arguments"]["hidden"] * 2
    cases = []
    for name in by_rank[0]:
        tokens, policy, sms, combine = name
        rounds = list(zip(*(times[name] for times in by_rank), strict=True))
        case = {"tokens": tokens, "policy": policy, "sms": sms, "mode": combine, "kernels": {}}
        symbols = [symbol for symbol, _ in rounds[0][0]]
        totals = {"dispatch": [], "combine": []}
        for index, symbol in enumerate(symbols):
            values = [max(launches[index][1] for launches in turn) for turn in rounds]
            case["kernels"][symbol] = spread(values)
            which = "combine" if "combine" in symbol else "dispatch"
            totals[which] = [a + b for a, b in zip(totals[which] or [0] * len(values), values,
                                                   strict=True)]
        rows = record["rows"][tokens]["sent"]
        for which, values in totals.items():
            median = statistics.median(values)
            case[which] = spread(values) | {
                "wire_gb_s": round(rows["remote"] * row_bytes / median / 1e3, 1),
                "logical_gb_s": round(rows["all"] * row_bytes / median / 1e3, 1),
            }
        cases.append(case)
    return cases


def spread(values):
    return {name: round(value, 1) for name, value in measure.spread(values).items()}


def show(record):
    print(f"{record['gpus']} x {record['gpu']}, {record['links']}")
    print(f"{'tokens':>6} {'policy':>16} {'sms':>4} {'mode':>7}  {'dispatch us':>11} "
          f"{'wire GB/s':>9}  {'combine us':>10} {'wire GB/s':>9}  kernels")
    cases = record["cases"]
    for case in sorted(cases, key=lambda c: (c["tokens"], c["policy"], c["sms"], c["mode"])):
        kernels = ", ".join(f"{symbol.removeprefix('ep_')} {t['median_us']}"
                            for symbol, t in case["kernels"].items())
        print(f"{case['tokens']:>6} {case['policy']:>16} {case['sms']:>4} {case['mode']:>7}"
              f"  {case['dispatch']['median_us']:>11} {case['dispatch']['wire_gb_s']:>9}"
              f"  {case['combine']['median_us']:>10} {case['combine']['wire_gb_s']:>9}  {kernels}")


if __name__ == "__main__":
    sys.exit(main())
