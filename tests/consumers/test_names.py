# SPDX-License-Identifier: MIT
"""`deep_ep`: which names are there, how it is imported and installed, what its `Buffer` takes."""

import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

import deep_ep
import deep_ep.buffer
import deep_ep_cpp
import numpy as np
import pytest
from deep_ep import Buffer, Config, EventHandle, EventOverlap, utils
from deep_ep._names import LATER_IN_BUFFER, LATER_IN_PACKAGE, LaterError

import deepep_ptx
from deepep_ptx import run_ranks
from tests.low_latency import make_inputs, round_trip

ROOT = Path(__file__).resolve().parents[2]
ARENA = 1 << 20


def in_process(script, *path, **environment):
    """Output of a Python that finds only the tree's packages and `path`."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=100,
        cwd="/", env=os.environ | environment | {
            "PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT]))})
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def alone(main, *args, **kwargs):
    """main(buffer) on the only rank."""
    def rank_main(comm):
        buffer = Buffer(comm, *args, **kwargs)
        result = main(buffer)
        buffer.destroy()
        return result

    return run_ranks(rank_main, 1, executor="emu")[0]


# -- names ------------------------------------------------------------------------------------

def test_names_are_ours():
    for name in "Config", "EventHandle", "EventOverlap":
        assert getattr(deep_ep, name) is getattr(deepep_ptx, name)
    assert deep_ep.Buffer is deep_ep.buffer.Buffer and issubclass(Buffer, deepep_ptx.Buffer)
    from deep_ep.utils import event

    assert utils.EventHandle is event.EventHandle is deep_ep_cpp.EventHandle is EventHandle
    assert utils.EventOverlap is event.EventOverlap is EventOverlap
    assert utils.check_nvlink_connections(None) is None
    assert deep_ep_cpp.Config is Config and deep_ep_cpp.is_sm90_compiled()
    assert deep_ep.__version__.startswith("1.2.1")


def test_positions_are_those_of_deepep():
    def names(function, count):
        return list(inspect.signature(function).parameters)[:count]

    assert names(Buffer, 9) == [
        "group", "num_nvl_bytes", "num_rdma_bytes", "low_latency_mode", "num_qps_per_rank",
        "allow_nvlink_for_low_latency_mode", "allow_mnnvl", "explicitly_destroy", "enable_shrink"]
    assert names(Buffer.low_latency_dispatch, 12) == [
        "self", "x", "topk_idx", "num_max_dispatch_tokens_per_rank", "num_experts",
        "cumulative_local_expert_recv_stats", "dispatch_wait_recv_cost_stats", "use_fp8",
        "round_scale", "use_ue8m0", "async_finish", "return_recv_hook"]
    assert names(Buffer.low_latency_combine, 11) == [
        "self", "x", "topk_idx", "topk_weights", "handle", "use_logfmt", "zero_copy",
        "async_finish", "return_recv_hook", "out", "combine_wait_recv_cost_stats"]
    hint = ["num_max_dispatch_tokens_per_rank", "hidden", "num_ranks", "num_experts"]
    assert names(Buffer.get_low_latency_rdma_size_hint, 4) == hint
    assert names(deep_ep_cpp.get_low_latency_rdma_size_hint, 4) == hint
    assert names(Buffer.clean_low_latency_buffer, 4) == ["self", *hint[:2], "num_experts"]


@pytest.mark.parametrize("name", LATER_IN_PACKAGE)
def test_a_later_name_of_the_package(name):
    """It cannot be imported, which is how consumers ask for the feature."""
    assert not hasattr(deep_ep, name) and getattr(deep_ep, name, None) is None
    with pytest.raises(ImportError, match=f"cannot import name '{name}'"):
        exec(f"from deep_ep import {name}")
    with pytest.raises(NotImplementedError, match=f"^deep_ep.{name}: .* is not in this release"):
        getattr(deep_ep, name)


@pytest.mark.parametrize("name", LATER_IN_BUFFER)
def test_a_later_method(name):
    def main(buffer):
        for owner in Buffer, buffer:
            assert not hasattr(owner, name)
            with pytest.raises(NotImplementedError, match=f"^Buffer.{name}: .* is not in this rel"):
                getattr(owner, name)(1, 2, 3, 4)

    alone(main)


def test_a_name_that_never_was():
    def main(buffer):
        for owner in deep_ep, deep_ep_cpp, Buffer, buffer:
            with pytest.raises(AttributeError, match="has no attribute 'nothing'") as info:
                _ = owner.nothing
            assert not isinstance(info.value, LaterError)

    alone(main)


# -- import and installation ------------------------------------------------------------------

def test_import_needs_no_gpu_and_no_torch_and_says_nothing():
    script = ("import sys; sys.modules['torch'] = None\n"
              "import deep_ep, deep_ep_cpp, deep_ep.utils.event, deep_ep.buffer\n"
              "assert not hasattr(deep_ep, 'topk_idx_t') and not hasattr(deep_ep_cpp, 'topk_idx_t')"
              "\ntry: deep_ep.topk_idx_t\n"
              "except AttributeError as error: assert str(error).startswith("
              "'topk_idx_t: is torch.int64, and torch cannot be imported'), error\n"
              "else: assert False")
    assert in_process(script, ROOT / "compat", CUDA_VISIBLE_DEVICES="") == ""


def test_torch_is_imported_for_its_type_alone():
    torch = pytest.importorskip("torch")
    assert deep_ep.topk_idx_t is deep_ep_cpp.topk_idx_t is torch.int64
    script = ("import sys, deep_ep; assert 'torch' not in sys.modules\n"
              "from deep_ep import topk_idx_t; assert topk_idx_t is sys.modules['torch'].int64")
    in_process(script, ROOT / "compat")


def test_pip_installs_it(tmp_path):
    source, target = tmp_path / "compat", tmp_path / "site"
    shutil.copytree(ROOT / "compat", source,
                    ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
         "--no-deps", "--no-build-isolation", "--no-index", "--target", target, source],
        cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    script = ("import importlib.metadata, deep_ep, deep_ep_cpp, deep_ep.utils.event\n"
              "assert importlib.metadata.version('deep_ep') == deep_ep.__version__\n"
              "assert importlib.metadata.requires('deep_ep') == ['deepep_ptx>=0.1.0']\n"
              "print(deep_ep.__file__, deep_ep_cpp.__file__)")
    assert in_process(script, target).split() == [str(target / "deep_ep/__init__.py"),
                                                  str(target / "deep_ep_cpp.py")]


# -- Buffer -----------------------------------------------------------------------------------

def test_arguments_that_change_nothing():
    def main(buffer):
        assert (buffer.rank, buffer.group_size) == (0, 1)
        assert (buffer.num_nvl_bytes, buffer.num_rdma_bytes) == (1024, 0)
        assert buffer.low_latency_mode is buffer.enable_shrink is False
        assert buffer.explicitly_destroy is True
        assert buffer.stats()["arena_bytes"] == 1024
        assert buffer.arena_limit_bytes is None             # it grows

    alone(main, 1024, 0, False, 12, False, True, True, enable_shrink=False, use_fabric=False,
          comm=None, timeout_s=20.0)


@pytest.mark.parametrize(("argument", "value", "error"), [
    ("enable_shrink", True, ValueError),
    ("use_fabric", True, NotImplementedError),
    ("num_rdma_bytes", 128, NotImplementedError),
    ("num_nvl_bytes", -1, ValueError),
    ("num_nvl_bytes", 1.5, TypeError),
    ("num_qps_per_rank", 0, ValueError),
    ("num_nvl_bytes", 100, ValueError),
    ("num_nvl_bytes", "1", TypeError),
])
def test_arguments_that_ask_for_more(argument, value, error):
    def main(comm):
        with pytest.raises(error, match=f"^{argument}: must be"):
            Buffer(comm, **{argument: value})

    run_ranks(main, 1, executor="emu")


def test_low_latency_mode():
    """As vLLM and SGLang construct a buffer for it."""
    def main(comm):
        size = Buffer.get_low_latency_rdma_size_hint(8, 256, comm.size, 6)
        assert size == deep_ep_cpp.get_low_latency_rdma_size_hint(8, 256, comm.size, 6) > 0
        with Buffer(comm, 0, size, True, 3, allow_nvlink_for_low_latency_mode=True,
                    enable_shrink=False) as buffer:
            assert buffer.low_latency_mode is True and buffer.num_rdma_bytes == size
            buffer.clean_low_latency_buffer(8, 256, 6)
            round_trip(comm, buffer, make_inputs(np.random.default_rng(0), [8, 5], 256, 6, 3), 6, 8)

    run_ranks(main, 2, executor="emu")


def test_a_communicator_in_place_of_a_group():
    def main(comm):
        for arguments in ({"group": None, "comm": comm}, {"comm": comm}, {"group": comm}):
            with Buffer(**arguments) as buffer:
                assert buffer.group is comm

    run_ranks(main, 2, executor="emu")
    with pytest.raises(ValueError, match="^group: must be given, or comm"):
        Buffer()


def test_destroy_without_having_said_so():
    def main(comm):
        buffer = Buffer(comm)
        buffer.destroy()
        with pytest.raises(deepep_ptx.DestroyedError):
            buffer.check()

    run_ranks(main, 2, executor="emu")


def test_the_bytes_of_queues_limit_no_result():
    """In DeepEP they size queues, and results are torch's."""
    def main(buffer):
        x = np.ones((64, 512), np.int16)
        idx = np.zeros((64, 1), np.int64)
        per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(idx, 1)
        kept = [buffer.dispatch(x, num_tokens_per_rank=per_rank, is_token_in_rank=in_rank,
                                num_tokens_per_expert=per_expert) for _ in range(4)]
        assert all((recv_x == x).all() for recv_x, *_ in kept)
        assert buffer.get_local_buffer_tensor(np.int8).shape == (1024,)
        with pytest.raises(ValueError, match="^use_rdma_buffer: must be False"):
            buffer.get_local_buffer_tensor(np.int8, use_rdma_buffer=True)

    alone(main, 1024)


