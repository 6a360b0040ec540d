# SPDX-License-Identifier: MIT
"""The environment variables that matter here: each is described once, in this table."""

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass

from deepep_ptx import poison, select, tuning, tuning_files
from deepep_ptx.errors import TuningError

WARNING, PROBLEM = "warning", "problem"


@dataclass(frozen=True)
class Finding:
    """What is wrong with a variable's value, and what to do."""

    severity: str        # WARNING or PROBLEM
    text: str
    fix: str


@dataclass(frozen=True)
class Variable:
    """One variable.

    does: its effect.  accepts: values, in words.  unset: what holds without it.  read: by whom,
    when.  judge: value -> a `Finding`, or None if the value is as good as any.
    """

    name: str
    does: str
    accepts: str
    unset: str
    read: str
    judge: Callable[[str], Finding | None] = lambda value: None


def _one_of(*accepted):
    def judge(value):
        if value not in accepted:
            return Finding(PROBLEM, f"{value!r} is not one of {', '.join(accepted)}",
                           f"set it to {' or '.join(accepted)}")
        return None
    return judge


def _judge_policy(value):
    """As the newest GPUs see it: some variants are for them only."""
    return _judge_choice(value, {"DEEPEP_PTX_POLICY": value})


def _judge_switch(value):
    return _judge_choice(value, {"DISABLE_AGGRESSIVE_PTX_INSTRS": value})


def _judge_choice(value, environ):
    table = select.load_table()
    newest = max(variant["arch"] for variant in table["variants"])
    try:
        policy, origin = select.requested_policy(environ=environ)
        chosen = select.choose(policy, newest, origin=origin)
    except ValueError as error:
        return Finding(PROBLEM, str(error).partition(": ")[2], "correct it, or unset it")
    undefined = {variant["symbol"]: None for variant in chosen.values()
                 if select.is_defined(variant) is False}
    if undefined:
        return Finding(WARNING, f"{value!r} picks loads that PTX does not define at their site: "
                                f"{', '.join(undefined)}",
                       "measure with it, serve with `fast`")
    return None


def _judge_tuning(value):
    """As far as the file alone can be judged: which GPU it has to fit is seen later."""
    try:
        tuning.load(value)
    except TuningError as error:
        return Finding(PROBLEM, f"{error.file}: {error.field}: must be {error.needed}, got "
                                f"{error.has!r}",
                       "name a file that `deepep-ptx tune` of this version has written, or unset "
                       "it")
    return None


def _judge_connections(value):
    if not value.isdecimal() or not 1 <= int(value) <= 32:
        return Finding(PROBLEM, f"{value!r} is not a number in 1..32", "set it to 32, or unset it")
    if int(value) < 32:
        return Finding(WARNING, f"{value}: ranks that share a GPU may wait for each other's "
                                "kernels in one hardware queue, for ever",
                       "set it to 32 where several ranks share a GPU")
    return None


def _judge_visible(value):
    if hides_gpus({"CUDA_VISIBLE_DEVICES": value}):
        return Finding(WARNING, "hides every GPU", "unset it, or name the GPUs to use")
    return None


def _on_is(severity, text):
    def judge(value):
        return None if value == "0" else Finding(severity, text, "unset it")
    return judge


