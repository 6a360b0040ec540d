# SPDX-License-Identifier: MIT
"""What every rank does: layout, dispatch, experts, combine."""

import time
from dataclasses import dataclass

import numpy as np

from deepep_ptx import Buffer, reference
from deepep_ptx.cli.demo.verdict import mismatches, named_rows
from deepep_ptx.emu.coverage import not_executed

ARENA_LINE = 128  # bytes: sizes of the arena are multiples of it
PHASES = ("dispatch", "experts", "combine")


@dataclass(frozen=True, eq=False)
class RankOutput:
    """What one rank got from the buffer, copied out of the arena, and what it cost.

    seconds: of the phases that were run.
    """

    arrays: dict
    num_tokens: int        # of its own
    num_tokens_per_rank: np.ndarray
    seconds: dict          # phase -> (start, end), time.perf_counter
    counters: dict         # empty on GPUs
    symbols: tuple
    executor: str
    arch: str
    virtual_ns: int | None # None on GPUs
    not_executed: list | None      # lines, of the whole run, on rank 0; see `emu.coverage`


def rank_main(comm, job, wanted, bar):
    """Run one rank of `run_ranks`; returns its `RankOutput`.  `bar` moves once for each phase.

    wanted: each rank's arrays by the reference.  Where those of dispatch are wrong on any rank,
    nothing goes on with them: `arrays` are those of dispatch alone then.
    """
    settings = job.settings
    topk_idx = job.topk_idxs[comm.rank]
    seconds = {}

    def timed(phase, work):
        comm.barrier()
        started = time.perf_counter()
        result = work()
        seconds[phase] = (started, time.perf_counter())
        bar.update()
        return result

    with Buffer(comm, arena_limit_bytes=arena_bytes(job) or None,
                policy=settings.policy) as buffer:
        def dispatch():
            num_tokens_per_rank, _, num_tokens_per_expert, is_token_in_rank, _ = \
                buffer.get_dispatch_layout(topk_idx, settings.num_experts)
            symbols = buffer.last_launch
            received = buffer.dispatch(
                job.xs[comm.rank], num_tokens_per_rank=num_tokens_per_rank,
                is_token_in_rank=is_token_in_rank, num_tokens_per_expert=num_tokens_per_expert,
                topk_idx=topk_idx, topk_weights=job.topk_weights[comm.rank],
                num_worst_tokens=job.num_worst_tokens)
            return symbols + buffer.last_launch, num_tokens_per_rank, *received

        (symbols, num_tokens_per_rank, recv_x, recv_topk_idx, recv_topk_weights, per_expert,
         handle, _) = timed("dispatch", dispatch)
        rows = slice(int(handle[0][-1, comm.rank]))     # those received
        arrays = {
            "rank_prefix_matrix": np.array(handle[0]),
            "recv_src_idx": handle.recv_src_idx[rows].copy(),
            "recv_topk_idx": recv_topk_idx.copy(),
            "recv_topk_weights": recv_topk_weights[rows].copy(),
            **{name: array.copy() for name, array in named_rows(recv_x, rows).items()},
            "num_recv_tokens_per_expert_list": np.array(per_expert, dtype=np.int64),
        }

        def output():
            executor = comm.executor
            return RankOutput(
                arrays=arrays,
                num_tokens=len(topk_idx),
                num_tokens_per_rank=np.array(num_tokens_per_rank),
                seconds=seconds,
                counters=executor.counters(),
                symbols=symbols,
                executor=executor.name,
                arch=executor.arch,
                virtual_ns=executor.now,
                not_executed=not_executed(executor) if comm.rank == 0 else None,
            )

        if any(comm.allgather(mismatches(comm.rank, arrays, wanted[comm.rank]) != [])):
            return output()

        def experts():
            x = tuple(part[rows] for part in recv_x) if isinstance(recv_x, tuple) else recv_x[rows]
            y = job.experts.apply(x, recv_topk_idx[rows], arrays["recv_topk_weights"],
                                  comm.rank * job.num_local_experts)
            if settings.combine == "pull":
                recv_x[rows] = y
                return recv_x, recv_topk_weights
            pushed = np.zeros((len(recv_topk_idx), settings.hidden), dtype=y.dtype)
            pushed[rows] = y
            return pushed, recv_topk_weights.copy()

        y, weights = timed("experts", experts)
        combined_x, combined_topk_weights, _ = timed(
            "combine", lambda: buffer.combine(y, handle, topk_weights=weights))
        arrays["combined_x"] = np.array(combined_x)
        arrays["combined_topk_weights"] = np.array(combined_topk_weights)
        symbols += buffer.last_launch
        return output()


def dispatch_row_bytes(settings):
    """Bytes of a row's payload there, scales included."""
    if settings.dtype == "fp8":
        return settings.hidden + settings.hidden // reference.FP8_GROUP * 4
    return combine_row_bytes(settings)


def combine_row_bytes(settings):
    """Bytes of a row's payload back: always bfloat16."""
    return settings.hidden * reference.BF16_BYTES


def arena_bytes(job):
    """The arena of worst-case mode, in which nobody waits for it to grow; else 0: it grows.

    Room for the result and for the rows that combine may be sent, in which a token has one row
    per rank at most, each array on lines of its own.
    """
    settings = job.settings
    if not settings.worst:
        return 0
    extra = 12 * settings.num_topk + 4      # index, weight and source of a row
    staged = max(map(len, job.topk_idxs)) * min(settings.num_ranks, settings.num_topk)
    nbytes = (job.num_worst_tokens * (dispatch_row_bytes(settings) + extra)
              + staged * (combine_row_bytes(settings) + extra))
    return (-(-nbytes // ARENA_LINE) + 8) * ARENA_LINE
