# SPDX-License-Identifier: MIT
"""The main job: a text through a mixture-of-experts layer, its ranks joined by `Buffer`.

text -> tokens -> bfloat16 rows (corpus.py) -> group-limited gating (gating.py) -> layout, dispatch
-> experts -> combine; every array that arrives is compared bit for bit with reference.py.

An expert is the function f_e(x) = h(a_e * x + b_e), h(z) = z * min(max(z + 3, 0), 6) / 6 (hard
SiLU), elementwise in float32 with two numbers a_e, b_e of its own: only operations that IEEE 754
rounds exactly, so that its bits depend on neither machine nor array shape.  A rank turns received
row x into y = bf16(sum over k of w_k * f_e(x)), k ascending over the choices that are its experts.
"""

import math
import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from deepep_ptx import Buffer, corpus, gating, reference, run_ranks

ARCHS = ("sm_80", "sm_90")
EXECUTORS = ("emu", "cuda")
CHECKS = ("all", "off")
COMBINE_MODES = ("pull", "push")
ARENA_LINE = 128  # bytes: sizes of the arena are multiples of it
PHASES = ("dispatch", "experts", "combine", "check")


@dataclass(frozen=True)
class Settings:
    """What to run.  Every field is an option of `deepep-ptx demo`.

    num_tokens is the mean per rank; shares are uneven.  combine: "pull" writes the expert output
    over recv_x in the arena, "push" hands combine an ordinary array.  worst: worst-case mode, no
    wait for the totals.  text: a path, None = the text that ships.  executor, arch: None = the best
    there is, see `run_ranks`.  scheduler, checks: of the CPU executor.  Bad values: ValueError.
    """

    num_ranks: int = 8
    num_tokens: int = 128
    hidden: int = 7168
    num_experts: int = 64
    num_groups: int = 8
    num_topk_groups: int = 4
    num_topk: int = 8
    seed: int = 0
    executor: str | None = None
    scheduler: str = "rr"
    policy: str | None = None
    arch: str | None = None
    text: str | None = None
    unit: str = "words"
    combine: str = "pull"
    checks: str = "all"
    worst: bool = False

    def __post_init__(self):
        if not 1 <= self.num_ranks <= 64:
            raise ValueError(f"num_ranks: must be 1..64, got {self.num_ranks}")
        if self.num_tokens < 1:
            raise ValueError(f"num_tokens: must be at least 1, got {self.num_tokens}")
        if self.hidden < 8 or self.hidden % 8:
            raise ValueError(f"hidden: must be a positive multiple of 8 (16 bytes), "
                             f"got {self.hidden}")
        if self.num_experts < 1 or self.num_experts % self.num_ranks:
            raise ValueError(f"num_experts: must be a positive multiple of num_ranks "
                             f"({self.num_ranks}), got {self.num_experts}; {self._way_out()}")
        gating.check_settings(self.num_experts, self.num_topk, self.num_groups,
                              self.num_topk_groups)
        if not 0 <= self.seed < 1 << 64:
            raise ValueError(f"seed: must be 0..2**64-1, got {self.seed}")
        for name, choices in (("arch", (None, *ARCHS)), ("executor", (None, *EXECUTORS)),
                              ("unit", corpus.UNITS), ("checks", CHECKS),
                              ("combine", COMBINE_MODES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: must be one of {', '.join(filter(None, choices))}, "
                                 f"got {getattr(self, name)!r}")

    def _way_out(self):
        """What to change when experts cannot be shared out evenly: more experts, or other ranks."""
        step = math.lcm(self.num_ranks, max(1, self.num_groups))
        num_experts = max(1, math.ceil(self.num_experts / step)) * step
        fitting = [n for n in range(1, 65) if self.num_experts > 0 and self.num_experts % n == 0]
        near = sorted(sorted(fitting, key=lambda n: abs(n - self.num_ranks))[:2])
        ranks = f", or num_ranks {' or '.join(map(str, near))}" if near else ""
        return f"try num_experts {num_experts}{ranks}"


@dataclass(frozen=True, eq=False)
class Experts:
    """f_e of every expert: scale and bias float32 [E]."""

    scale: np.ndarray
    bias: np.ndarray

    @classmethod
    def seeded(cls, num_experts, rng):
        """Scales around 1, biases around 0."""
        scale = 1 + 0.25 * rng.standard_normal(num_experts)
        return cls(scale.astype(np.float32),
                   (0.5 * rng.standard_normal(num_experts)).astype(np.float32))

    def apply(self, x, topk_idx, topk_weights, first_expert):
        """y = bf16(sum over k of w_k * f_e(x)) over local choices e = first_expert + topk_idx.

        Args:
            x: bfloat16 [n, H].
            topk_idx: [n, K], local expert or -1.
            topk_weights: float32 [n, K].
            first_expert: global number of local expert 0.

        Returns:
            bfloat16 [n, H]; +0.0 for a row without a local choice.
        """
        x = reference.widen(x)
        y = np.zeros_like(x)
        for k in range(topk_idx.shape[1]):
            rows = np.nonzero(topk_idx[:, k] >= 0)[0]
            expert = first_expert + topk_idx[rows, k]
            z = x[rows] * self.scale[expert, None] + self.bias[expert, None]
            gate = np.clip(z + np.float32(3), np.float32(0), np.float32(6))
            y[rows] += topk_weights[rows, k, None] * (z * gate / np.float32(6))
        return reference.round_to_bf16(y)


@dataclass(frozen=True, eq=False)
class Job:
    """The input of every rank, as lists in rank order, and the experts."""

    xs: list
    topk_idxs: list
    topk_weights: list
    experts: Experts


@dataclass(frozen=True, eq=False)
class RankOutput:
    """What one rank got from the buffer, copied out of the arena, and what it cost."""

    arrays: dict
    num_tokens_per_rank: np.ndarray
    seconds: dict          # phase -> (start, end), time.perf_counter
    counters: dict         # empty on GPUs
    symbols: tuple
    executor: str
    arch: str
    virtual_ns: int | None # None on GPUs


@dataclass(frozen=True)
class RankFigures:
    """One line of the report; bytes count dispatch and combine together."""

    rank: int
    num_tokens: int             # of its own
    num_sent: int               # rows, its own share included
    num_recv: int               # rows
    num_experts_hit: int        # of its local experts
    busiest_share: float        # of the choices that reached this rank, by its busiest expert
    warp_instructions: int | None   # None: on GPUs nobody counts
    wire_bytes: int | None      # stored to or loaded from other ranks
    logical_bytes: int          # payload rows received and given back, own rank included


@dataclass(frozen=True)
class Mismatch:
    """The first element of an array that is not the reference's."""

    rank: int
    name: str
    index: tuple | None         # None: shape or dtype differ
    got: str
    want: str

    def __str__(self):
        if self.index is None:
            return f"rank {self.rank}: {self.name} is {self.got}, reference {self.want}"
        place = ", ".join(f"{axis} {i}" for axis, i in
                          zip(("row", "column"), self.index, strict=False))
        return f"rank {self.rank}: {self.name} {place} is {self.got}, reference {self.want}"


@dataclass(frozen=True)
class DemoReport:
    """What `run` found.  `str(report)` is the table that the command prints."""

    settings: Settings
    executor: str               # "emu" or "cuda"
    arch: str                   # "sm_90": the target whose kernels ran
    symbols: tuple
    ranks: list[RankFigures]
    vocabulary_size: int
    virtual_ns: int | None      # of the whole run, on the CPU executor's clock
    wall_s: dict                # phase -> seconds
    mismatches: list[Mismatch] = field(default_factory=list)

    @property
    def bit_exact(self):
        """True if every array of every rank is the reference's."""
        return not self.mismatches

    @property
    def communication_s(self):
        """Wall seconds of layout, dispatch and combine."""
        return self.wall_s["dispatch"] + self.wall_s["combine"]

    @property
    def ns_per_warp_instruction(self):
        """Wall nanoseconds of communication per warp instruction executed; None on GPUs."""
        num_instructions = _total(r.warp_instructions for r in self.ranks)
        if num_instructions is None:
            return None
        return 1e9 * self.communication_s / max(1, num_instructions)

    def __str__(self):
        return "\n".join([_headline(self), "", *_table(self), "", *_summary(self)])


def run(**settings):
    """Run the main job once; keywords are the fields of `Settings`.

    Returns a `DemoReport`; a wrong bit is in its `mismatches`, not an exception.

    Raises:
        ValueError: settings that cannot be met, naming the setting, or an unreadable text.
        RankError: a rank failed; its `__cause__` says why.
    """
    settings = Settings(**settings)
    job, vocabulary_size = prepare(settings)
    steps = settings.num_ranks * len(PHASES)
    # A bar only on a terminal, and only for a run of more than two seconds.
    with tqdm(total=steps, unit="step", delay=2, leave=False, disable=None) as bar:
        outputs = run_ranks(_rank_main, settings.num_ranks, settings, job, bar,
                            executor=settings.executor, arch=settings.arch,
                            seed=settings.seed, scheduler=settings.scheduler,
                            checks=settings.checks)
        started = time.perf_counter()
        mismatches = check(job, outputs, settings, bar)
        check_s = time.perf_counter() - started
    wall_s = {phase: max(o.seconds[phase][1] for o in outputs)
              - min(o.seconds[phase][0] for o in outputs) for phase in PHASES[:-1]}
    return DemoReport(
        settings=settings,
        executor=outputs[0].executor,
        arch=outputs[0].arch,
        symbols=outputs[0].symbols,
        ranks=[_figures(rank, output, settings) for rank, output in enumerate(outputs)],
        vocabulary_size=vocabulary_size,
        virtual_ns=(None if outputs[0].virtual_ns is None
                    else max(output.virtual_ns for output in outputs)),
        wall_s={**wall_s, "check": check_s},
        mismatches=mismatches,
    )


def prepare(settings):
    """Make every rank's rows, choices and weights.  Returns (Job, size of the vocabulary)."""
    rng = np.random.default_rng(settings.seed)
    count = settings.num_ranks * settings.num_tokens
    tokens = corpus.tokenise(corpus.read_text(settings.text), settings.unit, count)
    table = corpus.embedding_table(len(tokens.vocabulary), settings.hidden, rng)
    x = corpus.embed(tokens, table)
    topk_idx, topk_weights = gating.group_limited_topk(
        x, expert_vectors(table, settings.num_experts, rng), settings.num_topk,
        settings.num_groups, settings.num_topk_groups)
    shares = corpus.spans(settings.num_ranks, settings.num_tokens)
    return Job(xs=[x[share] for share in shares],
               topk_idxs=[topk_idx[share] for share in shares],
               topk_weights=[topk_weights[share] for share in shares],
               experts=Experts.seeded(settings.num_experts, rng)), len(tokens.vocabulary)


def expert_vectors(table, num_experts, rng):
    """A sample of the embeddings, without repetition while the vocabulary lasts: [E, hidden].

    Divided by sqrt(hidden), so that logits of unrelated tokens are standard normal.
    """
    order = rng.permutation(len(table))
    return table[np.resize(order, num_experts)] / np.float32(np.sqrt(table.shape[1]))


def check(job, outputs, settings, bar):
    """Compare every rank's arrays with the reference's.

    Returns the first `Mismatch` of each array that differs, by rank; an empty list if none does.
    """
    received = reference.dispatch(job.xs, job.topk_idxs, job.topk_weights, settings.num_experts,
                                  _worst_tokens(job, settings))
    num_local_experts = settings.num_experts // settings.num_ranks
    ys = [job.experts.apply(r.recv_x, r.recv_topk_idx, r.recv_topk_weights,
                            rank * num_local_experts) for rank, r in enumerate(received)]
    combined = reference.combine(ys, received, [r.recv_topk_weights for r in received])
    mismatches = []
    for rank, (output, want) in enumerate(zip(outputs, received, strict=True)):
        rows = slice(want.num_recv)
        wanted = {
            "rank_prefix_matrix": want.rank_prefix_matrix,
            "recv_src_idx": want.recv_src_idx[rows],
            "recv_topk_idx": want.recv_topk_idx,
            "recv_topk_weights": want.recv_topk_weights[rows],
            "recv_x": want.recv_x[rows],
            "num_recv_tokens_per_expert_list":
                np.array(want.num_recv_tokens_per_expert_list, dtype=np.int64),
            "combined_x": combined[rank][0],
            "combined_topk_weights": combined[rank][1],
        }
        found = [compare(rank, name, output.arrays[name], array)
                 for name, array in wanted.items()]
        mismatches += [mismatch for mismatch in found if mismatch]
        bar.update()
    return mismatches


def compare(rank, name, got, want):
    """The first element whose bits differ as a `Mismatch`, or None."""
    if got.shape != want.shape or got.dtype != want.dtype:
        return Mismatch(rank, name, None, f"{got.dtype} {got.shape}", f"{want.dtype} {want.shape}")
    bits = f"u{want.dtype.itemsize}"
    differs = np.ascontiguousarray(got).view(bits) != np.ascontiguousarray(want).view(bits)
    if not differs.any():
        return None
    index = tuple(int(i) for i in np.argwhere(differs)[0])
    return Mismatch(rank, name, index, _with_bits(got[index]), _with_bits(want[index]))


def _with_bits(value):
    """A float with its bits, since two NaN or two zeros print alike."""
    if np.issubdtype(value.dtype, np.integer):
        return str(value)
    return f"{value} ({value.tobytes()[::-1].hex()})"


def _rank_main(comm, settings, job, bar):
    x, topk_idx = job.xs[comm.rank], job.topk_idxs[comm.rank]
    seconds = {}

    def timed(phase, work):
        comm.barrier()
        started = time.perf_counter()
        result = work()
        seconds[phase] = (started, time.perf_counter())
        bar.update()
        return result

    with Buffer(comm, _arena_bytes(job, settings), policy=settings.policy) as buffer:
        def dispatch():
            num_tokens_per_rank, _, num_tokens_per_expert, is_token_in_rank, _ = \
                buffer.get_dispatch_layout(topk_idx, settings.num_experts)
            symbols = buffer.last_launch
            received = buffer.dispatch(
                x, num_tokens_per_rank=num_tokens_per_rank, is_token_in_rank=is_token_in_rank,
                num_tokens_per_expert=num_tokens_per_expert, topk_idx=topk_idx,
                topk_weights=job.topk_weights[comm.rank],
                num_worst_tokens=_worst_tokens(job, settings))
            return symbols + buffer.last_launch, num_tokens_per_rank, *received

        (symbols, num_tokens_per_rank, recv_x, recv_topk_idx, recv_topk_weights, per_expert,
         handle, _) = timed("dispatch", dispatch)
        num_recv = int(handle[0][-1, comm.rank])
        arrays = {
            "rank_prefix_matrix": np.array(handle[0]),
            "recv_src_idx": handle.recv_src_idx[:num_recv].copy(),
            "recv_topk_idx": recv_topk_idx.copy(),
            "recv_topk_weights": recv_topk_weights[:num_recv].copy(),
            "recv_x": recv_x[:num_recv].copy(),
            "num_recv_tokens_per_expert_list": np.array(per_expert, dtype=np.int64),
        }

        def experts():
            first_expert = comm.rank * (settings.num_experts // comm.size)
            y = job.experts.apply(arrays["recv_x"], recv_topk_idx[:num_recv],
                                  arrays["recv_topk_weights"], first_expert)
            if settings.combine == "pull":
                recv_x[:num_recv] = y
                return recv_x, recv_topk_weights
            pushed = np.zeros_like(recv_x)
            pushed[:num_recv] = y
            return pushed, recv_topk_weights.copy()

        y, weights = timed("experts", experts)
        combined_x, combined_topk_weights, _ = timed(
            "combine", lambda: buffer.combine(y, handle, topk_weights=weights))
        arrays["combined_x"] = np.array(combined_x)
        arrays["combined_topk_weights"] = np.array(combined_topk_weights)
        executor = comm.executor
        return RankOutput(
            arrays=arrays,
            num_tokens_per_rank=np.array(num_tokens_per_rank),
            seconds=seconds,
            counters=executor.counters(),
            symbols=symbols + buffer.last_launch,
            executor=executor.name,
            arch=executor.arch,
            virtual_ns=executor.now if executor.name == "emu" else None,
        )


def _row_bytes(settings):
    return settings.hidden * reference.BF16_BYTES


def _worst_tokens(job, settings):
    """Rows that hold what a rank could receive at most, or 0 without worst-case mode."""
    return sum(len(x) for x in job.xs) if settings.worst else 0


def _arena_bytes(job, settings):
    """The arena of worst-case mode, in which nobody waits for it to grow; else 0: it grows.

    Room for the result and for the rows that combine may be sent, in which a token has one row
    per rank at most, each array on lines of its own.
    """
    if not settings.worst:
        return 0
    staged = max(map(len, job.xs)) * min(settings.num_ranks, settings.num_topk)
    row_bytes = _row_bytes(settings) + 12 * settings.num_topk + 4
    lines = -(-(_worst_tokens(job, settings) + staged) * row_bytes // ARENA_LINE) + 8
    return lines * ARENA_LINE


def _figures(rank, output, settings):
    idx = output.arrays["recv_topk_idx"]
    hits = Counter(idx[idx >= 0].tolist())
    num_recv = len(output.arrays["recv_x"])
    num_tokens = len(output.arrays["combined_x"])
    num_sent = int(output.num_tokens_per_rank.sum())
    counters = output.counters
    return RankFigures(
        rank=rank,
        num_tokens=num_tokens,
        num_sent=num_sent,
        num_recv=num_recv,
        num_experts_hit=len(hits),
        busiest_share=max(hits.values(), default=0) / max(1, hits.total()),
        warp_instructions=counters.get("warp_instructions"),
        wire_bytes=_total([counters.get("peer_store_bytes"), counters.get("peer_load_bytes")]),
        logical_bytes=2 * num_recv * _row_bytes(settings),  # there and back
    )


def _total(counts):
    """The sum, or None where nothing was counted."""
    counts = list(counts)
    return None if None in counts else sum(counts)


def _counted(number, noun):
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _headline(report):
    s = report.settings
    num_tokens = sum(r.num_tokens for r in report.ranks)
    return (f"{_counted(s.num_ranks, 'rank')}, {_counted(num_tokens, 'token')} "
            f"({s.unit}, {report.vocabulary_size} distinct), hidden {s.hidden}, "
            f"{_counted(s.num_experts, 'expert')}, top-{s.num_topk} in {s.num_topk_groups} of "
            f"{_counted(s.num_groups, 'group')}, seed {s.seed}")


def _megabytes(nbytes):
    return "-" if nbytes is None else f"{nbytes / 1e6:.2f}"


def _instructions(number):
    return "-" if number is None else f"{number:,}"


def _table(report):
    num_local_experts = report.settings.num_experts // report.settings.num_ranks
    lines = [("rank", "tokens", "rows sent", "rows recv", "experts hit", "busiest",
              "warp instr", "wire MB", "logical MB")]
    lines += [(str(r.rank), str(r.num_tokens), str(r.num_sent), str(r.num_recv),
               f"{r.num_experts_hit}/{num_local_experts}", f"{100 * r.busiest_share:.0f} %",
               _instructions(r.warp_instructions), _megabytes(r.wire_bytes),
               _megabytes(r.logical_bytes)) for r in report.ranks]
    ranks = report.ranks
    hit = sum(r.num_experts_hit for r in ranks)
    lines.append(("all", str(sum(r.num_tokens for r in ranks)), str(sum(r.num_sent for r in ranks)),
                  str(sum(r.num_recv for r in ranks)), f"{hit}/{report.settings.num_experts}", "",
                  _instructions(_total(r.warp_instructions for r in ranks)),
                  _megabytes(_total(r.wire_bytes for r in ranks)),
                  _megabytes(sum(r.logical_bytes for r in ranks))))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
            for line in lines]


def _summary(report):
    s, wall_s = report.settings, report.wall_s
    executor, pace = f"{report.executor}, {report.arch}", ""
    if report.executor == "emu":
        executor += f", scheduler {s.scheduler}, checks {s.checks}"
        pace = f"; {report.ns_per_warp_instruction:.1f} ns per warp instruction"
    lines = [
        f"executor      {executor}",
        f"kernels       {' '.join(dict.fromkeys(report.symbols))}",
        f"wall time     dispatch {wall_s['dispatch']:.2f} s, experts {wall_s['experts']:.2f} s, "
        f"combine ({s.combine}) {wall_s['combine']:.2f} s, check {wall_s['check']:.2f} s{pace}",
        f"bit-exact     {'yes' if report.bit_exact else 'NO'}",
    ]
    if report.virtual_ns is not None:
        lines.insert(2, f"virtual time  {report.virtual_ns / 1e3:.1f} us (the CPU executor's "
                        "clock, no GPU's)")
    return lines + [f"              {mismatch}" for mismatch in report.mismatches]
