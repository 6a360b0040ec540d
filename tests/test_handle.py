# SPDX-License-Identifier: MIT
"""Handles in code that takes tuples apart, copies them and makes new ones of their items."""

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest

from deepep_ptx import Buffer, run_ranks
from deepep_ptx.arrays import BFLOAT16
from deepep_ptx.handle import EPHandle
from tests.array_libraries import NumPyArrays, TorchArrays

R, T, H, K, E = 2, 9, 64, 3, 4


class Dispatched:
    """A dispatch of one rank, and what its combine and its cached dispatch give."""

    def __init__(self, buffer, arrays):
        rng = np.random.default_rng(buffer.rank)
        x, idx, weights = map(arrays.give, (
            rng.standard_normal((T, H)).astype(BFLOAT16), rng.integers(-1, E, (T, K)),
            rng.random((T, K), dtype=np.float32)))
        per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(idx, E)
        self.recv_x, *_, self.handle, _ = buffer.dispatch(
            x, num_tokens_per_rank=per_rank, is_token_in_rank=in_rank,
            num_tokens_per_expert=per_expert, topk_idx=idx, topk_weights=weights)
        self.buffer, self.arrays, self.x = buffer, arrays, x

    def bits(self, handle):
        """Of what calls with `handle` return."""
        out, _, _ = self.buffer.combine(self.recv_x, handle)
        again, *_ = self.buffer.dispatch(self.x, handle)
        return [self.arrays.get(array).view(np.uint16).copy() for array in (out, again)]

    def assert_same(self, handle):
        for got, want in zip(self.bits(handle), self.bits(self.handle), strict=True):
            np.testing.assert_array_equal(got, want)


def on_ranks(main, library=NumPyArrays):
    """main(dispatched) on each rank."""
    if library is TorchArrays:
        pytest.importorskip("torch")

    def rank_main(comm):
        with Buffer(comm) as buffer:
            return main(Dispatched(buffer, library(comm.executor)))

    return run_ranks(rank_main, R, executor="emu")


REBUILT = {
    "type(h)(generator)": lambda h: type(h)(v for v in h),
    "type(h)(list)": lambda h: type(h)(list(h)),
    "type(h)(tuple)": lambda h: type(h)(tuple(h)),
    "type(h)(h)": lambda h: type(h)(h),
    "twice": lambda h: type(h)(v for v in type(h)(v for v in h)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "deepcopy of what holds it": lambda h: copy.deepcopy({"handle": [h]})["handle"][0],
    "another first item": lambda h: type(h)([None, h[1]]),
    "a copied first item": lambda h: type(h)(copy.copy(v) for v in h),
    "deep copies of the items": lambda h: type(h)(copy.deepcopy(v) for v in h),
}
# Tuples without the attributes: calls take them all the same.
TUPLES = {
    "tuple": tuple,
    "slice": lambda h: h[:],
    "sum": lambda h: h + (),
    "sum the other way": lambda h: () + h,
    "unpacked": lambda h: (*h,),
    "deepcopy of a tuple": lambda h: copy.deepcopy(tuple(h)),
    "list": list,
}


@pytest.mark.parametrize("library", [NumPyArrays, TorchArrays])
@pytest.mark.parametrize("how", REBUILT)
def test_rebuilt(how, library):
    def main(sent):
        handle = REBUILT[how](sent.handle)
        assert type(handle) is EPHandle and vars(handle) == vars(sent.handle)
        assert handle[0] is sent.handle[0] and handle.num_recv == len(sent.recv_x)
        assert handle == sent.handle and hash(handle) == hash(sent.handle)
        sent.assert_same(handle)

    on_ranks(main, library)


@pytest.mark.parametrize("how", TUPLES)
def test_tuples_of_the_items(how):
    def main(sent):
        items = TUPLES[how](sent.handle)
        sent.assert_same(items)
        assert EPHandle(items) == sent.handle
        assert type(items) is list or items == sent.handle == items

    on_ranks(main)


def fsdp(torch, handle):
    from torch.distributed.utils import _apply_to_tensors

    return _apply_to_tensors(lambda tensor: tensor.clone(), {"handle": (handle,)})["handle"][0]


def fsdp_cast(torch, handle):
    from torch.distributed.utils import _apply_to_tensors

    return _apply_to_tensors(lambda tensor: tensor.to(torch.float16), handle)


def ddp(torch, handle):
    from torch.distributed.utils import _recursive_to

    return _recursive_to((handle,), torch.device("cpu"), False)[0][0]


def pytree(torch, handle):
    tree = torch.utils._pytree.tree_map(lambda leaf: leaf, [handle, {"a": handle}])
    return tree[1]["a"]


def pytree_tensors(torch, handle):
    return torch.utils._pytree.tree_map_only(torch.Tensor, torch.clone, (handle,))[0]


def function(torch, handle):
    class Passed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, handle):
            ctx.handle = handle
            return x * 2, handle

        @staticmethod
        def backward(ctx, grad, _):
            return grad, None

    x = torch.ones(2, requires_grad=True)
    y, passed = Passed.apply(x, handle)
    y.sum().backward()
    return passed


