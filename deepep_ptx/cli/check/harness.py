# SPDX-License-Identifier: MIT
"""A PTX file of the user's, run by a harness: a Python file with `def run(world, *kernels)`."""

import importlib.util
import os
import traceback
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from deepep_ptx._emu import MAX_RANKS, World
from deepep_ptx.checks import check_int
from deepep_ptx.cli.check.executed import packed
from deepep_ptx.cli.check.findings import Finding, Result, of_race, options_of
from deepep_ptx.emu.kernel import load_image
from deepep_ptx.errors import KernelFault


@dataclass(frozen=True)
class Harness:
    """A harness that was loaded.

    run: its function.  entries: names of the kernels that it takes, in the order of its arguments;
    None: the text's only one.  ranks: of the world that it gets.
    """

    run: object
    entries: tuple[str | None, ...]
    ranks: int


@dataclass(frozen=True)
class HarnessRun:
    """One run of a harness.  file, harness: paths.  ranks: None = as many as the harness says."""

    file: str
    harness: str
    ranks: int | None
    scheduler: str
    seed: int
    memory: str

    @property
    def variants(self):
        """One row, of the file."""
        return [{"file": self.file, "kernel": ", ".join(self.symbols), "harness": self.harness}]

    @property
    def symbols(self):
        """Names of its kernels."""
        return [load_image(read(self.file), entry, self.file).symbol
                for entry in load(self.harness).entries]

    @property
    def texts(self):
        """Name of each kernel -> the file."""
        return dict.fromkeys(self.symbols, self.file)

    def command(self, kernel):
        """What replays it; the kernel is the file."""
        return (f"deepep-ptx check {self.file} --harness {self.harness}"
                + (f" --ranks {self.ranks}" if self.ranks else "") + f" {options_of(self)}")

    def kernel_of(self, text):
        """The file."""
        return text

    def as_dict(self):
        """For JSON."""
        return asdict(self)

    def result(self):
        """Run it: its `Result`."""
        harness = load(self.harness)
        world = World(self.ranks or harness.ranks, scheduler=self.scheduler, seed=self.seed,
                      check="races", memory=self.memory)
        kernels = [world.load(read(self.file), entry, self.file) for entry in harness.entries]
        found = []
        try:
            harness.run(world, *kernels)
            if not any(world.counters(rank)["warp_instructions"]
                       for rank in range(world.num_ranks)):
                raise RuntimeError("no kernel ran: run() must launch what it gets, and call "
                                   "world.run()")
        except (Exception, SystemExit) as error:     # a harness that exits has not passed
            found.append(self._of_error(error))
        races = [of_race(race, self.texts) for race in world.races()]
        return Result([*races, *found], packed(world.ran(), self.texts))

    def _of_error(self, error):
        if isinstance(error, KernelFault):
            return Finding("FAULT", error.kind, (self.file,), (error.file, error.line),
                           f"FAULT {error}")
        frames = _frames(error, self.harness)
        verdict = "WRONG" if isinstance(error, AssertionError) else "FAULT"
        lines = [f"{verdict} in the harness:\n", *traceback.format_list(frames),
                 *traceback.format_exception_only(error)]
        return Finding(verdict, type(error).__name__, (self.file,),
                       tuple(frame.lineno for frame in frames), "".join(lines).rstrip())


def _frames(error, path):
    """Where an exception came through a file, which is named as it was given."""
    return [traceback.FrameSummary(path, frame.lineno, frame.name, line=frame.line)
            for frame in traceback.extract_tb(error.__traceback__)
            if os.path.realpath(frame.filename) == os.path.realpath(path)]


def load(path):
    """The `Harness` in a file; loaded once, as long as the file stays as it is.

    Raises:
        ValueError: it cannot be loaded, or is none; the text begins with the option.
    """
    try:
        return _load(path, Path(path).stat().st_mtime_ns)
    except OSError as error:
        raise ValueError(f"--harness: cannot read {path}: {error.strerror}") from error


@lru_cache
def _load(path, _):
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None:
        raise ValueError(f"--harness: must be a Python file, got {path}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in _frames(error, path)]
        line = getattr(error, "lineno", None) or (lines[-1] if lines else None)
        raise ValueError(f"--harness: {path}{f':{line}' if line else ''}: "
                         f"{type(error).__name__}: {error}") from error
    if not callable(getattr(module, "run", None)):
        raise ValueError(f"--harness: {path} must have a function run(world, *kernels)")
    entries = getattr(module, "ENTRY", None)
    try:
        ranks = check_int(getattr(module, "RANKS", 1), "RANKS", 1, MAX_RANKS)
    except (TypeError, ValueError) as error:
        raise ValueError(f"--harness: {path}: {error}") from error
    return Harness(module.run, tuple(entries) if isinstance(entries, list | tuple) else (entries,),
                   ranks)


def read(path):
    """A text file.

    Raises:
        ValueError: it cannot be read; the text begins with the argument.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"FILE: cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"FILE: {path} is no text: {error}") from error


def runs_of(file, harness, *, ranks=None, schedulers, seeds, memory="sc"):
    """`HarnessRun`s, schedulers and seeds in turn.

    Raises:
        PtxError: the text has what the executor does not execute.
        ValueError: what cannot be loaded; the text begins with the argument or the option.
    """
    loaded, text = load(harness), read(file)
    for entry in loaded.entries:
        try:
            load_image(text, entry, file)
        except ValueError as error:
            raise ValueError(f"--harness: {harness}: ENTRY: {error}") from error
    return [HarnessRun(file, harness, ranks, scheduler, seed, memory)
            for scheduler in schedulers for seed in seeds]
