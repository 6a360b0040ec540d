# SPDX-License-Identifier: MIT
"""Results are torch's own tensors: what its allocator promises holds, and combine still pulls."""

import gc
import random

import pytest

torch = pytest.importorskip("torch")

from deepep_ptx import Buffer  # noqa: E402
from deepep_ptx.arrays.torch_memory import LEAST_BYTES  # noqa: E402
from tests.gpu.processes import spawn  # noqa: E402

TOKENS, HIDDEN, EXPERTS, TOPK = 1024, 7168, 64, 8       # 14 MiB a rank at least: they are lent
HOLD_CYCLES = 20_000_000        # of a stream: about 10 ms


class Side:
    """One rank: inputs, calls, and what has to come out."""

    def __init__(self, rank, group, tokens=TOKENS, seed=0):
        torch.manual_seed(10 * seed + rank)
        device = torch.device("cuda", torch.cuda.current_device())
        self.group = group
        self.x = torch.randn(tokens, HIDDEN, device=device).bfloat16()
        self.idx = torch.rand(tokens, EXPERTS, device=device).topk(TOPK, dim=1).indices
        self.weights = torch.rand(tokens, TOPK, device=device)

    def dispatch(self, buffer, **options):
        per_rank, _, per_expert, self.in_rank, _ = buffer.get_dispatch_layout(self.idx, EXPERTS)
        return buffer.dispatch(
            self.x, num_tokens_per_rank=per_rank, num_tokens_per_expert=per_expert,
            is_token_in_rank=self.in_rank, topk_idx=self.idx, topk_weights=self.weights, **options)

    def combined(self):
        """Of the rows as they came."""
        return (self.x.float() * self.in_rank.sum(1, keepdim=True)).bfloat16()

    def assert_combined(self, buffer, rows, handle, **options):
        out, _, event = buffer.combine(rows, handle, **options)
        event.current_stream_wait()
        assert torch.equal(out, self.combined())


def is_pulled(buffer):
    return buffer.last_launch == (buffer.variants["combine"]["symbol"],)


def ordinary(rank, group, _):
    """Large results lie in the arena, each array has a storage of its own, and goes by itself."""
    side = Side(rank, group)
    with Buffer(group, timeout_s=20) as buffer:
        recv_x, recv_idx, recv_weights, _, handle, _ = side.dispatch(buffer)
        assert recv_x.nbytes >= LEAST_BYTES and buffer.stats()["arena_used_bytes"] >= recv_x.nbytes
        storages = {array.untyped_storage().data_ptr() for array in (recv_x, recv_idx, recv_weights,
                                                                     handle.recv_src_idx)}
        assert len(storages) == 4
        assert all(array.untyped_storage().resizable() for array in (recv_x, recv_idx))
        side.assert_combined(buffer, recv_x, handle)
        assert is_pulled(buffer)
        rows, place = recv_x.clone(), recv_x.data_ptr()
        recv_x.untyped_storage().resize_(0)
        again, *_ = buffer.dispatch(side.x, handle=handle)
        assert again.data_ptr() == place and torch.equal(again, rows)
        assert recv_idx.max() < EXPERTS // 2 and recv_weights.sum() > 0
        again.mul_(2)
        out, _, _ = buffer.combine(again, handle)
        assert is_pulled(buffer) and torch.equal(out, 2 * side.combined())
        del again, out, recv_x, recv_idx, recv_weights
        assert torch.equal(buffer.dispatch(side.x, handle=handle)[0], rows)
        assert buffer.get_combine_buffer(*rows.shape).untyped_storage().resizable()
        buffer.check()


def another_stream(rank, group, told):
    """A reader on another stream that torch was told of, or that the caller's waits for."""
    side = Side(rank, group)
    with Buffer(group, timeout_s=20) as buffer:
        recv_x, _, _, _, handle, _ = side.dispatch(buffer)
        rows = recv_x.clone()
        current, other = torch.cuda.current_stream(), torch.cuda.Stream()
        copies = []
        for turn in range(12):
            recv_x, *_, event = buffer.dispatch(
                side.x, handle=handle, async_finish=turn % 2 == 1,
                **({"previous_event": Buffer.capture(), "allocate_on_comm_stream": True}
                   if turn % 4 == 3 else {}))
            event.current_stream_wait()
            other.wait_stream(current)
            with torch.cuda.stream(other):
                torch.cuda._sleep(HOLD_CYCLES)
                copies.append(recv_x.clone())
            if told:
                recv_x.record_stream(other)
            else:
                current.wait_stream(other)
            del recv_x
            for _ in range(3):
                buffer.dispatch(-side.x, handle=handle)
        torch.cuda.synchronize()
        assert all(torch.equal(copy, rows) for copy in copies)


def filled(rank, group, _):
    """torch fills what is new with NaN on the caller's stream, for which a call need not wait."""
    side = Side(rank, group)
    with Buffer(group, timeout_s=20) as buffer:
        recv_x, _, _, _, handle, _ = side.dispatch(buffer)
        rows = recv_x.clone()
        torch.use_deterministic_algorithms(True)
        assert torch.utils.deterministic.fill_uninitialized_memory
        for _ in range(4):
            start = Buffer.capture()
            torch.cuda._sleep(HOLD_CYCLES)
            again, *_, event = buffer.dispatch(side.x, handle=handle, previous_event=start,
                                               async_finish=True)
            out, _, event = buffer.combine(again, handle, previous_event=event, async_finish=True)
            event.current_stream_wait()
            assert torch.equal(again, rows) and torch.equal(out, side.combined())
            torch.cuda._sleep(HOLD_CYCLES)
            recv_x = side.dispatch(buffer, previous_event=Buffer.capture())[0]
            assert torch.equal(recv_x, rows)


