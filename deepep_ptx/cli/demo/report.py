# SPDX-License-Identifier: MIT
"""What a run did, as numbers and as the table that the command prints."""

from dataclasses import dataclass, field

import numpy as np

from deepep_ptx.cli.demo.ranks import PHASES
from deepep_ptx.cli.demo.settings import Settings
from deepep_ptx.cli.demo.verdict import Mismatch
from deepep_ptx.emu.coverage import brief, paragraphs

MODE_LINE = "mode          low latency: low_latency_dispatch and low_latency_combine"


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


@dataclass(frozen=True, eq=False)
class DemoReport:
    """What `run` found.  `str(report)` is the table that the command prints.

    traffic: int64 [R, R], [s, d] = rows that rank s sent to rank d.
    expert_load: int64 [E], choices that arrived for each expert.
    payload_bytes: of rows that went to other ranks and came back from them.
    instructions: phase -> warp instructions of all ranks; {} on GPUs.
    median_us: phase -> median of the calls that were timed, of the slowest rank; {} if none was.
    """

    settings: Settings
    executor: str               # "emu" or "cuda"
    arch: str                   # "sm_90": the target whose kernels ran
    symbols: tuple
    ranks: list[RankFigures]
    traffic: np.ndarray
    expert_load: np.ndarray
    vocabulary_size: int | None # None: the input was a file
    virtual_ns: int | None      # of the whole run, on the CPU executor's clock
    wall_s: dict                # phase -> seconds, of those that were run
    not_executed: list | None   # lines of the kernels that ran, see `emu.coverage`; None on GPUs
    mismatches: list[Mismatch] = field(default_factory=list)
    payload_bytes: int = 0
    instructions: dict = field(default_factory=dict)
    median_us: dict = field(default_factory=dict)

    def lines_not_executed(self):
        """Lines of text; none on GPUs."""
        return [] if self.not_executed is None else list(paragraphs({"": self.not_executed}))

    @property
    def bit_exact(self):
        """True if every array of every rank is the reference's."""
        return not self.mismatches

    @property
    def communication_s(self):
        """Wall seconds of layout, dispatch and combine."""
        return self.wall_s["dispatch"] + self.wall_s.get("combine", 0)

    @property
    def ns_per_warp_instruction(self):
        """Wall nanoseconds of communication per warp instruction executed; None on GPUs."""
        num_instructions = total(r.warp_instructions for r in self.ranks)
        if num_instructions is None:
            return None
        return 1e9 * self.communication_s / max(1, num_instructions)

    @property
    def wire_bytes(self):
        """Of all ranks; None on GPUs."""
        return total(r.wire_bytes for r in self.ranks)

    @property
    def logical_bytes(self):
        """Of all ranks."""
        return sum(r.logical_bytes for r in self.ranks)

    def __str__(self):
        return "\n".join([headline(self), "", *_table(self), "", *_summary(self)])


def make_report(job, outputs, mismatches, check_s):
    """The `DemoReport` of a run's outputs."""
    wall_s = {phase: max(o.seconds[phase][1] for o in outputs)
              - min(o.seconds[phase][0] for o in outputs)
              for phase in PHASES if phase in outputs[0].seconds}
    return DemoReport(
        settings=job.settings,
        executor=outputs[0].executor,
        arch=outputs[0].arch,
        symbols=outputs[0].symbols,
        ranks=[figures(rank, output) for rank, output in enumerate(outputs)],
        traffic=np.stack([output.traffic.recv_from for output in outputs], axis=1),
        expert_load=np.concatenate([output.traffic.expert_load for output in outputs]),
        vocabulary_size=job.vocabulary_size,
        virtual_ns=(None if outputs[0].virtual_ns is None
                    else max(output.virtual_ns for output in outputs)),
        wall_s={**wall_s, "check": check_s},
        not_executed=outputs[0].not_executed,
        mismatches=mismatches,
        payload_bytes=sum(int(np.delete(output.traffic.payload_from, rank).sum())
                          for rank, output in enumerate(outputs)),
        instructions={phase: sum(output.instructions[phase] for output in outputs)
                      for phase in outputs[0].instructions},
        median_us={phase: float(np.median(np.max([o.rounds_us[phase] for o in outputs], axis=0)))
                   for phase in outputs[0].rounds_us},
    )


