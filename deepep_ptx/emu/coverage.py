# SPDX-License-Identifier: MIT
"""Source lines of kernels that a run did not execute; docs/coverage.md says what that means.

An instruction was executed if some thread of some rank did, with its guard true: a branch that
nobody took was not.
"""

import itertools
import textwrap
from dataclasses import dataclass

from deepep_ptx.emu.kernel import load_image

# Role files that only a refused call or a wait that gives up comes to.
OF_ERRORS = frozenset(f"ptx/role/{name}.inc" for name in (
    "dispatch/refuse_dispatch", "exchange/claim_call", "exchange/refuse_capacity",
    "fault/abort_rank", "fault/give_up", "fault/report", "fault/stuck", "fault/tell_abort",
    "fault/tell_peers", "fault/write_report"))
WIDTH = 100


@dataclass(frozen=True)
class Coverage:
    """Of one kernel, in all its launches of a run.  A line is (source file, number).

    lines: that instructions came from.  missed: of which some instruction was not executed.
    nowhere: of which some statement was not executed in any of its copies; a line has several
    copies where its file is included several times.
    num_missed: instructions that were not executed, of num_instructions.
    """

    symbol: str
    lines: frozenset
    missed: frozenset
    nowhere: frozenset
    num_instructions: int
    num_missed: int


def coverage(*runs):
    """`Coverage` by symbol of each kernel that ran; what any of the runs executed counts.

    runs: each as `World.ran` gives it.
    """
    total = {}
    for ran in runs:
        for key, flags in ran.items():
            total[key] = total.get(key, False) | flags
    return {symbol: _of(symbol, text, flags) for (symbol, text), flags in sorted(total.items())
            if flags.any()}


def _of(symbol, text, flags):
    image = load_image(text, symbol)
    files = [file.decode() for file in image.files]
    places = image.lines[image.insns["line"][:len(flags)]]
    lines = [(files[place["file"]], int(place["line"])) for place in places]
    copies = {}         # (line, statement) -> whether any copy of it was executed
    for line, statement, executed in zip(lines, image.texts, flags, strict=False):
        copies[line, statement] = copies.get((line, statement), False) or bool(executed)
    return Coverage(
        symbol=symbol,
        lines=frozenset(lines),
        missed=frozenset(line for line, executed in zip(lines, flags, strict=True)
                         if not executed),
        nowhere=frozenset(line for (line, _), executed in copies.items() if not executed),
        num_instructions=len(flags),
        num_missed=int((~flags).sum()))


def ranges(lines):
    """Lines as words, one for each file: ["ptx/role/b.inc:1", "ptx/src/a.ptx:3-5,9"]."""
    by_file = {}
    for file, number in sorted(lines):
        by_file.setdefault(file, []).append(number)
    return [f"{file}:{','.join(map(_span, _runs(numbers)))}" for file, numbers in by_file.items()]


def _runs(numbers):
    """Ascending numbers as lists of successive ones."""
    for _, run in itertools.groupby(enumerate(numbers), lambda at: at[1] - at[0]):
        yield [number for _, number in run]


def _span(run):
    return str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}"


# -- what tools say ---------------------------------------------------------------------------

def not_executed(executor, symbol=None):
    """Lines that the run of `executor` has not executed so far, in the words of `ranges`: of the
    kernel `symbol`, or of none of the kernels that ran; without files that are of errors alone.
    None on GPUs, where nobody looks."""
    ran = executor.ran()
    return None if ran is None else missing([ran], symbol)


def missing(runs, symbol=None):
    """As `not_executed`, of several runs together, each as `World.ran` gives it."""
    found = coverage(*runs)
    kernels = [kernel for kernel in found.values() if symbol in (None, kernel.symbol)]
    executed = frozenset().union(*(kernel.lines - kernel.nowhere for kernel in kernels))
    lines = frozenset().union(*(kernel.lines for kernel in kernels)) - executed
    return ranges(line for line in lines if line[0] not in OF_ERRORS)


def brief(lines):
    """What `not_executed` gave, in half a line."""
    spans = [span.partition("-") for line in lines
             for span in line.rpartition(":")[2].split(",")]
    number = sum(int(last or first) - int(first) + 1 for first, _, last in spans)
    return f"{number} lines of the kernels, about which this says nothing; --lines lists them"


def paragraphs(lines_of):
    """Lines of text that say what was not executed.

    lines_of: whose lines, "" where there is nobody else -> what `not_executed` gave; those with the
    same lines are told together.
    """
    together = {}
    for name, lines in lines_of.items():
        together.setdefault(tuple(lines), []).append(name)
    yield "not executed, files of errors alone left out; the results say nothing about these lines:"
    for lines, names in together.items():
        whose = [f"{', '.join(names)}:"] if any(names) else []
        yield from textwrap.wrap("  ".join([*whose, *(lines or ["none"])]), WIDTH,
                                 initial_indent="  ", subsequent_indent="    ",
                                 break_long_words=False, break_on_hyphens=False)
