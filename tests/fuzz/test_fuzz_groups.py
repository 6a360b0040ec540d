# SPDX-License-Identifier: MIT
"""Groups that lie: about themselves, and in what their `allgather` returns from some call on.

Construction, growth, a round trip and a reset are right, or an error names the group.
"""

import numpy as np
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from deepep_ptx import Buffer, RankError, run_ranks
from deepep_ptx.errors import DeepEPError, RankMismatchError
from tests.hostile_groups import LISTS, VALUES, Group, contents
from tests.test_buffer_life import check_round

BOUNDED = settings(derandomize=True, database=None, print_blob=False,
                   phases=(Phase.explicit, Phase.generate))
R = 2
ALLGATHERS = 13             # of construction and `use`, and one more

# In place of a value that a rank gave; none of them is one that a rank could have given there.
JUNK = {"None": None, "a negative number": -1, "2**64": 1 << 64, "a fraction": 0.5, "True": True,
        "text": "x", "bytes": b"x", "a tuple": (), "a list": [], "a type": int,
        "int64": np.int64(1), "an array": np.zeros(3), "128 bytes": bytes(128)}


def replaced(number, junk):
    """The `number`-th of what a rank gave becomes `junk`, on all ranks alike."""
    def change(everybody):
        left = [number]

        def of(value):
            left[0] -= 1
            return JUNK[junk] if left[0] == -1 else value
        return contents(of)(everybody)
    return change


def change_of(lie):
    kind, name, *number = lie
    if kind == "list":
        return LISTS[name]
    return contents(VALUES[name]) if kind == "values" else replaced(*number, name)


def use(buffer):
    """Construction is behind; the arena grows here."""
    check_round(buffer, R, hidden=8)
    check_round(buffer, R, hidden=512)
    buffer.reset()
    check_round(buffer, R, hidden=8)


@pytest.fixture(scope="module", autouse=True)
def few_sms():
    """Calls take less time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Buffer, "num_sms", 2)
        yield


def test_the_arena_grows():
    """So that there is a collective in the middle of a call."""
    def main(comm):
        group = Group(comm)
        with Buffer(group, 1 << 13) as buffer:
            use(buffer)
            return buffer.stats()["arena_segments"], -group.calls_left

    for segments, calls in run_ranks(main, R, executor="emu"):
        assert segments > 1 and ALLGATHERS - 3 <= calls <= ALLGATHERS


LIES = st.one_of(
    st.tuples(st.just("list"), st.sampled_from(sorted(LISTS))),
    st.tuples(st.just("values"), st.sampled_from(sorted(VALUES))),
    st.tuples(st.just("value"), st.sampled_from(sorted(JUNK)), st.integers(0, 9)),
)


@example(("list", "too few"), 0, (0, 1))
@example(("list", "another order"), 1, (1,))
@example(("value", "a negative number", 2), 5, (0, 1))
@example(("values", "short handles"), 0, (0, 1))
@settings(BOUNDED, max_examples=120)
@given(LIES, st.integers(0, ALLGATHERS), st.sampled_from([(0, 1), (0,), (1,)]))
def test_what_allgather_returns(lie, when, ranks):
    def main(comm):
        group = Group(comm, change_of(lie) if comm.rank in ranks else None, when)
        with Buffer(group, 1 << 13) as buffer:
            use(buffer)

    try:
        run_ranks(main, R, executor="emu")
    except RankError as caught:
        assert_named(caught.__cause__, ranks == (0, 1))


def assert_named(error, alike):
    """Of the group's method, of the handle that the executor refuses, or of the rank that failed.

    alike: all ranks were told the same.  Else one may go where the others are not, who say so.
    """
    assert isinstance(error, (TypeError, ValueError, DeepEPError)), repr(error)
    if isinstance(error, RankMismatchError):        # a lie like an argument of another rank's
        assert str(error).startswith(f"{error.argument}: "), str(error)
        return
    if not alike and isinstance(error, DeepEPError):
        return
    assert str(error).startswith((
        "group.allgather: must return a list of what each of the 2 ranks gave, in rank order; ret",
        "handle: ", "rank 0 failed: ", "rank 1 failed: ", "rank 0 takes no part in ",
        "rank 1 takes no part in ")), str(error)


ATTRIBUTES = {**JUNK, "-1": -1, "0": 0, "1": 1, "2": 2, "3": 3, "65": 65, "2**32": 1 << 32,
              "uint8 1": np.uint8(1), "NumPy True": np.True_}


@example("size", "a list")
@example("rank", "2**64")
@settings(BOUNDED, max_examples=60)
@given(st.sampled_from(["rank", "size", "executor", "allgather", "barrier", "ranks_per_node"]),
       st.sampled_from(sorted(ATTRIBUTES)))
def test_what_a_group_says_of_itself(attribute, name):
    if attribute in ("allgather", "barrier") and callable(ATTRIBUTES[name]):
        return                      # what it raises is its own

    def main(comm):
        group = Group(comm)
        setattr(group, attribute, ATTRIBUTES[name])
        with Buffer(group, 1 << 14) as buffer:
            check_round(buffer, R, hidden=8)

    try:
        run_ranks(main, R, executor="emu")
    except RankError as caught:
        error = caught.__cause__
        assert isinstance(error, (TypeError, ValueError, NotImplementedError, DeepEPError))
        assert str(error).startswith(("group: ", "group.allgather: ", "rank ")), repr(error)
