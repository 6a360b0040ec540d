# SPDX-License-Identifier: MIT
"""Checks of GPUs, of the ways between them and of what containers take away."""

import functools
import shutil
from importlib import metadata

from deepep_ptx.cli import environment
from deepep_ptx.cli.doctor.child import ChildError
from deepep_ptx.cli.doctor.result import OK, PROBLEM, WARNING, Result

NO_GPU = "no GPU: only the CPU executor runs"

MIN_ARCH = 80
_GIB = 1 << 30
_SHARE_LIMIT_S = 60
_NVSHMEM = ("nvidia-nvshmem-cu12", "nvidia-nvshmem-cu13", "nvshmem4py-cu12", "nvshmem4py-cu13")


def needs_gpu(check):
    """A check that has nothing to say where there is no GPU, which `driver` says."""
    @functools.wraps(check)
    def checked(machine):
        if machine.gpus:
            yield from check(machine)
    return checked


def driver(machine):
    """libcuda and its version."""
    found = machine.driver
    if found["gpus"]:
        yield Result("driver", OK, f"for CUDA {_cuda(found['version'])}, at least "
                                   f"{_cuda(found['least'])} is needed")
    elif found["broken"]:
        yield Result("driver", PROBLEM, f"asking it failed: {found['why']}",
                     "see whether nvidia-smi answers; reload or reinstall the driver")
    elif machine.gpu_nodes and not environment.hides_gpus(machine.environ):
        yield Result("driver", PROBLEM,
                     f"/dev/{machine.gpu_nodes[0]} is there, but {found['why']}",
                     "install or update the NVIDIA driver; in a container, give it the driver of "
                     "its host (--gpus all)")
    else:
        kept = not machine.gpu_nodes and (machine.root / "proc/driver/nvidia/version").is_file()
        yield Result("driver", WARNING, f"{NO_GPU} ({found['why']})",
                     "the host has a driver: start the container with --gpus all" if kept else "")


def _cuda(version):
    return f"{version // 1000}.{version % 1000 // 10}"


@needs_gpu
def gpus(machine):
    """Each GPU, against the oldest that text ships for."""
    for number, gpu in enumerate(machine.gpus):
        text = (f"{gpu['name']}, compute capability {gpu['arch'] / 10}, "
                f"{gpu['memory'] / _GIB:.0f} GiB")
        if gpu["arch"] < MIN_ARCH:
            yield Result(f"gpu {number}", PROBLEM, f"{text}: below 8.0",
                         "leave it out of CUDA_VISIBLE_DEVICES")
        else:
            yield Result(f"gpu {number}", OK, text)


@needs_gpu
def peers(machine):
    """Whether every GPU reaches the memory of every other."""
    links = machine.driver["links"]
    cut = [link for link in links if not link["access"]]
    if cut:
        yield Result("peers", PROBLEM, f"no access to each other's memory: {_pairs(cut)}",
                     "see `nvidia-smi topo -p2p r`; without NVLink, switch PCIe ACS and the IOMMU "
                     "off; no MIG; or use GPUs that reach each other")
    else:
        yield Result("peers", OK, f"all {len(machine.gpus)} GPUs reach each other's memory"
                     if links else "one GPU")


@needs_gpu
def nvlink(machine):
    """Whether the ways between GPUs carry atomics: NVLink does, PCIe does not."""
    links = [link for link in machine.driver["links"] if link["access"]]
    slow = [link for link in links if not link["atomics"]]
    ranks = ", ".join(str(rank) for rank in sorted({link["rank"] for link in links}))
    if slow:
        yield Result("nvlink", WARNING, f"over PCIe, without NVLink: {_pairs(slow)}",
                     "expect a fraction of the speed; see `nvidia-smi topo -m` and `nvidia-smi "
                     "nvlink -s`")
    else:
        yield Result("nvlink", OK, "between all GPUs that reach each other (performance rank "
                                   f"{ranks})" if links else "nothing to link")


def _pairs(links):
    """Pairs of GPUs in words: 0-1 both ways, 0>1 one way."""
    ways = {(link["from"], link["to"]) for link in links}
    return ", ".join(f"{a}{'-' if (b, a) in ways else '>'}{b}" for a, b in sorted(ways)
                     if a < b or (b, a) not in ways)


@needs_gpu
def ipc(machine):
    """Whether one process reads what another has on GPU 0: ranks as processes need it."""
    reached = {link["to"] for link in machine.driver["links"]
               if link["from"] == 0 and link["access"]}
    devices = [0, *sorted(reached)]
    fix = ("run all ranks in one container, with --ipc=host and --pid=host where there are "
           "several; no MIG, no WSL; or let ranks be threads: run_ranks")
    try:
        # The inner process ends first, and says more.
        found = machine.ask("share", devices, _SHARE_LIMIT_S, limit_s=2 * _SHARE_LIMIT_S)
    except ChildError as error:
        yield Result("ipc", PROBLEM, f"sharing memory with another process: {error}", fix)
        return
    failed = {device: why for device, why in found.items() if why}
    for device, why in failed.items():
        yield Result("ipc", PROBLEM, f"GPU {device}, in another process: {why}", fix)
    if not failed:
        yield Result("ipc", OK, "another process reads memory of GPU 0 on "
                                f"{'each GPU that reaches it' if len(devices) > 1 else 'it'}")


@needs_gpu
def shared_memory(machine):
    """Room for what torch.distributed and MPI keep there; this package keeps nothing there."""
    folder = machine.root / "dev/shm"
    total = shutil.disk_usage(folder).total if folder.is_dir() else 0
    text = f"{total / _GIB:.2f} GiB"
    if total < _GIB:
        yield Result("/dev/shm", WARNING, f"{text}: torch and MPI may want more",
                     "start the container with --ipc=host or --shm-size=1g")
    else:
        yield Result("/dev/shm", OK, text)


def rdma(machine):
    """What RDMA would need; this release has none."""
    peermem = (machine.root / "sys/module/nvidia_peermem").is_dir()
    installed = [f"{name} {metadata.version(name)}" for name in _NVSHMEM if _is_installed(name)]
    yield Result("rdma", OK, f"not in this release, nothing needed (nvidia-peermem "
                             f"{'' if peermem else 'not '}loaded, "
                             f"{', '.join(installed) or 'NVSHMEM not installed'})")


def _is_installed(name):
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
