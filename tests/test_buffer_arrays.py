# SPDX-License-Identifier: MIT
"""Whole calls with arrays of each library, on the CPU executor and on a GPU that is none.

The kernels, the core and `Buffer` are the real ones; what `PretendGpu` leaves out is the driver.
"""

import gc

import numpy as np
import pytest

from deepep_ptx import Buffer, RankError, run_ranks
from deepep_ptx._emu_executor import EmuExecutor
from deepep_ptx.arrays import BFLOAT16, DeviceArray
from deepep_ptx.comm import RankComm
from tests.array_libraries import (
    Capsule,
    DeviceArrays,
    Interface,
    NumPyArrays,
    PretendGpu,
    TorchArrays,
)
from tests.test_roundtrip import (
    NUM_EXPERTS,
    PLAIN,
    arena_bytes,
    assert_same,
    expert_output,
    make_inputs,
    pulls,
    replaced,
    wanted,
    worst_tokens,
)
from tests.test_runtime import TIMED, params

TORCH = pytest.param(TorchArrays, False, id="torch-emu")
LIBRARIES = [TORCH, pytest.param(DeviceArrays, True, id="device-gpu"),
             pytest.param(NumPyArrays, True, id="numpy-gpu")]


def one_round(buffer, arrays, case, inputs):
    """As `test_roundtrip.one_round`, with arrays of another library."""
    rank = buffer.rank
    topk_idx, topk_weights = map(arrays.give, (inputs.topk_idxs[rank], inputs.topk_weights[rank]))
    per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(topk_idx, NUM_EXPERTS)
    topk = {} if case["topk_data"] == "none" else {"topk_idx": topk_idx,
                                                    "topk_weights": topk_weights}
    recv_x, recv_topk_idx, recv_topk_weights, expert_list, handle, _ = buffer.dispatch(
        arrays.give(inputs.xs[rank]), num_tokens_per_rank=per_rank, is_token_in_rank=in_rank,
        num_tokens_per_expert=per_expert, num_worst_tokens=worst_tokens(case, inputs), **topk)
    got = {
        "num_tokens_per_rank": per_rank, "num_tokens_per_expert": per_expert,
        "is_token_in_rank": in_rank, "recv_x": recv_x, "recv_topk_idx": recv_topk_idx,
        "recv_topk_weights": recv_topk_weights, "rank_prefix_matrix": handle[0],
        "recv_src_idx": handle.recv_src_idx, "handle.is_token_in_rank": handle.is_token_in_rank,
        "recv_scales": None, "again": None, "again.scales": None,
    }
    got = {name: None if a is None else arrays.get(a) for name, a in got.items()}
    got["num_recv_tokens_per_expert_list"] = expert_list

    num_recv = int(got["rank_prefix_matrix"][-1, rank])
    rows, weights = expert_output(inputs.seed, rank, num_recv, case["hidden"], case["num_topk"])
    y, y_weights = recv_x, recv_topk_weights
    if not pulls(case, rank):
        y = arrays.give(np.zeros(recv_x.shape, BFLOAT16))
        y_weights = arrays.give(np.zeros((len(recv_x), case["num_topk"]), np.float32))
    arrays.store(y, rows)
    if case["topk_data"] == "both":
        arrays.store(y_weights, weights)
    biases = inputs.biases[rank]
    if biases is not None:
        biases = (tuple(map(arrays.give, biases)) if isinstance(biases, tuple)
                  else arrays.give(biases))
    out, out_weights, _ = buffer.combine(
        y, handle, topk_weights=y_weights if case["topk_data"] == "both" else None, bias=biases)
    got["combined_x"] = arrays.get(out)
    got["combined_topk_weights"] = None if out_weights is None else arrays.get(out_weights)
    return got


def rank_main(comm, library, on_gpu, case, rounds):
    if library is TorchArrays:
        pytest.importorskip("torch")
    comm = PretendGpu.of(comm) if on_gpu else comm
    return rounds_of(comm, library, case, rounds)


def rounds_of(comm, library, case, rounds):
    with Buffer(comm, arena_bytes(case, rounds), policy=case["policy"],
                zero_copy=case["zero_copy"]) as buffer:
        return [one_round(buffer, library(comm.executor), case, inputs) for inputs in rounds]


def assert_round_trip(library, on_gpu, case, rounds):
    if library is TorchArrays:
        pytest.importorskip("torch")
    results = run_ranks(rank_main, case["num_ranks"], library, on_gpu, case, rounds,
                        executor="emu", arch=case["arch"])
    for number, inputs in enumerate(rounds):
        for rank, want in enumerate(wanted(case, inputs)):
            assert_same(results[rank][number], want, rank)


CASES = [
    {},
    {"combine": "push", "num_biases": 1, "tokens": "uneven"},
    {"combine": "mixed", "num_biases": 2, "routing": "holes", "idx_dtype": "int32"},
    {"zero_copy": False, "tokens": "some zero"},
    {"worst": True, "topk_data": "dispatch", "num_topk": 8},
    {"topk_data": "none", "num_ranks": 2, "hidden": 7168},
    {"num_ranks": 8, "arch": "sm_80", "policy": "safe"},
]


