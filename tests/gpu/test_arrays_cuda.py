# SPDX-License-Identifier: MIT
"""Arrays in and out of `Buffer` on GPUs: torch, CuPy, DeviceArray, NumPy; streams and refusals."""

import gc

import numpy as np
import pytest

from deepep_ptx import Buffer, RankError, run_ranks
from deepep_ptx._cuda import device_count
from deepep_ptx.arrays import BFLOAT16, DeviceArray
from tests.array_libraries import Capsule, Interface, NumPyArrays, TorchArrays
from tests.test_buffer_arrays import CASES, E, K, T, dispatch, one_round, tokens
from tests.test_roundtrip import PLAIN, arena_bytes, assert_same, make_inputs, wanted

torch = pytest.importorskip("torch")

from tests.gpu.libraries import CuPyArrays, need_cupy  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]

R = 2


class TorchCudaArrays(TorchArrays):
    """Tensors on the rank's GPU."""

    def give(self, array):
        return super().give(array).to(torch.device("cuda", self.executor.device))

    def get(self, tensor):
        assert tensor.get_device() == self.executor.device
        return super().get(tensor.cpu())


class InterfaceArrays(TorchCudaArrays):
    """Given: torch memory that only has `__cuda_array_interface__` and a dtype, or only DLPack;
    got: DeviceArray."""

    def give(self, array):
        tensor = super().give(array)
        if array.dtype in (BFLOAT16, np.bool_):
            return Capsule(tensor.__dlpack__, tensor.__dlpack_device__())
        return Interface(tensor)

    def get(self, array):
        assert type(array) is DeviceArray and array.device == self.executor.device
        np.testing.assert_array_equal(
            super().get(torch.from_dlpack(array)).view(np.uint8), array.numpy().view(np.uint8))
        return array.numpy()

    def store(self, array, rows):
        torch.from_dlpack(array)[:len(rows)] = TorchCudaArrays.give(self, rows)


def run(fn, *args, num_ranks=R, **options):
    """fn(buffer, *args) on ranks that own a GPU, or share one."""
    def main(comm):
        torch.cuda.set_device(comm.executor.device)
        with Buffer(comm, **options) as buffer:
            return fn(buffer, *args)

    return run_ranks(main, num_ranks, executor="cuda")


# -- results ----------------------------------------------------------------------------------

@pytest.mark.parametrize("library", [TorchCudaArrays, InterfaceArrays, NumPyArrays, CuPyArrays])
@pytest.mark.parametrize("change", CASES, ids=lambda c: "-".join(map(str, c.values())) or "plain")
def test_bit_exact(library, change):
    if library is CuPyArrays:
        need_cupy()
    if library is InterfaceArrays and change.get("combine") in ("push", "mixed"):
        pytest.skip("a wrapper cannot be stored to")
    # CuPy allocates and frees with calls that wait for the device, where a rank that shares it may
    # spin: one rank per GPU.
    most = device_count() if library is CuPyArrays else 4
    case = PLAIN | change | {"num_ranks": min(most, (PLAIN | change)["num_ranks"]), "arch": "sm_90"}
    rounds = [make_inputs(case, seed) for seed in (21, 22, 23)]

    def main(comm):
        torch.cuda.set_device(comm.executor.device)
        with Buffer(comm, arena_bytes(case, rounds), policy=case["policy"],
                    zero_copy=case["zero_copy"]) as buffer:
            return [one_round(buffer, library(comm.executor), case, inputs) for inputs in rounds]

    results = run_ranks(main, case["num_ranks"], executor="cuda")
    for number, inputs in enumerate(rounds):
        for rank, want in enumerate(wanted(case, inputs)):
            assert_same(results[rank][number], want, rank)


def mine(buffer):
    """x, topk_idx and topk_weights as tensors of the rank, the same on each."""
    return [TorchCudaArrays(buffer.group.executor).give(a) for a in tokens()]


def test_slot_is_free_when_its_last_tensor_dies():
    def main(buffer):
        recv_x, recv_idx, recv_weights, _, handle, _ = dispatch(buffer, *mine(buffer))
        used = [buffer.stats()["arena_used_bytes"]]
        row = recv_x[1]
        del recv_x, recv_idx, recv_weights, handle
        gc.collect()
        used.append(buffer.stats()["arena_used_bytes"])
        del row
        return [*used, buffer.stats()["arena_used_bytes"]], buffer.stats()["copied_bytes"]

    for (first, second, third), copied in run(main, zero_copy=True):
        assert first == second > 0 == third == copied


