# SPDX-License-Identifier: MIT
"""Builds deepep_ptx: generated layouts and PTX first, then the Cython extensions over plain C."""

import os
import sys
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
    "_lending": ["cysrc/lending"],
    "_limits": [],
    "_mappings": [],
    "_results": [],
    "_slots": [],
    "_symmetric": [],
    "_torch": [],
    "_buffer": ["cysrc/core"],
    "_emu": ["cysrc/emu/device", "cysrc/emu/host"],
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
]
# What Cython writes is not ours to keep free of these.
CYTHON_ARGS = ["-Wno-unused-parameter", "-Wno-missing-field-initializers", "-Wno-unused-function"]


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
            extra_compile_args=COMPILE_ARGS,
            extra_link_args=["-pthread"],
        )
        for name in C_SOURCES
    ]


class BuildPy(build_py):
    """Copies the rendered PTX too, so it has to be there first."""

    def run(self):
        attempt(generate, ROOT)
        super().run()


class BuildExt(build_ext):
    """Generates, runs Cython, and compiles what is older than anything it read."""

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
        if not (self.inplace or self.debug):
            # A package has no use for symbols: most of an object's bytes, a third of compilation.
            for extension in self.distribution.ext_modules:
                extension.extra_compile_args = [*extension.extra_compile_args, "-g0"]
                extension.extra_link_args = [*extension.extra_link_args, "-Wl,--strip-all"]
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def build_extensions(self):
        headers = [*(ROOT / "cysrc").rglob("*.h"), *(ROOT / "deepep_ptx/include").rglob("*.h")]
        for extension in self.extensions:
            extension.depends = relative([*headers, ROOT / "setup.py"])
            if self.sanitize:
                extension.extra_compile_args += [*self.sanitize.split(), "-O1", "-g1"]
                extension.extra_link_args += self.sanitize.split()
        compile_one = self.compiler._compile

        def compile_if_stale(obj, src, ext, cc_args, extra_postargs, pp_opts):
            if stale(obj):
                if "build/cython" in Path(src).as_posix():
                    extra_postargs = [*extra_postargs, *CYTHON_ARGS]
                compile_one(obj, src, ext, cc_args, extra_postargs, pp_opts)

        self.compiler._compile = compile_if_stale
        super().build_extensions()


setup(ext_modules=extensions(), cmdclass={"build_py": BuildPy, "build_ext": BuildExt})