def figures(rank, output):
    """`RankFigures` of a rank's output."""
    traffic, counters = output.traffic, output.counters
    return RankFigures(
        rank=rank,
        num_tokens=output.num_tokens,
        num_sent=traffic.num_sent,
        num_recv=int(traffic.recv_from.sum()),
        num_experts_hit=int(np.count_nonzero(traffic.expert_load)),
        busiest_share=float(traffic.expert_load.max() / max(1, traffic.expert_load.sum())),
        warp_instructions=counters.get("warp_instructions"),
        wire_bytes=total([counters.get("peer_store_bytes"), counters.get("peer_load_bytes")]),
        logical_bytes=int(traffic.payload_from.sum()),
    )


def total(counts):
    """The sum, or None where nothing was counted."""
    counts = list(counts)
    return None if None in counts else sum(counts)


def headline(report):
    """The job in one line."""
    s = report.settings
    num_tokens = sum(r.num_tokens for r in report.ranks)
    if s.input is None:
        source, groups = f"{s.unit}, {report.vocabulary_size} distinct", \
            f" in {s.num_topk_groups} of {counted(s.num_groups, 'group')}"
    else:
        source, groups = s.input, ""
    return (f"{counted(s.num_ranks, 'rank')}, {counted(num_tokens, 'token')} ({source}), "
            f"hidden {s.hidden}, {counted(s.num_experts, 'expert')}, top-{s.num_topk}{groups}, "
            f"seed {s.seed}")


def megabytes(nbytes):
    """10**6 bytes, "-" where nobody counted."""
    return "-" if nbytes is None else f"{nbytes / 1e6:.2f}"


def aligned(lines):
    """Rows of cells as lines of text, columns flush right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
            for line in lines]


def executor_line(report):
    """What ran the kernels."""
    line = f"{report.executor}, {report.arch}"
    if report.executor == "emu":
        line += f", scheduler {report.settings.scheduler}, checks {report.settings.checks}"
    return line


def counted(number, noun):
    """Number and noun, the latter in the plural where it must be."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _instructions(number):
    return "-" if number is None else f"{number:,}"


def _table(report):
    num_local_experts = report.settings.num_experts // report.settings.num_ranks
    lines = [("rank", "tokens", "rows sent", "rows recv", "experts hit", "busiest",
              "warp instr", "wire MB", "logical MB")]
    lines += [(str(r.rank), str(r.num_tokens), str(r.num_sent), str(r.num_recv),
               f"{r.num_experts_hit}/{num_local_experts}", f"{100 * r.busiest_share:.0f} %",
               _instructions(r.warp_instructions), megabytes(r.wire_bytes),
               megabytes(r.logical_bytes)) for r in report.ranks]
    ranks = report.ranks
    hit = sum(r.num_experts_hit for r in ranks)
    lines.append(("all", str(sum(r.num_tokens for r in ranks)), str(sum(r.num_sent for r in ranks)),
                  str(sum(r.num_recv for r in ranks)), f"{hit}/{report.settings.num_experts}", "",
                  _instructions(total(r.warp_instructions for r in ranks)),
                  megabytes(report.wire_bytes), megabytes(report.logical_bytes)))
    return aligned(lines)


def _summary(report):
    s, wall_s = report.settings, report.wall_s
    pace = ""
    if report.executor == "emu":
        pace = f"; {report.ns_per_warp_instruction:.1f} ns per warp instruction"
    took = ", ".join(f"{f'combine ({s.way})' if phase == 'combine' else phase} {wall:.2f} s"
                     for phase, wall in wall_s.items())
    lines = [
        f"executor      {executor_line(report)}",
        f"kernels       {' '.join(dict.fromkeys(report.symbols))}",
        f"wall time     {took}{pace}",
        f"bit-exact     {'yes' if report.bit_exact else 'NO'}",
    ]
    if report.virtual_ns is not None:
        lines.insert(2, f"virtual time  {report.virtual_ns / 1e3:.1f} us (the CPU executor's "
                        "clock, no GPU's)")
    if s.mode == "ll":
        lines.insert(1, MODE_LINE)
    if s.dtype == "fp8":
        lines.insert(1, "rows          fp8 (e4m3) with a float32 scale per 128 elements, back in "
                        "bf16")
    lines += [f"              {mismatch}" for mismatch in report.mismatches]
    if "combine" not in wall_s:
        lines.append("combine       not run: it would begin with what dispatch got wrong")
    if report.not_executed is not None:
        lines.append(f"not executed  {brief(report.not_executed)}")
    return lines