def test_a_limit_of_the_arena():
    def main(buffer):
        assert buffer.num_nvl_bytes == 1024
        assert buffer.get_local_buffer_tensor(np.int8).shape == (ARENA,)

    alone(main, 1024, arena_limit_bytes=ARENA)


def test_the_constructor_can_be_wrapped(monkeypatch):
    """As torch_memory_saver does."""
    calls = []
    original = Buffer.__init__

    def wrapped(self, *args, **kwargs):
        calls.append((args, kwargs))
        original(self, *args, **kwargs)

    monkeypatch.setattr(deep_ep.Buffer, "__init__", wrapped)
    alone(lambda buffer: None, 0, 0, explicitly_destroy=True)
    assert [args[1:] for args, _ in calls] == [(0, 0)]


def test_num_sms(monkeypatch):
    """One setting for both classes; odd numbers too."""
    monkeypatch.setattr(deepep_ptx.Buffer, "num_sms", deepep_ptx.Buffer.num_sms)
    assert Buffer.num_sms == 20
    Buffer.set_num_sms(new_num_sms=7)
    assert Buffer.num_sms == deepep_ptx.Buffer.num_sms == 7
    assert Buffer.get_dispatch_config(8).num_sms == Buffer.get_combine_config(8).num_sms == 7
    with pytest.raises(ValueError, match="^new_num_sms: must be at least 1, got 0"):
        Buffer.set_num_sms(0)
    with pytest.raises(TypeError, match="^new_num_sms: must be an integer"):
        Buffer.set_num_sms(2.0)