@pytest.mark.parametrize("through", [fsdp, fsdp_cast, ddp, pytree, pytree_tensors, function],
                         ids=lambda f: f.__name__)
def test_torch(through):
    torch = pytest.importorskip("torch")
    if through in (fsdp, fsdp_cast, ddp) and not torch.distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    on_ranks(lambda sent: sent.assert_same(through(torch, sent.handle)), TorchArrays)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_torch_checkpoint(use_reentrant):
    """The handle goes into a checkpointed function and comes out of one; both run twice."""
    torch = pytest.importorskip("torch")

    def main(sent):
        def double(x, handle):
            return x * 2, handle

        x = torch.ones(3, requires_grad=True)
        y, handle = torch.utils.checkpoint.checkpoint(double, x, sent.handle,
                                                      use_reentrant=use_reentrant)
        with torch.autograd.set_multithreading_enabled(False):
            y.sum().backward()
        assert x.grad.eq(2).all()
        sent.assert_same(handle)

    on_ranks(main, TorchArrays)


def test_torch_hooks():
    """A module that takes a handle and returns one, with hooks that see both as tuples."""
    torch = pytest.importorskip("torch")

    class Pass(torch.nn.Module):
        def forward(self, x, handle):
            return x * 2, handle

    def main(sent):
        module = Pass()
        module.register_forward_hook(lambda module, given, out: tuple(out))
        module.register_full_backward_hook(lambda module, given, out: None)
        x = torch.ones(3, requires_grad=True)
        y, handle = module(x, sent.handle)
        with torch.autograd.set_multithreading_enabled(False):
            y.sum().backward()
        sent.assert_same(handle)

    on_ranks(main, TorchArrays)


def test_it_is_no_namedtuple():
    def main(sent):
        handle = sent.handle
        assert not any(hasattr(handle, name) for name in ("_fields", "_asdict", "_replace"))
        assert not any(hasattr(handle[1], name) for name in (
            "__dataclass_fields__", "__iter__", "__len__", "to", "keys"))

    on_ranks(main)


def test_equality():
    def main(sent):
        first = sent.handle
        second = Dispatched(sent.buffer, sent.arrays).handle
        assert first == first and first != second and second not in [first]
        assert {first: 1, second: 2}[first] == 1
        assert first != (first[0],) and first != 3 and (first == 3) is False
        assert repr(first) == (f"<EPHandle of rank {sent.buffer.rank}: {T} tokens, "
                               f"{first.num_recv} rows received>")

    on_ranks(main)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("of", [lambda h: h, tuple, lambda h: {"handle": h}],
                         ids=["handle", "tuple", "dict"])
def test_pickle_is_refused(of, protocol):
    def main(sent):
        with pytest.raises(TypeError, match="^handle: cannot be pickled"):
            pickle.dumps(of(sent.handle), protocol)

    on_ranks(main)


@pytest.mark.parametrize("items", [
    lambda h: (), lambda h: (h[0],), lambda h: h + h, lambda h: (h[1], h[0]), lambda h: h[0],
    lambda h: None, lambda h: 3, lambda h: [1, 2], lambda h: object(),
], ids=["nothing", "one", "four", "swapped", "array", "None", "int", "others", "object"])
def test_what_is_no_handle(items):
    def main(sent):
        what = items(sent.handle)
        with pytest.raises(TypeError, match="^items: must be what dispatch returned, or a tuple"):
            EPHandle(what)
        with pytest.raises(TypeError, match="^handle: must be what dispatch returned, or a tuple"):
            sent.buffer.combine(sent.recv_x, what)
        if what is not None:
            with pytest.raises(TypeError, match="^handle: must be what dispatch returned"):
                sent.buffer.dispatch(sent.x, what)

    on_ranks(main)


def test_it_dies_with_its_last_reference():
    """No cycle keeps a handle, nor what it keeps, until the collector runs."""
    def main(sent):
        class Kept:
            pass

        kept = Kept()
        watched = weakref.ref(kept)
        handle = EPHandle._of((sent.handle[0],), vars(sent.handle) | {"kept": kept})
        again = type(handle)(v for v in handle)
        del kept
        gc.disable()
        try:
            del handle
            assert watched() is again.kept
            del again
            assert watched() is None
        finally:
            gc.enable()

    on_ranks(main)