def test_many_rounds_reuse_slots_in_stream_order():
    """Each round's tensors die while kernels that read them are still queued."""
    def main(buffer):
        x, idx, weights = mine(buffer)
        sums = []
        for number in range(50):
            recv_x, _, _, _, handle, _ = dispatch(buffer, x + number, idx, weights)
            for _ in range(10):
                total = recv_x.float().sum()
            sums.append((total, (recv_x.float() * 0 + 1).sum()))
            del recv_x, handle
        wants = [dispatch(buffer, x + number, idx, weights)[0].float().sum().item()
                 for number in range(50)]
        return [total.item() for total, _ in sums], wants

    for got, want in run(main):
        assert got == want


# -- streams ----------------------------------------------------------------------------------

@pytest.mark.parametrize("how", ["current", "argument", "number"])
def test_a_call_is_in_order_with_the_callers_stream(how):
    def main(buffer):
        x, idx, weights = mine(buffer)
        late = torch.zeros_like(x)
        torch.cuda.synchronize()
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            torch.cuda._sleep(200_000_000)           # a tenth of a second
            late.copy_(x)
        stream = {"current": None, "argument": side, "number": side.cuda_stream}[how]
        per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(idx, E)
        arguments = {"num_tokens_per_rank": per_rank, "is_token_in_rank": in_rank,
                     "num_tokens_per_expert": per_expert, "topk_idx": idx,
                     "topk_weights": weights, "stream": stream}
        with torch.cuda.stream(side if how == "current" else torch.cuda.current_stream()):
            recv_x, _, _, _, handle, _ = buffer.dispatch(late, **arguments)
        with torch.cuda.stream(side):
            recv_x.mul_(2)
        out, _, _ = buffer.combine(recv_x, handle, stream=side)
        side.synchronize()
        arrays = TorchArrays(None)
        return arrays.get(recv_x.cpu()), arrays.get(out.cpu()), in_rank.sum(1).cpu().numpy()

    x = tokens()[0]
    for recv_x, out, copies in run(main):
        doubled = {(row * BFLOAT16.type(2)).tobytes() for row in x}
        assert {row.tobytes() for row in recv_x} <= doubled
        want = sum(np.where(copies[:, None] > n, x.astype(np.float32) * 2, 0) for n in range(R))
        np.testing.assert_array_equal(out.view(np.uint16), want.astype(BFLOAT16).view(np.uint16))


# -- refusals ---------------------------------------------------------------------------------

def refused(buffer, error, text, **changes):
    x, idx, weights = mine(buffer)
    layout = buffer.get_dispatch_layout(idx, E)
    arguments = {"x": x, "num_tokens_per_rank": layout[0], "is_token_in_rank": layout[3],
                 "num_tokens_per_expert": layout[2], "topk_idx": idx, "topk_weights": weights}
    with pytest.raises(error) as caught:
        buffer.dispatch(**(arguments | changes))
    assert str(caught.value).startswith(text), str(caught.value)


def test_wrong_places_and_libraries():
    def main(buffer):
        x, idx, weights = tokens()
        device = buffer.group.executor.device
        refused(buffer, TypeError, "x: torch.Tensor in host memory; the cuda executor",
                x=TorchArrays(None).give(x))
        refused(buffer, TypeError, "topk_weights: torch.Tensor in host memory",
                topk_weights=torch.from_numpy(weights))
        refused(buffer, TypeError, "topk_idx: is a NumPy array while x is a torch array",
                topk_idx=idx)
        if torch.cuda.device_count() > 1:
            other = (device + 1) % torch.cuda.device_count()
            refused(buffer, ValueError,
                    f"topk_idx: torch.Tensor on cuda:{other}; this rank needs it on cuda:{device}",
                    topk_idx=torch.from_numpy(idx).to(f"cuda:{other}"))

    run(main)


def test_an_address_that_is_no_device_memory():
    class Freed:
        __cuda_array_interface__ = {"version": 3, "shape": (T, K), "typestr": "<i8",
                                    "data": (0x1000, False), "strides": None}

    with pytest.raises(RankError, match="topk_idx: 0x1000 is not memory of a GPU"):
        run(lambda buffer: buffer.get_dispatch_layout(Freed(), E), num_ranks=1)


def test_emu_refuses_cuda_tensors():
    def main(comm):
        with Buffer(comm) as buffer:
            buffer.get_dispatch_layout(torch.zeros((T, K), dtype=torch.int64, device="cuda:0"), E)

    with pytest.raises(RankError, match="topk_idx: torch.Tensor on cuda:0; the CPU executor takes"):
        run_ranks(main, 1, executor="emu")
