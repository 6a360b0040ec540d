# SPDX-License-Identifier: MIT
"""The same job with bf16 and with fp8 rows: what the smaller rows cost in accuracy."""

from dataclasses import dataclass

import numpy as np

from deepep_ptx.cli.demo.experts import as_float32
from deepep_ptx.cli.demo.report import (
    MODE_LINE,
    DemoReport,
    aligned,
    executor_line,
    headline,
    megabytes,
)
from deepep_ptx.emu.coverage import brief, paragraphs

TIMED_ROUNDS = 20   # of each call, on GPUs


@dataclass(frozen=True)
class Errors:
    """How far combined_x is from the exact result, relative to the exact result's RMS.

    rms: root mean square of the differences.  max: the largest of them.
    """

    rms: float
    max: float


@dataclass(frozen=True, eq=False)
class DtypesReport:
    """What `compare_dtypes` found, by dtype.  `str(report)` is what the command prints.

    errors: of the runs that came to their end.
    """

    reports: dict[str, DemoReport]
    errors: dict[str, Errors]

    @property
    def bit_exact(self):
        """True if every run was."""
        return all(report.bit_exact for report in self.reports.values())

    def __str__(self):
        first = next(iter(self.reports.values()))
        unit = "instr" if first.executor == "emu" else "us"
        lines = [("rows", "combine", "rms error", "max error", "wire MB", "payload MB",
                  f"dispatch {unit}", f"combine {unit}", "bit-exact")]
        lines += [(dtype, report.settings.way, *self._errors(dtype),
                   megabytes(report.wire_bytes), megabytes(report.payload_bytes),
                   *(_cost(report, phase) for phase in ("dispatch", "combine")),
                   "yes" if report.bit_exact else "NO")
                  for dtype, report in self.reports.items()]
        return "\n".join([
            headline(first), "", *aligned(lines), "",
            f"executor      {executor_line(first)}",
            *([MODE_LINE] if first.settings.mode == "ll" else []),
            "errors        of the combined rows against float64, relative to their RMS there",
            *_explained(first),
            *(f"              {dtype}: {mismatch}" for dtype, report in self.reports.items()
              for mismatch in report.mismatches),
            *(f"not executed  {dtype}: {brief(report.not_executed)}"
              for dtype, report in self.reports.items() if report.not_executed is not None)])

    def _errors(self, dtype):
        errors = self.errors.get(dtype)
        return (f"{errors.rms:.2e}", f"{errors.max:.2e}") if errors else ("-", "-")

    def lines_not_executed(self):
        """Lines of text: what each job did not execute; none on GPUs."""
        lines_of = {dtype: report.not_executed for dtype, report in self.reports.items()}
        return [] if None in lines_of.values() else list(paragraphs(lines_of))


def _explained(report):
    """Lines on bytes and costs."""
    payload = ("payload       rows between different ranks, there and back, without words of the "
               "protocol")
    layout = "; dispatch with its layout" if report.settings.mode == "normal" else ""
    if report.executor == "emu":
        return ["wire          what kernels stored to, or loaded from, other ranks", payload,
                f"instr         warp instructions of all ranks, waits included{layout}",
                "              no times: the CPU executor's say nothing about a GPU's"]
    return [payload, f"us            median of {TIMED_ROUNDS} calls between events, of the slowest "
                     f"rank{layout}"]


def _cost(report, phase):
    """Warp instructions, or microseconds on GPUs; "-" for what was not run."""
    if report.executor == "emu":
        return f"{report.instructions[phase]:,}" if phase in report.instructions else "-"
    return f"{report.median_us[phase]:.1f}" if phase in report.median_us else "-"


def exact_results(job, bar):
    """float64 [T_r, H] of each rank: sum over k of w_k * f_e(x), nothing rounded on the way.

    `job` has the rows as their source has them.
    """
    results = []
    for x, topk_idx, weights in zip(job.xs, job.topk_idxs, job.topk_weights, strict=True):
        results.append(job.experts.weighted_sum(as_float64(x), topk_idx, weights))
        bar.update()
    return results


def as_float64(x):
    """Rows, bfloat16 or FP8 with scales, as float64: exact."""
    if not isinstance(x, tuple):
        return as_float32(x).astype(np.float64)
    elements, scales = x
    groups = elements.astype(np.float64).reshape(*scales.shape, -1)
    return (groups * scales[:, :, None].astype(np.float64)).reshape(elements.shape)


def errors_of(combined_xs, exact):
    """`Errors` of the ranks' combined_x together."""
    want = np.concatenate(exact)
    difference = np.concatenate([as_float64(x) for x in combined_xs]) - want
    scale = np.sqrt(np.mean(want**2))
    with np.errstate(invalid="ignore", divide="ignore"):    # a job of zeros has no scale
        return Errors(rms=float(np.sqrt(np.mean(difference**2)) / scale),
                      max=float(np.abs(difference).max() / scale))
