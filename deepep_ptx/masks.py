# SPDX-License-Identifier: MIT
"""Ranks that low-latency calls do without: DeepEP's masks of ranks, `enable_shrink`."""

from . import _low_latency as core_calls
from ._call import Call
from ._low_latency_calls import take_written
from .arrays import INT32
from .arrays.library import default_library
from .checks import as_bool, check_int
from .errors import DeepEPError
from .launch_choice import OWN_RING


class MaskCalls:
    """The masks of a `Buffer`, which brings what its calls have in common."""

    def low_latency_update_mask_buffer(self, rank_to_mask, mask=False):
        """Mask a rank, or bring masked ranks back.

        Low-latency calls neither send to a masked rank nor wait for it: it has no rows in dispatch,
        and its experts none in combine.  A rank is masked as well once a call has waited for it as
        long as `timeout_s`, or when it has aborted.  Each rank has masks of its own.

        With mask=True: local, in the order of the current stream.  The rank that is masked is told:
        its next low-latency call fails with a `DeepEPTimeoutError`.
        With mask=False: collective, as `low_latency_clean_mask_buffer()`, which this is: a rank
        that comes back has to learn which call is the next.

        Args:
            rank_to_mask: in [0, size); with mask=True another one than this rank.
            mask: as above.

        Raises:
            ValueError, TypeError: an argument; enable_shrink is False.
        """
        core = self._shrinking_core()
        rank = check_int(rank_to_mask, "rank_to_mask", 0, self.group_size - 1)
        if not as_bool(mask, "mask"):
            self.reset()
            return
        if rank == self.rank:
            raise ValueError(f"rank_to_mask: must be another rank than this one, got {rank}")
        library = self._launcher.library or default_library(core.executor)
        call = Call.of_library(core.executor, library, "rank_to_mask")
        self._mask(call, [rank], None)

    def low_latency_query_mask_buffer(self, mask_status):
        """Ask which ranks are masked, in the order of the current stream.

        Args:
            mask_status: int32 [size], into which 1 is written for masked ranks and 0 for others.

        Raises:
            ValueError, TypeError: mask_status; enable_shrink is False.
        """
        core = self._shrinking_core()
        call = Call(core.executor, mask_status, "mask_status")
        self._mask(call, [], take_written(call, mask_status, "mask_status", (INT32,),
                                          (self.group_size,)))

    def low_latency_clean_mask_buffer(self):
        """Bring all masked ranks back; collective: it is `reset()`, which ranks that were masked
        may call in its place.

        Raises:
            ValueError: enable_shrink is False.
            DeepEPError: a rank is gone; it stays masked, and the buffer usable.
        """
        self._shrinking_core()
        self.reset()

    def _mask(self, call, ranks, status):
        launch = self._launcher.launch(call, 1, OWN_RING, None, False, False, has_start=False)
        core_calls.mask(self._core, ranks, status, launch)

    def _shrinking_core(self):
        core = self._live_core()
        if not self.enable_shrink:
            raise ValueError("enable_shrink: must be True for masks of ranks")
        return core


def check_nobody_masked(core, argument):
    """Before a collective of the hosts: masked ranks would not come to it."""
    if not core.shrinks:
        return
    masked = core.masked_ranks()
    if masked:
        raise DeepEPError(f"{argument}: the first call with these numbers is for all ranks "
                          f"together, and of them {masked} are masked")
