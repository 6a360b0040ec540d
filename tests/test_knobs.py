# SPDX-License-Identifier: MIT
"""Launch parameters of the bulk kernels: rows stay right, who says them, what they can be."""

import numpy as np
import pytest

from deepep_ptx import Buffer, RankError, reference, run_ranks
from deepep_ptx._limits import MAX_SMEM
from deepep_ptx.select import choose
from deepep_ptx.tuning import Entry, Header, save
from tests.test_buffer_life import E, dispatch, tokens

R, T, H = 2, 24, 1024       # rows of 2048 bytes: several chunks, or a part of one
SM_90 = {"executor": "emu", "arch": "sm_90"}


def refused(main):
    """The error of a rank."""
    with pytest.raises(RankError) as caught:
        run_ranks(main, R, **SM_90)
    return caught.value.__cause__


def instructions(comm, policy="bulk", **options):
    """Warp instructions of a dispatch, of a combine that pulls and of one that pushes, whose
    results are right."""
    inputs = [tokens(rank, T, H) for rank in range(R)]
    received = reference.dispatch(*map(list, zip(*inputs, strict=True)), E)
    want = reference.combine([each.recv_x for each in received], received)[comm.rank][0]
    counts = []

    def counted(call, *arguments):
        before = comm.executor.counters()["warp_instructions"]
        result = call(*arguments)
        counts.append(comm.executor.counters()["warp_instructions"] - before)
        return result

    with Buffer(comm, policy=policy, **options) as ours:
        recv_x, *_, handle, _ = counted(dispatch, ours, *inputs[comm.rank])
        np.testing.assert_array_equal(recv_x, received[comm.rank].recv_x)
        for rows in recv_x, recv_x.copy():
            got = counted(ours.combine, rows, handle)[0]
            np.testing.assert_array_equal(got.view(np.uint16), want.view(np.uint16))
    return counts


def ran(path=None, **options):
    """`instructions` of rank 0."""
    return run_ranks(lambda comm: instructions(comm, tuning=path or False, **options), R,
                     **SM_90)[0]


# -- rows -------------------------------------------------------------------------------------

@pytest.mark.parametrize("knobs", [
    {"stages": 2}, {"stages": 7, "stage_bytes": 256}, {"stage_bytes": 16},
    {"stages": 190_000, "stage_bytes": 1040}, {"stage_bytes": 4096},
], ids=str)
def test_rows_do_not_depend_on_them(knobs):
    ran(**knobs)


def test_what_each_kernel_does_depends_on_them():
    own, small = ran(), ran(stage_bytes=256)
    assert small[0] > own[0] and small[2] > own[2]      # more chunks of a row
    assert small[1] == own[1]                           # nothing goes through a ring


def test_kernels_without_rings_ignore_them():
    assert ran(policy="ld_na", stages=9, stage_bytes=100_000) == ran(policy="ld_na")


# -- who says them ----------------------------------------------------------------------------

@pytest.fixture
def path(tmp_path):
    """A file that says something of dispatches of T tokens, and nothing of combines."""
    entry = Entry("dispatch", 2, 32, 2 * H, 2, "bulk", {"stage_bytes": 256}, 10.0)
    file = tmp_path / "t.json"
    save(file, Header("0", "CPU executor", R, 1, "2026-11-25", "none", 0, {}), [entry])
    return file


def test_a_file_says_them_of_its_class(path, monkeypatch):
    monkeypatch.setattr(Buffer, "num_sms", 2)       # whoever chooses the SMs
    own, small, of_file = ran(), ran(stage_bytes=256), ran(path)
    assert small[0] != own[0] and small[2] != own[2]
    assert of_file == [small[0], *own[1:]]


def test_the_buffer_comes_before_the_file(path, monkeypatch):
    monkeypatch.setattr(Buffer, "num_sms", 2)
    assert ran(path, stage_bytes=512) == ran(stage_bytes=512)


# -- what they can be -------------------------------------------------------------------------

@pytest.mark.parametrize("knobs, kind, text", [
    ({"stages": 1}, ValueError, rf"stages: must be in \[2, {MAX_SMEM}\], got 1"),
    ({"stages": 0}, ValueError, rf"stages: must be in \[2, {MAX_SMEM}\], got 0"),
    ({"stages": True}, TypeError, "stages: must be an integer, got bool"),
    ({"stages": "4"}, TypeError, "stages: must be an integer, got str"),
    ({"stage_bytes": 0}, ValueError, rf"stage_bytes: must be in \[16, {MAX_SMEM}\], got 0"),
    ({"stage_bytes": 24}, ValueError,
     rf"stage_bytes: must be a multiple of 16 in \[16, {MAX_SMEM}\], got 24"),
    ({"stage_bytes": 1 << 32}, ValueError,
     rf"stage_bytes: must be in \[16, {MAX_SMEM}\], got 4294967296"),
], ids=str)
def test_what_no_kernel_can_have(knobs, kind, text):
    error = refused(lambda comm: Buffer(comm, **knobs))
    assert type(error) is kind
    with pytest.raises(kind, match=f"^{text}"):
        raise error


def most(kernel):
    """Bytes of a stage that a ring of a bulk kernel has room for twice, with its mbarrier."""
    row = choose("bulk", "sm_90")[kernel]
    room = MAX_SMEM - row["smem"] - R * row["smem_per_rank"]
    return (room // row["rings"] // 2 - 16) // 16 * 16


def test_a_stage_that_shared_memory_has_no_room_for():
    """A call says so, of its own kernel, before it launches anything."""
    assert most("combine") < most("dispatch")

    def main(comm):
        with Buffer(comm, policy="bulk", stage_bytes=most("dispatch")) as ours:
            recv_x, *_, handle, _ = dispatch(ours, *tokens(comm.rank, T, H))
            launched = comm.executor.counters()
            for rows in recv_x, recv_x.copy():
                with pytest.raises(ValueError, match=r"^stage_bytes: must be a multiple of 16 in "
                                   rf"\[16, {most('combine')}\] for ep_combine_bulk, got "):
                    ours.combine(rows, handle)
            assert comm.executor.counters() == launched
            assert ours.last_launch == ("ep_dispatch_bulk", "ep_copy")
            ours.check()

    run_ranks(main, R, **SM_90)
    ran(stage_bytes=most("combine"))
    error = refused(lambda comm: instructions(comm, stage_bytes=most("dispatch") + 16))
    assert str(error) == (f"stage_bytes: must be a multiple of 16 in [16, {most('dispatch')}] for "
                          f"ep_dispatch_bulk, got {most('dispatch') + 16}")