# What the package reads, and what the CUDA driver reads on its behalf.
VARIABLES = (
    Variable(
        "DEEPEP_PTX_POLICY",
        "how payload moves, where Buffer(policy=) is None",
        "fast, safe, aggressive, bulk, a policy or a variant's symbol: `deepep-ptx variants`",
        "DISABLE_AGGRESSIVE_PTX_INSTRS, else fast",
        "when a Buffer is made; by demo and info",
        _judge_policy),
    Variable(
        "DISABLE_AGGRESSIVE_PTX_INSTRS",
        "DeepEP's switch, where DEEPEP_PTX_POLICY is not set: 1 = safe, 0 = aggressive",
        "0 or 1",
        "fast",
        "when a Buffer is made; by demo and info",
        _judge_switch),
    Variable(
        tuning_files.VARIABLE,
        "the tuning file, where Buffer(tuning=) is None; one that does not fit is an error",
        "path of a file that `deepep-ptx tune` has written",
        "the user's file for the GPU and number of ranks, if it is there and fits; else the model "
        "of how many SMs a call needs",
        "when a Buffer is made; by doctor",
        _judge_tuning),
    Variable(
        "XDG_CONFIG_HOME",
        "where the user's tuning files lie: in deepep_ptx/tuning below it",
        "a folder, by an absolute path",
        "~/.config",
        "when a Buffer is made; by tune and doctor"),
    Variable(
        "DEEPEP_PTX_EXECUTOR",
        "what runs the kernels, where run_ranks(executor=) is None",
        "emu (the CPU executor) or cuda",
        "cuda where a GPU is usable, else emu",
        "at each run_ranks; by demo and info",
        _one_of("emu", "cuda")),
    Variable(
        poison.VARIABLE,
        "a debug mode: 1 fills memory of results that have died with bytes of 255, NaN or -1 for "
        "whoever still reads it",
        "0 or 1",
        "0",
        "when a Buffer is made",
        _one_of("0", "1")),
    Variable(
        "CUDA_VISIBLE_DEVICES",
        "which GPUs there are, and in which order they are counted",
        "numbers or UUIDs, with commas",
        "all GPUs",
        "by the driver, at the first call of the process",
        _judge_visible),
    Variable(
        "CUDA_DEVICE_MAX_CONNECTIONS",
        "hardware queues per GPU; kernels in one queue start one after the other",
        "1 to 32",
        "run_ranks sets 32 where ranks share a GPU, else the driver's 8",
        "by the driver, when a GPU's context is made",
        _judge_connections),
    Variable(
        "CUDA_LAUNCH_BLOCKING",
        "every launch waits for its kernel's end",
        "0, or not set",
        "0",
        "by the driver, at the first call of the process",
        _on_is(PROBLEM, "every launch waits for its kernel, and kernels here wait for those of "
                        "other ranks: ranks of one process stop each other")),
    Variable(
        "CUDA_MODULE_LOADING",
        "when the driver loads kernels; those here are loaded when a Buffer is made in any case",
        "EAGER, LAZY or DEFAULT",
        "LAZY",
        "by the driver, at the first call of the process",
        _one_of("EAGER", "LAZY", "DEFAULT")),
    Variable(
        "CUDA_DISABLE_PTX_JIT",
        "forbids the driver to compile PTX, and kernels ship as PTX",
        "0, or not set",
        "0",
        "by the driver, at the first call of the process",
        _on_is(PROBLEM, "kernels ship as PTX, and the driver may not compile it")),
    Variable(
        "CUDA_CACHE_DISABLE",
        "keeps the driver from storing what it compiled",
        "0, or not set",
        "0",
        "by the driver, when a kernel is loaded",
        _on_is(WARNING, "the driver compiles the kernels again in every process")),
    Variable(
        "LOCAL_RANK",
        "torchrun's: which of its processes on this host this one is, and so which GPU it takes",
        "a number",
        "bench starts its processes itself",
        "by bench, beside RANK, WORLD_SIZE and MASTER_ADDR"),
    Variable(
        "WORLD_SIZE",
        "torchrun's: how many processes there are, one rank each",
        "a number",
        "bench starts its processes itself",
        "by bench, beside RANK, LOCAL_RANK and MASTER_ADDR"),
    Variable(
        "CUDA_HOME",
        "where the toolkit with cuda.h lies, without the nvidia-cuda-runtime wheel",
        "a folder",
        "/usr/local/cuda",
        "when the package is built"),
)

# Pattern -> why it has no effect here: what DeepEP, NVSHMEM and their builds read.
WITHOUT_EFFECT = {
    "NVSHMEM_*": "nothing here uses NVSHMEM: RDMA is not in this release",
    "EP_*": "DeepEP's; nothing here reads it",
    "TOPK_IDX_BITS": "int32 and int64 indices are both taken, by their dtype",
    "DISABLE_NVSHMEM": "nothing here uses NVSHMEM: RDMA is not in this release",
    "DISABLE_SM90_FEATURES": "text for sm_80 ships too and is chosen by the GPU, or by arch=",
    "TORCH_CUDA_ARCH_LIST": "nothing is compiled for torch: PTX for sm_80 and sm_90 ships",
}


def hides_gpus(environ):
    """Whether CUDA_VISIBLE_DEVICES hides every GPU."""
    return environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1")


def without_effect(environ):
    """(name, why) of each variable that is set, is known, and has no effect here."""
    return [(name, why) for pattern, why in WITHOUT_EFFECT.items()
            for name in sorted(environ) if fnmatch.fnmatchcase(name, pattern)]


def judge(variable, environ):
    """The `Finding` on a variable as `environ` has it; None where it is not set, or good."""
    value = environ.get(variable.name)
    # The package takes an empty variable for one that is not set; to the driver it is a value.
    if value is None or (value == "" and variable.name != "CUDA_VISIBLE_DEVICES"):
        return None
    return variable.judge(value)
