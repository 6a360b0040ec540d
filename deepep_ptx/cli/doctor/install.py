# SPDX-License-Identifier: MIT
"""Checks of what is installed: Python, packages, this package's extensions and kernels."""

import importlib
import platform
import re
import tomllib
from importlib import metadata
from pathlib import Path

import deepep_ptx
from deepep_ptx import select
from deepep_ptx.cli import catalogue
from deepep_ptx.cli.doctor.result import OK, PROBLEM, WARNING, Result
from deepep_ptx.errors import DeepEPError
from deepep_ptx.toolchain import ptxas

EXTENSIONS = ("_arguments", "_array", "_buffer", "_call", "_calls", "_cuda", "_dlpack", "_emu",
              "_emu_executor", "_emu_graph", "_emu_image", "_errors", "_executor", "_launcher",
              "_lending", "_limits", "_low_latency", "_low_latency_calls", "_mappings", "_results",
              "_slots", "_symmetric", "_torch")

# Package -> (its distributions, what it is for).
_OPTIONAL = {
    "torch": (["torch"], "torch tensors, torch.distributed groups"),
    "cupy": (["cupy", "cupy-cuda12x", "cupy-cuda13x"], "CuPy arrays"),
    "mpi4py": (["mpi4py"], "MPI groups"),
    "matplotlib": (["matplotlib"], "plots"),
    "cuda-core": (["cuda-core"], "streams and memory of cuda.core"),
}
_BUILD_AGAIN = "build again: pip install ., or make build in a clone"
_PARAMETERS = re.compile(r"\.entry \w+\(\.param \.align \d+ \.b8 \w+\[(\d+)\]\)")


def python(machine):
    """The interpreter and the platform."""
    version, system = platform.python_version(), f"{platform.system()} {platform.machine()}"
    text = f"Python {version} on {system}, deepep_ptx {deepep_ptx.__version__}"
    if system not in ("Linux x86_64", "Linux aarch64"):
        yield Result("python", PROBLEM, text, "use Linux on x86-64 or aarch64, nothing else is "
                                              "supported")
    else:
        yield Result("python", OK, text)


def packages(machine):
    """What the package needs, in versions that it was made for."""
    for requirement in _requirements():
        name, _, least = requirement.partition(">=")
        found = _version(name)
        if found is None:
            yield Result(name, PROBLEM, "is not installed", f"pip install '{requirement}'")
        elif least and _numbers(found) < _numbers(least):
            yield Result(name, PROBLEM, f"{found} is too old", f"pip install '{requirement}'")
        else:
            yield Result(name, OK, found)


def optional_packages(machine):
    """What the package uses where it is there."""
    for name, (distributions, purpose) in _OPTIONAL.items():
        versions = [found for found in map(_version, distributions) if found]
        yield Result(name, OK, versions[0] if versions
                     else f"not installed; optional, for {purpose}")


def _requirements():
    """Requirements of the base install, such as "numpy>=1.26"."""
    project = Path(deepep_ptx.__file__).parents[1] / "pyproject.toml"
    if project.is_file():                # a clone: what is installed may be another version
        return tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    return [text for text in metadata.requires("deepep_ptx") or [] if ";" not in text]


def _version(distribution):
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version):
    return [int(number) for number in re.findall(r"\d+", version)]


def extensions(machine):
    """Whether every extension module is there and loads."""
    failed = {}
    for name in EXTENSIONS:
        try:
            importlib.import_module(f"deepep_ptx.{name}")
        except ImportError as error:
            failed[name] = error
    for name, error in failed.items():
        yield Result("extensions", PROBLEM, f"{name} does not load: {error}", _BUILD_AGAIN)
    if not failed:
        yield Result("extensions", OK, f"all {len(EXTENSIONS)} load")


def kernels(machine):
    """Whether the rendered PTX is whole and made for this build of the extensions."""
    try:
        from deepep_ptx._buffer import param_bytes

        table = select.load_table()["variants"]
        texts = [select.read_text(variant) for variant in table]
    except FileNotFoundError as error:
        yield Result("kernels", PROBLEM, f"{error.filename} is not there", _BUILD_AGAIN)
        return
    except ImportError as error:
        yield Result("kernels", PROBLEM, f"nothing to compare them with: {error}", _BUILD_AGAIN)
        return
    except DeepEPError as error:
        yield Result("kernels", PROBLEM, str(error))
        return
    wrong = [f"{variant['arch']}/{variant['symbol']}"
             for variant, text in zip(table, texts, strict=True)
             if {variant["param_bytes"], _param_bytes(text)} != {param_bytes(variant["kernel"])}]
    if wrong:
        yield Result("kernels", PROBLEM, f"parameter blocks of other sizes in the extensions and "
                                         f"the PTX: {', '.join(wrong)}", _BUILD_AGAIN)
    elif catalogue.is_stale():
        yield Result("kernels", WARNING, catalogue.STALE, "make gen")
    else:
        yield Result("kernels", OK, f"{len(table)} variants for {', '.join(catalogue.archs())}, "
                                    "parameter sizes as in the extensions")


def _param_bytes(text):
    match = _PARAMETERS.search(text)
    return int(match[1]) if match else 0


def assembler(machine):
    """ptxas and nvdisasm, which nothing needs to run."""
    try:
        tools = ptxas.find()
    except (ptxas.ToolError, OSError) as error:
        yield Result("ptxas", OK, f"not found; optional, to lint and lock kernels ({error})")
    else:
        yield Result("ptxas", OK, f"{tools.ptxas_version}, nvdisasm {tools.nvdisasm_version}")