@pytest.mark.parametrize(("library", "on_gpu"), LIBRARIES)
@pytest.mark.parametrize("change", CASES, ids=lambda c: "-".join(map(str, c.values())) or "plain")
def test_bit_exact(library, on_gpu, change):
    case = PLAIN | change
    assert_round_trip(library, on_gpu, case, [make_inputs(case, seed) for seed in (21, 22)])


@pytest.mark.parametrize(("library", "on_gpu"), LIBRARIES)
def test_no_tokens(library, on_gpu):
    inputs = make_inputs(PLAIN, 1)
    none = {name: [a[:0] for a in getattr(inputs, name)]
            for name in ("xs", "topk_idxs", "topk_weights")}
    assert_round_trip(library, on_gpu, PLAIN, [replaced(inputs, **none)] * 2)


class Third(EmuExecutor):
    name = "third"


class ThirdGpu(PretendGpu):
    name = "third"


@pytest.mark.parametrize(("kind", "library"), [(Third, NumPyArrays), (ThirdGpu, NumPyArrays),
                                               (ThirdGpu, DeviceArrays)])
def test_an_executor_of_another_name(kind, library):
    """What an executor can says what is done, not its name."""
    inputs = make_inputs(PLAIN, 23)

    def main(comm):
        executor = kind(comm.executor.world, comm.rank, arch=comm.executor.arch)
        own = RankComm(executor, comm.size, comm.ranks_per_node)
        return rounds_of(own, library, PLAIN, [inputs])[0]

    results = run_ranks(main, PLAIN["num_ranks"], executor="emu", arch=PLAIN["arch"])
    for rank, want in enumerate(wanted(PLAIN, inputs)):
        assert_same(results[rank], want, rank)


# -- one rank, whose rows all come back -------------------------------------------------------

T, H, K, E = 5, 64, 2, 4


def alone(fn, *args, on_gpu=False, **kwargs):
    """fn(buffer, *args) on the only rank."""
    def main(comm):
        with Buffer(PretendGpu.of(comm) if on_gpu else comm, **kwargs) as buffer:
            return fn(buffer, *args)

    return run_ranks(main, 1, executor="emu")[0]


def tokens():
    """x, topk_idx and topk_weights."""
    rng = np.random.default_rng(3)
    return (rng.standard_normal((T, H)).astype(BFLOAT16), rng.integers(0, E, (T, K)),
            rng.random((T, K), dtype=np.float32))


def dispatch(buffer, x, topk_idx, topk_weights, **changes):
    per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(topk_idx, E)
    arguments = {"num_tokens_per_rank": per_rank, "is_token_in_rank": in_rank,
                 "num_tokens_per_expert": per_expert, "topk_idx": topk_idx,
                 "topk_weights": topk_weights}
    return buffer.dispatch(x, **(arguments | changes))


@pytest.mark.parametrize(("library", "on_gpu"), LIBRARIES[:2])
def test_slot_is_free_when_its_last_array_dies(library, on_gpu):
    if library is TorchArrays:
        pytest.importorskip("torch")

    def main(buffer):
        def used():
            gc.collect()
            return buffer.stats()["arena_used_bytes"]

        arrays = library(buffer.group.executor)
        recv_x, recv_idx, recv_weights, _, handle, _ = dispatch(buffer, *map(arrays.give, tokens()))
        steps = [used()]
        del recv_x, recv_idx, handle
        steps.append(used())
        del recv_weights
        return [*steps, used()], buffer.stats()["copied_bytes"]

    (first, second, third), copied = alone(main, on_gpu=on_gpu, zero_copy=True)
    assert first == second > 0 == third == copied


def test_numpy_on_a_gpu_holds_no_slot():
    def main(buffer):
        results = dispatch(buffer, *tokens())
        assert results[0].flags.writeable
        return buffer.stats()["arena_used_bytes"], buffer.stats()["copied_bytes"]

    used, copied = alone(main, on_gpu=True)
    assert used == 0 < copied


def test_torch_views_outlive_the_run():
    torch = pytest.importorskip("torch")
    x, idx, weights = tokens()
    arrays = TorchArrays(None)
    recv_x = alone(lambda b: dispatch(b, *map(arrays.give, (x, idx, weights)))[0])
    gc.collect()
    recv_x.mul_(1)
    assert recv_x.dtype == torch.bfloat16
    np.testing.assert_array_equal(arrays.get(recv_x), x)


def test_torch_autograd():
    """Inputs that require grad, the handle through a Function, as Megatron has it."""
    torch = pytest.importorskip("torch")
    arrays = TorchArrays(None)

    def main(buffer):
        class Dispatch(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, topk_idx, topk_weights):
                results = dispatch(buffer, x, topk_idx, topk_weights)
                ctx.handle = results[4]
                return results[0], results[2], results[4]

            @staticmethod
            def backward(ctx, grad_x, grad_weights, _):
                grad, weights, _ = buffer.combine(grad_x.contiguous(), ctx.handle,
                                                  topk_weights=grad_weights.contiguous())
                return grad, None, weights

        x, idx, weights = map(arrays.give, tokens())
        x.requires_grad_()
        weights.requires_grad_()
        recv_x, recv_weights, handle = Dispatch.apply(x, idx, weights)
        assert handle.num_recv == T and recv_x.requires_grad
        (recv_x.sum() + 3 * recv_weights.sum()).backward()
        return x.grad, weights.grad

    grad_x, grad_weights = alone(main)
    assert grad_x.eq(1).all() and grad_weights.eq(3).all()