def layers(rank, group, start_bytes):
    """58 layers keep the handles of their last dispatch; the arena keeps nothing for them."""
    handles = [None] * 58
    with Buffer(group, start_bytes, timeout_s=20) as buffer:
        for tokens in (64, 1024, 64, 1024):
            side = Side(rank, group, tokens)
            for layer in range(58):
                recv_x, _, _, _, handles[layer], _ = side.dispatch(buffer)
                side.assert_combined(buffer, recv_x, handles[layer])
                del recv_x
            stats = buffer.stats()
            side.assert_combined(buffer, buffer.dispatch(side.x, handle=handles[7])[0], handles[7])
        assert stats["arena_used_bytes"] <= 2 * (2 * 1024 * HIDDEN * 2 + (4 << 20)), stats
        assert stats["arena_bytes"] <= max(start_bytes, 1 << 28), stats


def outlive(rank, group, _):
    """Tensors outlive their buffer; handles work with another buffer, and with wider rows."""
    side = Side(rank, group)
    buffer = Buffer(group, timeout_s=20)
    recv_x, _, _, _, handle, _ = side.dispatch(buffer)
    rows = recv_x.clone()
    buffer.destroy()
    for _ in range(2):
        with Buffer(group, timeout_s=20) as buffer:
            assert torch.equal(buffer.dispatch(side.x, handle=handle)[0], rows)
            side.assert_combined(buffer, recv_x, handle)
            assert not is_pulled(buffer)
            wide = torch.cat([recv_x, recv_x], dim=1)
            out, _, _ = buffer.combine(wide, handle)
            assert torch.equal(out, torch.cat([side.combined()] * 2, dim=1))
            buffer.check()
        gc.collect()
    assert torch.equal(recv_x, rows)


def soak(rank, group, _):
    """Results of many sizes die in any order, also while they are used on another stream."""
    draw, mine, held = random.Random(7), random.Random(rank), []
    other = torch.cuda.Stream()
    sides = [Side(rank, group, tokens, seed) for seed, tokens in enumerate((1, 64, 512, 1024, 700))]
    wrong = torch.zeros((), dtype=torch.bool, device="cuda")
    with Buffer(group, timeout_s=20) as buffer:
        known = []
        for side in sides:
            recv_x, _, _, _, handle, _ = side.dispatch(buffer)
            known.append((side, handle, recv_x.clone()))
        for turn in range(400):
            side, handle, rows = known[draw.randrange(len(known))]
            how = draw.randrange(4)
            if how == 0:
                recv_x = side.dispatch(buffer)[0]
            elif how == 1:
                recv_x, *_, event = buffer.dispatch(side.x, handle=handle, async_finish=True,
                                                    previous_event=Buffer.capture(),
                                                    allocate_on_comm_stream=bool(turn % 2))
                event.current_stream_wait()
            elif how == 2:
                recv_x = buffer.dispatch(side.x, handle=handle)[0]
            else:
                recv_x = side.dispatch(buffer, num_worst_tokens=2 * len(side.x))[0][:len(rows)]
            out = buffer.combine(recv_x if how != 3 else recv_x.clone(), handle)[0]
            wrong |= (out != side.combined()).any()
            if mine.random() < 0.3:
                other.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(other):
                    torch.cuda._sleep(HOLD_CYCLES // 20)
                    wrong_there = (recv_x != rows).any()
                recv_x.record_stream(other)
                held.append((wrong_there, None))
            else:
                held.append((recv_x, rows))
            while len(held) > 3:
                array, want = held.pop(mine.randrange(len(held)))
                if want is None:
                    torch.cuda.current_stream().wait_stream(other)
                    wrong |= array
                else:
                    wrong |= (array != want).any()
            del recv_x
        torch.cuda.synchronize()
        assert not wrong
        held.clear()
        buffer.check()
        assert buffer.stats()["arena_bytes"] < 1 << 30, buffer.stats()


def full(rank, group, _):
    """The arena grows though torch's cache holds nearly all memory, and what it frees is enough."""
    side = Side(rank, group)
    free, _ = torch.cuda.mem_get_info()
    kept = [torch.empty(1 << 30, dtype=torch.uint8, device="cuda") for _ in range((free >> 30) - 1)]
    with Buffer(group, timeout_s=20) as buffer:
        recv_x, _, _, _, handle, _ = side.dispatch(buffer)      # fits beside it
        side.assert_combined(buffer, recv_x, handle)
        assert torch.cuda.mem_get_info()[0] < 3 << 30
        del kept[:4]                                            # into the cache
        large = Side(rank, group, 24 * TOKENS)
        recv_x, _, _, _, handle, _ = large.dispatch(buffer)
        large.assert_combined(buffer, recv_x, handle)


@pytest.mark.parametrize(("program", "argument"), [
    (ordinary, None), (another_stream, True), (another_stream, False), (filled, None),
    (layers, 0), (layers, 1 << 28), (outlive, None), (soak, None), (full, None),
], ids=lambda value: getattr(value, "__name__", str(value)))
def test_torch_results(request, program, argument):
    if program is full:                         # of each GPU, for its own rank
        request.getfixturevalue("two_gpus")
    assert spawn(program, argument) == [0, 0]
