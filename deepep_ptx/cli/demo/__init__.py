# SPDX-License-Identifier: MIT
"""The main job: a text through a mixture-of-experts layer, its ranks joined by `Buffer`.

text -> tokens -> bfloat16 rows (corpus.py) -> group-limited gating (gating.py) -> layout, dispatch
-> experts -> combine (normal.py), or low-latency dispatch -> experts -> low-latency combine
(low_latency.py); every array that arrives is compared bit for bit with the reference.  Rows,
choices and weights may come from a file instead (jobfile.py), and rows may travel as FP8.

An expert is the function f_e(x) = h(a_e * x + b_e), h(z) = z * min(max(z + 3, 0), 6) / 6 (hard
SiLU), elementwise in float32 with two numbers a_e, b_e of its own: only operations that IEEE 754
rounds exactly, so that its bits depend on neither machine nor array shape.  A rank turns received
row x into y = bf16(sum over k of w_k * f_e(x)), k ascending over the choices that are its experts;
with low-latency calls each expert its rows into bf16(f_e(x)), and combine weighs them.

settings -> job -> ranks -> verdict -> report (or dtypes, for two runs) -> plot: one module each.
"""

import time

from tqdm import tqdm

from deepep_ptx import run_ranks
from deepep_ptx.cli import picture
from deepep_ptx.cli.demo import plot
from deepep_ptx.cli.demo.dtypes import (
    TIMED_ROUNDS,
    DtypesReport,
    Errors,
    errors_of,
    exact_results,
)
from deepep_ptx.cli.demo.experts import Experts
from deepep_ptx.cli.demo.job import Job, load, prepare
from deepep_ptx.cli.demo.ranks import CALLS, PHASES, RankOutput, rank_main
from deepep_ptx.cli.demo.report import DemoReport, RankFigures, figures, make_report
from deepep_ptx.cli.demo.settings import (
    ARCHS,
    CHECKS,
    COMBINE_MODES,
    DTYPES,
    EXECUTORS,
    MODES,
    Settings,
)
from deepep_ptx.cli.demo.traffic import Traffic
from deepep_ptx.cli.demo.verdict import Mismatch, check, compare


def run(**settings):
    """Run the main job once; keywords are the fields of `Settings`.

    Returns a `DemoReport`; a wrong bit is in its `mismatches`, not an exception.

    Raises:
        ValueError: settings that cannot be met, naming the setting, or an unreadable file.
        RankError: a rank failed; its `__cause__` says why.
    """
    settings = Settings(**settings)
    picture.require(settings.plot)
    job = prepare(settings)
    _save(job)
    with _bar(_steps(job)) as bar:
        report, _ = _run(job, bar)
    _draw(report)
    return report


def compare_dtypes(**settings):
    """Run the job with bf16 and with fp8 rows; keywords as of `run`.

    The exact result that both are held against is float64, of the rows as the text or the file
    has them.  save_input and plot are of the run with `dtype`, or with the input's.

    Returns a `DtypesReport`; raises as `run`.
    """
    settings = Settings(**settings)
    picture.require(settings.plot)
    source = load(settings)
    jobs = {dtype: source.cast(dtype) for dtype in DTYPES}
    chosen = settings.dtype or source.settings.dtype
    _save(jobs[chosen])
    reports, errors = {}, {}
    with _bar(source.settings.num_ranks + sum(map(_steps, jobs.values()))) as bar:
        bar.set_description("float64")
        exact = exact_results(source, bar)
        for dtype, job in jobs.items():
            bar.set_description(dtype)
            reports[dtype], outputs = _run(job, bar, TIMED_ROUNDS)
            if "combine" in reports[dtype].wall_s:
                errors[dtype] = errors_of([o.arrays["combined_x"] for o in outputs], exact)
    _draw(reports[chosen])
    return DtypesReport(reports, errors)


def expected(job):
    """Each rank's arrays by the reference, name -> array."""
    return CALLS[job.settings.mode].expected(job)


def _run(job, bar, timed_rounds=0):
    """(DemoReport, RankOutput of each rank) of one run."""
    settings = job.settings
    started = time.perf_counter()
    wanted = list(expected(job))
    reference_s = time.perf_counter() - started
    outputs = run_ranks(rank_main, settings.num_ranks, job, wanted, bar, timed_rounds,
                        executor=settings.executor, arch=settings.arch, seed=settings.seed,
                        scheduler=settings.scheduler, checks=settings.checks)
    started = time.perf_counter()
    mismatches = check(outputs, wanted, bar)
    check_s = reference_s + time.perf_counter() - started
    return make_report(job, outputs, mismatches, check_s), outputs


def _steps(job):
    """How often the bar moves in a run: in each phase and in the check, once for each rank."""
    return job.settings.num_ranks * (len(PHASES) + 1)


def _bar(steps):
    # On a terminal only, and only for what takes more than two seconds.
    return tqdm(total=steps, unit="step", delay=2, leave=False, disable=None)


def _save(job):
    if job.settings.save_input is not None:
        job.save(job.settings.save_input)


def _draw(report):
    if report.settings.plot is not None:
        plot.draw(report, report.settings.plot)


__all__ = [
    "ARCHS", "CHECKS", "COMBINE_MODES", "DTYPES", "EXECUTORS", "MODES", "DemoReport",
    "DtypesReport", "Errors", "Experts", "Job", "Mismatch", "RankFigures", "RankOutput",
    "Settings", "Traffic", "check", "compare", "compare_dtypes", "errors_of", "exact_results",
    "expected", "figures", "load", "make_report", "prepare", "run",
]
