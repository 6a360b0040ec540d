# SPDX-License-Identifier: MIT
"""`deepep-ptx info`: what would run here."""

import os
import platform
from importlib import metadata

import deepep_ptx
from deepep_ptx import _cuda, select
from deepep_ptx.cli.options import HELP
from deepep_ptx.cli.tables import aligned
from deepep_ptx.errors import DeepEPError
from deepep_ptx.runtime import ARCHS, EXECUTORS
from deepep_ptx.toolchain import ptxas


def add(commands):
    info = commands.add_parser("info", help="what would run here: executor, variants, tools")
    info.add_argument("--arch", choices=ARCHS, help=HELP["arch"])
    info.add_argument("--policy", help=HELP["policy"])
    info.set_defaults(command=_info)


def _info(args):
    facts = list(_facts(args))
    width = max(len(name) for name, _ in facts) + 2
    for name, value in facts:
        print(f"{name:<{width}}{value}")
    return 0


def _facts(args):
    """(name, text) of each line of `info`."""
    gpu, gpu_arch, cta_smem = _gpu()
    arch = args.arch or gpu_arch or ARCHS[-1]
    policy, origin = select.requested_policy(args.policy)
    table = select.load_table()
    executor = os.environ.get("DEEPEP_PTX_EXECUTOR") or ("cuda" if gpu_arch else "emu")
    if executor not in EXECUTORS[1:]:
        raise ValueError(f"DEEPEP_PTX_EXECUTOR: {executor!r} is not one of "
                         f"{', '.join(map(repr, EXECUTORS[1:]))}")
    if executor == "cuda" and not gpu_arch:
        raise DeepEPError("DEEPEP_PTX_EXECUTOR: 'cuda' is asked for, and nothing would run; gpu: "
                          f"{gpu}")
    chosen = select.choose(policy, arch, origin=origin,
                           cta_smem=cta_smem if executor == "cuda" else None)
    yield "deepep_ptx", deepep_ptx.__version__
    yield "python", f"{platform.python_version()}, " + ", ".join(
        f"{name} {metadata.version(name)}" for name in ("numpy", "ml_dtypes"))
    yield "executor", f"{executor} (of emu, which runs the rendered PTX on the CPU, and cuda)"
    yield "gpu", gpu
    yield "arch", f"{arch} (of {', '.join(sorted({v['arch'] for v in table['variants']}))})"
    paths = {v["path"]: None for v in table["variants"] if v["path"] and not v["policy"]}
    yield "policy", f"{policy} (of {', '.join([*table['aliases'], *table['policies'], *paths])})"
    yield "variants", f"{len(table['variants'])} shipped; chosen:"
    for line in aligned([(kernel, variant["symbol"],
                          f"{variant['policy']} at a {variant['site']} site"
                          if variant["policy"] else "")
                         for kernel, variant in chosen.items()]):
        yield "", line
    yield "ptxas", _ptxas()


def _gpu():
    """(text, target, bytes of shared memory of a CTA) of the first GPU; None and None where no GPU
    can be used."""
    count = _cuda.device_count()
    if not count:
        return f"none usable: {_cuda.why_not()}", None, None
    try:
        first = _cuda.CudaExecutor(0)
    except DeepEPError as error:
        return f"none usable: {error}", None, None
    return (f"{count} usable; GPU 0 is {first.device_name}, {first.arch}", first.arch,
            first.cta_smem)


def _ptxas():
    try:
        tools = ptxas.find()
    except ptxas.ToolError as error:
        return f"not found, not needed to run ({error})"
    return f"{tools.ptxas_version}, nvdisasm {tools.nvdisasm_version}"