def test_device_array_exports():
    def main(buffer):
        arrays = DeviceArrays(buffer.group.executor)
        x, idx, weights = map(arrays.give, tokens())
        assert (x.dtype, x.shape, x.ndim, len(x), x.nbytes) == (BFLOAT16, (T, H), 2, T, T * H * 2)
        assert x.__dlpack_device__() == (2, 0)
        assert repr(x) == "<DeviceArray bfloat16 [5, 64] on cuda:0>"
        copy = x.copy()
        assert copy.address != x.address
        np.testing.assert_array_equal(copy.numpy(), x.numpy())
        with pytest.raises(BufferError, match=r"^dl_device: "):
            x.__dlpack__(dl_device=(1, 0))
        # Back in through each protocol alone.
        recv_x = dispatch(buffer, Interface(x), Interface(idx),
                          Capsule(weights.__dlpack__, weights.__dlpack_device__()))[0]
        assert type(recv_x) is DeviceArray
        return x.numpy(), recv_x.numpy()

    # Without a dtype of its own bfloat16 is opaque in the interface.
    with pytest.raises(RankError, match=r"x: dtype must be a number's, .* got \|V2"):
        alone(main, on_gpu=True)


def test_device_arrays_of_both_protocols():
    def main(buffer):
        arrays = DeviceArrays(buffer.group.executor)
        x, idx, weights = map(arrays.give, tokens())
        recv_x = dispatch(buffer, Capsule(x.__dlpack__, x.__dlpack_device__()), Interface(idx),
                          weights)[0]
        return x.numpy(), recv_x.numpy()

    np.testing.assert_array_equal(*alone(main, on_gpu=True))


# -- streams ----------------------------------------------------------------------------------

@pytest.mark.parametrize("says", ["argument", "array", "nothing"])
def test_a_call_runs_after_the_callers_stream(says):
    """The rows of x come behind a kernel that takes a second; who names no stream misses them."""
    def main(comm):
        comm = PretendGpu.of(comm)
        executor = comm.executor
        x, idx, weights = tokens()
        give = DeviceArrays(executor).give
        late, idx, weights = give(np.zeros_like(x)), give(idx), give(weights)
        with Buffer(comm) as buffer:
            layout = buffer.get_dispatch_layout(idx, E)
            stream, flag = executor.stream_create(), executor.alloc(16)
            executor.fill(flag, 0, 16)
            executor.synchronize()
            executor.launch(executor.load("timed", TIMED, 32),
                            params(flag, 1, 10**9, flag + 8), 1, 1, stream=stream)
            executor.copy_in(late.address, x.tobytes(), stream=stream)
            recv_x = buffer.dispatch(
                Named(late, stream) if says == "array" else late,
                num_tokens_per_rank=layout[0], is_token_in_rank=layout[3],
                num_tokens_per_expert=layout[2], topk_idx=idx, topk_weights=weights,
                stream=stream if says == "argument" else None)[0]
            executor.synchronize(stream)
            return recv_x.numpy()

    want = tokens()[0] if says != "nothing" else np.zeros((T, H), BFLOAT16)
    np.testing.assert_array_equal(run_ranks(main, 1, executor="emu")[0], want)


class Named(Interface):
    """A device array whose contents are ready on a stream."""

    def __init__(self, array, stream):
        super().__init__(array, stream=stream)
        self.dtype = array.dtype


# -- handles ----------------------------------------------------------------------------------

def test_handle_of_another_library_or_executor():
    torch = pytest.importorskip("torch")
    x, idx, weights = tokens()

    def main(buffer):
        recv_x, _, _, _, handle, _ = dispatch(buffer, x, idx, weights)
        with pytest.raises(TypeError, match=r"^handle.pos: is a NumPy array while x is a torch"):
            buffer.combine(torch.zeros((T, H), dtype=torch.bfloat16), handle)
        return handle

    handle = alone(main)
    with pytest.raises(RankError, match=r"handle: made on executor 'emu', this buffer is on 'cu"):
        alone(lambda buffer: buffer.combine(x, handle), on_gpu=True)


def test_stream_argument_on_the_cpu_executor():
    x, idx, weights = tokens()

    def main(buffer):
        for call in (lambda: buffer.get_dispatch_layout(idx, E, stream=3),
                     lambda: dispatch(buffer, x, idx, weights, stream=3)):
            with pytest.raises(ValueError, match=r"^stream: must be None or 0 on the CPU executor"):
                call()
        handle = dispatch(buffer, x, idx, weights, stream=0)[4]
        with pytest.raises(ValueError, match=r"^stream: must be None or 0 on the CPU executor"):
            buffer.combine(x, handle, stream=3)

    alone(main)
