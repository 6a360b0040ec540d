# SPDX-License-Identifier: MIT
"""Builds deepep_ptx: generated layouts and PTX first, then the Cython extensions over plain C."""

import os
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))

import _tree  # noqa: E402, F401  (makes deepep_ptx.toolchain importable before the package is)

from deepep_ptx.toolchain import cuda  # noqa: E402
from deepep_ptx.toolchain.errors import ToolchainError  # noqa: E402
from deepep_ptx.toolchain.generate import generate  # noqa: E402

# Plain C sources of each extension; each has cysrc/deepep_ptx/<name>.pyx as well.
C_SOURCES = {
    "_arguments": [],
    "_array": [],
    "_call": [],
    "_calls": [],
    "_dlpack": [],
    "_errors": [],
    "_executor": [],
    "_launcher": [],
    "_lending": ["cysrc/lending"],
    "_limits": [],
    "_low_latency": [],
    "_low_latency_calls": [],
    "_mappings": [],
    "_results": [],
    "_slots": [],
    "_symmetric": [],
    "_torch": [],
    "_buffer": ["cysrc/core"],
    "_emu": ["cysrc/emu/device", "cysrc/emu/race", "cysrc/emu/host"],
    "_emu_executor": [],
    "_emu_graph": [],
    "_emu_image": [],
    "_cuda": ["cysrc/cuda"],
}

# No -march=native: a wheel runs on any machine of its architecture.  No contraction and no
# reassociation: results are compared bit for bit with the reference.
COMPILE_ARGS = [
    "-std=gnu11",
    "-O3",
    "-Wall",
    "-Wextra",
    "-fno-math-errno",
    "-ffp-contract=off",
    "-fvisibility=hidden",
    "-pthread",
    "-MMD",
    # What Cython writes is not ours to keep free of these.  `make lint-c` leaves them out.
    "-Wno-unused-parameter",
    "-Wno-missing-field-initializers",
    "-Wno-unused-function",
]
# Objects of the builds that are imported from this tree: in place, and editable ones.
OBJECTS = f"build/temp.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"


def relative(paths):
    return sorted(str(path.relative_to(ROOT)) for path in paths)


def stale(obj):
    """Whether an object is missing or older than what the compiler read for it (its .d file)."""
    target, rule = Path(obj), Path(obj).with_suffix(".d")
    if not (target.exists() and rule.exists()):
        return True
    read = rule.read_text().split(":", 1)[1].replace("\\\n", " ").split()
    newest = target.stat().st_mtime
    return any(not Path(p).exists() or Path(p).stat().st_mtime > newest for p in [*read, __file__])


def attempt(step, *args):
    """What `step` of the toolchain returns; bad input ends the build with one line."""
    try:
        return step(*args)
    except ToolchainError as error:
        raise SystemExit(f"setup: {error}") from None


def extensions():
    """One extension per .pyx; its C sources are all those of its folder."""
    found = {path.stem: path for path in (ROOT / "cysrc/deepep_ptx").glob("_*.pyx")}
    if found.keys() != C_SOURCES.keys():
        raise SystemExit(
            f"setup: cysrc/deepep_ptx has {sorted(found)}, setup.py builds {sorted(C_SOURCES)}"
        )
    plain = {
        name: [c for folder in folders for c in (ROOT / folder).glob("*.c")]
        for name, folders in C_SOURCES.items()
    }
    return [
        Extension(
            f"deepep_ptx.{name}",
            relative([found[name], *plain[name]]),
            include_dirs=["cysrc", "cysrc/gen", "deepep_ptx/include",
                          *([str(attempt(cuda.include))] if name == "_cuda" else [])],
        )
        for name in C_SOURCES
    ]


class BuildPy(build_py):
    """Copies the rendered PTX too, so it has to be there first."""

    def run(self):
        attempt(generate, ROOT)
        super().run()


class BuildExt(build_ext):
    """Generates, runs Cython, and compiles what is older than anything that its compiler read.

    `depends` of an extension would compile all of its sources: of the CPU executor's, 22 s of
    processor time in place of 1 for one of its files.
    """

    user_options = [*build_ext.user_options,
                    ("sanitize=", None, "flags of the compiler's sanitizers (tools/sanitize.py)")]

    def initialize_options(self):
        super().initialize_options()
        self.sanitize = ""

    def finalize_options(self):
        from Cython.Build import cythonize

        attempt(generate, ROOT)
        self.distribution.ext_modules = cythonize(
            self.distribution.ext_modules,
            include_path=["cysrc"],
            build_dir="build/cython",
            language_level=3,
        )
        if self.editable_mode:
            self.build_temp = OBJECTS       # and not a folder that goes with this build
        # Not later, since `run` clears `inplace`; anew each time, since an editable install comes
        # here once before it says that it is one.
        self.compile_args, self.link_args = [], []
        if self.sanitize:
            flags = self.sanitize.split()
            self.compile_args, self.link_args = [*flags, "-O1", "-g1"], flags
        elif not (self.inplace or self.editable_mode or self.debug):
            # A package has no use for symbols: most of an object's bytes, a third of compilation.
            self.compile_args, self.link_args = ["-g0"], ["-Wl,--strip-all"]
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def build_extension(self, ext):
        """Compiles the sources of stale objects, and links them with the others."""
        objects = self.compiler.object_filenames(ext.sources, output_dir=self.build_temp)
        current = {}
        for source, obj in zip(ext.sources, objects, strict=True):
            if stale(obj):
                Path(obj).unlink(missing_ok=True)
            else:
                current[source] = obj
        ext.depends = objects           # of which one that is missing makes the module stale
        ext.extra_objects = list(current.values())
        ext.sources = [source for source in ext.sources if source not in current]
        ext.extra_compile_args = [*COMPILE_ARGS, *self.compile_args]
        ext.extra_link_args = ["-pthread", *self.link_args]
        super().build_extension(ext)


setup(ext_modules=extensions(), cmdclass={"build_py": BuildPy, "build_ext": BuildExt})
