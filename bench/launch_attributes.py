#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What it does for calls that other work of the same GPU waits for their start:

    none     both may begin at the same time
    start    the call is asynchronous, and its neighbour's stream has waited for its start
             (`EventOverlap.current_stream_wait_start()`): the call's CTAs come first

The neighbours are kernels that do nothing but store, and a GEMM, each on a stream of its own.  One
process per GPU.  Ranks begin together, behind a flush of the L2 cache; each round has every call
beside every neighbour, either way, in an order of its own.  Times are between events, of the slower
rank.

    PYTHONPATH=. python bench/launch_attributes.py --devices 0,1 --out FILE
"""

import argparse
import datetime
import itertools
import json
import sys
from pathlib import Path

import numpy as np

from deepep_ptx import __version__
from deepep_ptx._cuda import TimedEvent
from deepep_ptx.cli import catalogue, measure
from deepep_ptx.cli.bench import launch
from deepep_ptx.cli.bench.case import Case
from deepep_ptx.cli.bench.figures import spread_of
from deepep_ptx.cli.bench.overlap import Repeated, gemm_of
from deepep_ptx.cli.bench.rounds import Session
from deepep_ptx.cli.measure.machine import FLUSHES_BESIDE
from deepep_ptx.cli.measure.statistics import interleaved, ratio
from deepep_ptx.cli.tables import table
from deepep_ptx.errors import DeepEPError

WHATS = ("cached", "combine-pull")
STORE_BYTES = 1 << 28       # more than the L2 cache: what is stored goes to memory
TIMES = ("call", "work", "both")
WAYS = {"none": False, "start": True}       # whether the neighbour waits for the call's start


def main():
    args = parse_args()
    record = launch.run(rank_main, args)
    show(record)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=1) + "\n")
    catalogue.warn_if_stale()
    return 0


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--executor", choices=["cuda"], default="cuda")
    parser.add_argument("--devices", type=numbers, default=[0, 1], help="GPU of each rank")
    parser.add_argument("--tokens", type=numbers, default=[1, 64, 4096], help="of each rank")
    for name, default, what in (
            ("hidden", 7168, "elements of a row"), ("topk", 8, "experts per token"),
            ("experts", 256, "of all ranks"), ("sms", None, "CTAs of the calls"),
            ("rounds", 30, "that count"), ("warm-up", 5, "rounds before them"), ("seed", 0, None)):
        parser.add_argument(f"--{name}", type=int, default=default, help=what)
    parser.add_argument("--gemm", type=size, default=(8192, 4096, 7168), metavar="MxNxK",
                        help="of bfloat16")
    parser.add_argument("--work-us", type=float, default=500,
                        help="how long the neighbour alone takes, about")
    parser.add_argument("--timeout-s", type=float, default=10)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.ranks = len(args.devices)
    args.layout, args.arch = "processes", None      # for launch.run
    return args


def numbers(text):
    return [int(number) for number in text.split(",")]


def size(text):
    m, n, k = (int(number) for number in text.split("x"))
    return m, n, k


# -- one rank -------------------------------------------------------------------------------------

def rank_main(comm, args):
    """The record, on rank 0."""
    import torch

    cases = [Case(what, tokens=tokens, hidden=args.hidden, topk=args.topk, experts=args.experts,
                  sms=args.sms) for tokens in args.tokens for what in WHATS]
    with Session(comm, cases, seed=args.seed, timeout_s=args.timeout_s, torch=torch) as session:
        session.check()
        if session.wrong:
            raise DeepEPError(f"wrong results: {session.wrong[0]}")
        neighbours = {"alone": None} | neighbours_of(torch, args, session.machine)
        agree(comm, neighbours)
        pair = Pair(session, torch.cuda.Stream())
        for call in session.calls:
            pair.check(comm, call)
        entries = list(itertools.product(range(len(cases)), neighbours, WAYS))
        times, late = measured(comm, args, pair, neighbours, entries)
    if comm.rank:
        return None
    return {
        "program": "bench/launch_attributes.py",
        "version": __version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "gpu": comm.executor.device_name,
        "driver": measure.driver_version(),
        "torch": torch.__version__,
        "arguments": {k: v for k, v in vars(args).items() if k != "out"},
        "repeats": {name: work.repeats for name, work in neighbours.items() if work},
        "calls": [figures_of(case, beside, index, times, late, entries, session.sms[index])
                  for index, case in enumerate(cases) for beside in neighbours],
    }


def neighbours_of(torch, args, machine):
    """name -> `Repeated`."""
    stored = torch.empty(STORE_BYTES, dtype=torch.uint8, device=machine.device)
    works = {"stores": lambda: stored.fill_(1), "gemm": gemm_of(torch, args.gemm, machine.device)}
    return {name: Repeated(work, machine, args.work_us) for name, work in works.items()}


def agree(comm, neighbours):
    """All ranks repeat as often as rank 0."""
    for work in filter(None, neighbours.values()):
        work.repeats = comm.allgather(work.repeats)[0]


class Pair:
    """Calls of one rank, and what runs beside them on the stream `side`."""

    def __init__(self, session, side):
        self.session = session
        self.machine = session.machine
        self.side = side
        self.work_end = TimedEvent(session.machine.executor)

    def check(self, comm, call):
        """Raises on all ranks where bits differ."""
        bits = {}
        for name, has_start in WAYS.items():
            self.session.begin(call.case)
            results = call(async_finish=has_start)
            results["event"].current_stream_wait()
            bits[name] = [self.machine.get(array).tobytes() for what, array in results.items()
                          if what != "event" and array is not None]
        wrong = [name for name in WAYS if bits[name] != bits["none"]]
        for rank, names in enumerate(comm.allgather(wrong)):
            if names:
                raise DeepEPError(f"rank {rank}: {call.case}: other bits with {', '.join(names)}")

    def measure(self, call, work, has_start):
        """Microseconds of the call, of `work`, and until both have ended, NaN where there is no
        `work`; and whether the host was late.  The work begins with the call, or at its start."""
        torch = self.machine.torch
        machine, begin, end = self.machine, self.machine.begin, self.machine.end
        self.session.begin(call.case)
        machine.flush(FLUSHES_BESIDE)
        self.session.aligner()
        begin.record(machine.stream)
        result = call(async_finish=has_start)
        event = result["event"]
        event.current_stream_wait()         # nothing where the call was not asynchronous
        end.record(machine.stream)
        if work:
            begin.wait(self.side.cuda_stream)
            with torch.cuda.stream(self.side):
                event.current_stream_wait_start()
                work()
            self.work_end.record(self.side.cuda_stream)
        late = begin.done
        call_us = end.since(begin)
        del result, event
        if not work:
            return call_us, np.nan, np.nan, late
        work_us = self.work_end.since(begin)
        return call_us, work_us, max(call_us, work_us), late


def measured(comm, args, pair, neighbours, entries):
    """Microseconds [entries, TIMES, rounds] of the slower rank, and bool [entries, rounds], whether
    a host was late."""
    times = np.empty((len(entries), len(TIMES), args.rounds))
    late = np.empty((len(entries), args.rounds), bool)
    calls = pair.session.calls
    for number, row in enumerate(interleaved(len(entries), args.warm_up + args.rounds, args.seed)):
        for entry in row:
            index, beside, way = entries[entry]
            *found, was_late = pair.measure(calls[index], neighbours[beside], WAYS[way])
            if number >= args.warm_up:
                times[entry, :, number - args.warm_up] = found
                late[entry, number - args.warm_up] = was_late
    everybody = comm.allgather((times, late))
    return (np.max([of_rank[0] for of_rank in everybody], axis=0),
            np.any([of_rank[1] for of_rank in everybody], axis=0))


# -- results --------------------------------------------------------------------------------------

def figures_of(case, beside, index, times, late, entries, sms):
    """The JSON of a case beside a neighbour: either way spreads, and the ratio of their medians to
    those of "none", with its interval."""
    of = {name: entries.index((index, beside, name)) for name in WAYS}
    made = {"what": case.what, "tokens": case.tokens, "sms": sms, "beside": beside}
    for name, entry in of.items():
        made[name] = {"late": round(float(late[entry].mean()), 3)}
        for which, us, base in zip(TIMES, times[entry], times[of["none"]], strict=True):
            if np.isnan(us).any():
                continue
            to_none = ratio(us, base)
            made[name][which] = spread_of(us) | {
                "of_none": [round(x, 4) for x in (to_none.median, to_none.low, to_none.high)]}
    return made


def show(record):
    print(f"{record['gpu']}, driver {record['driver']}, torch {record['torch']}: us, medians; "
          "of none: of the time where the neighbour does not wait, and its interval")
    rows = [("call", "tokens", "SMs", "beside", "waits for", "call us", "p10 .. p90", "of none", "",
             "work us", "both us", "of none", "", "late")]
    for call in record["calls"]:
        for name in WAYS:
            made = call[name]
            rows.append((call["what"], str(call["tokens"]), str(call["sms"]), call["beside"], name,
                         f"{made['call']['median_us']:.2f}",
                         f"{made['call']['p10_us']:.1f} .. {made['call']['p90_us']:.1f}",
                         *of_none(made, "call", name),
                         *(f"{made[which]['median_us']:.1f}" if which in made else "-"
                           for which in ("work", "both")),
                         *of_none(made, "both", name), f"{100 * made['late']:.0f} %"))
    print("\n".join(table(rows, left=1)))


def of_none(made, which, name):
    """Two cells."""
    if name == "none" or which not in made:
        return "", ""
    median, low, high = made[which]["of_none"]
    return f"{median:.3f}", f"{low:.3f} .. {high:.3f}"


if __name__ == "__main__":
    sys.exit(main())
