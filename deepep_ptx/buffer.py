# SPDX-License-Identifier: MIT
"""DeepEP's `Buffer`: dispatch and combine among the ranks of a group."""

import contextlib
import functools
import math
import warnings

from . import config as configs
from . import leaving, poison, select, tuning_files
from ._arguments import (
    Placement,
    check_experts,
    check_handle,
    first_array,
    take_bias,
    take_indices,
    take_layout,
    take_output,
    take_placement,
    take_rows,
    take_topk,
    take_weights,
)
from ._call import Call
from ._launcher import Launcher
from ._limits import MAX_CHOICE_ROWS, MAX_CTAS, MAX_HIDDEN, SLOT_ALIGN
from ._results import Part, Results
from ._slots import Region
from ._symmetric import Symmetric
from .arguments import check_config, checked_group, timeout_ns
from .arrays import BFLOAT16, BOOL, FLOAT32, INT32
from .arrays.library import default_library, library_of, library_of_dtype
from .arrays.streams import Stream
from .checks import as_bool, check_int, check_shape
from .comm import all_or_none
from .errors import DeepEPError, DestroyedError, RankMismatchError
from .event import EventHandle, EventOverlap
from .flight import Flights
from .handle import EPHandle
from .knobs import check_knobs
from .launch_choice import OWN_RING, LaunchChoice
from .low_latency import LowLatencyCalls, check_reduce
from .room import Room
from .tuning import tuned_variants

DEFAULT_SMS = configs.DEFAULT_SMS
_SHRINK = "_shrink"             # kernels in whose calls ranks may be masked, by how they end
MAX_ARENA_BYTES = 1 << 48       # no address space of a GPU or a process has more


class _NobodySet(int):
    """A number of SMs that is nobody's choice."""


class Buffer(LowLatencyCalls):
    """One rank's end of expert-parallel communication.

    Construction, `reset()`, `destroy()` and every `dispatch` and `combine` are collective: all
    ranks of the group make the same calls in the same order, one at a time.

    Arrays.  Results are of the library of the call's first array, and all arrays of a call are of
    one library.  On the CPU executor: NumPy arrays or torch CPU tensors; other host memory
    (`__array_interface__`, DLPack) gives NumPy results.  On GPUs: torch CUDA tensors, CuPy arrays;
    other device memory (`__cuda_array_interface__`, DLPack) gives `DeviceArray`; NumPy arrays are
    copied in and results copied out, for convenience.
    Streams.  A call's kernel runs on the buffer's own stream, after `previous_event` if one is
    given, else after what the caller's stream has queued.  The caller's stream waits for its end
    (`async_finish=False`), or the caller does by the event that the call returns.  `stream=` names
    the caller's stream: an int, or an object with `__cuda_stream__`, `cuda_stream` or `ptr`; None
    takes the library's current stream, else the array's `__cuda_array_interface__["stream"]`, else
    the legacy default stream.  On the CPU executor it must be None or 0.
    The host waits for the totals of `dispatch`, unless they are given; for the end of a call where
    NumPy arrays are used, on the CPU executor (unless `async_finish`), and where ranks are threads
    that share a GPU and the legacy default stream, or use CuPy.
    Errors that only the device can find (a rank that did not come, ranks that disagree) are raised
    by a call that waits for the host, on all ranks alike, or by `check()`.
    CUDA graphs.  `get_dispatch_layout`, `dispatch` with `num_worst_tokens` or a handle, and
    `combine` may be captured.  What a graph needs of the arena belongs to it until it dies, which
    must be before the buffer does.

    Args:
        group: what `run_ranks` gives to each rank, a `torch.distributed` process group or an
            mpi4py communicator with one process per GPU, or an object with `rank`, `size`,
            `allgather(obj)`, `barrier()` and `executor`.
        num_nvl_bytes: bytes with which the arena for results and staging starts, a multiple of
            128; it grows as calls need it.
        num_rdma_bytes: bytes with which low-latency memory starts, see
            `get_low_latency_rdma_size_hint`; the most of all ranks counts, and there is more once
            a call needs it.  0 without low_latency_mode.
        low_latency_mode: the low-latency calls may be made as well, in any order with the others.
        num_qps_per_rank, allow_nvlink_for_low_latency_mode, allow_mnnvl: as in DeepEP; without
            effect inside one NVLink domain.
        explicitly_destroy: the user calls `destroy()`; without it an unreachable buffer frees
            what is its own; the others must not be in a call with it any more.
        enable_shrink: low-latency calls mask a rank that does not come within `timeout_s`, or has
            aborted, and go on without it, see `low_latency_update_mask_buffer`; without it they
            raise.  The same on all ranks; only with low_latency_mode.
        policy: form of payload loads: "fast", "safe", "aggressive", a policy or a variant's
            symbol, or "bulk"; None: DEEPEP_PTX_POLICY, then DISABLE_AGGRESSIVE_PTX_INSTRS, then
            "fast".
        timeout_s: limit of each wait for another rank, in seconds (on the CPU executor of its
            virtual time), from when the call's kernel runs; None or infinity: no limit.
        tuning: path of a tuning file; None: DEEPEP_PTX_TUNING, else the user's file for this GPU
            and number of ranks, if there is one; False: no file.
        zero_copy: True: results are views of the arena as long as it has room.  None: likewise, but
            torch's are tensors as its allocator makes them, the large ones still in the arena.  In
            both cases combine reads expert output that lies there.  False: results are copies, and
            combine always pushes.
        stages, stage_bytes: launch parameters of the bulk kernels, for their rings of loads: at
            most so many stages, at least 2, as far as shared memory has room, of so many bytes, a
            multiple of 16; None: the tuning file's, else the kernel's own.
        arena_limit_bytes: bytes of an arena that does not grow, a multiple of 128, see
            `get_size_hint`; None: it grows.  On all ranks or on none.
        reduce: how `low_latency_combine` adds up, "exact" or "rank"; the same on all ranks.  None:
            the one that moves fewer bytes between so many ranks, with as many choices per token as
            the first low-latency call has.

    Raises:
        ValueError, TypeError: an argument out of range; the text begins with its name.
        TuningError: a tuning file that was named does not fit.
        NotImplementedError: num_rdma_bytes without low_latency_mode.
        RankMismatchError: one rank limits the arena and another does not; low_latency_mode,
            enable_shrink or reduce differ.
        DeepEPError: another rank failed; it is named.
    """

    num_sms = _NobodySet(DEFAULT_SMS)

    def __init__(self, group, num_nvl_bytes=0, num_rdma_bytes=0, low_latency_mode=False,
                 num_qps_per_rank=24, allow_nvlink_for_low_latency_mode=True, allow_mnnvl=False,
                 explicitly_destroy=False, enable_shrink=False, *, policy=None, timeout_s=100.0,
                 zero_copy=None, tuning=None, stages=None, stage_bytes=None,
                 arena_limit_bytes=None, reduce=None):
        self._core = None
        self.group = group              # as it was given: callers compare it
        self._comm = group = checked_group(group)
        self.variants = self.tuning = knobs = None

        def check():
            nonlocal knobs, num_nvl_bytes, num_rdma_bytes, arena_limit_bytes, explicitly_destroy
            nonlocal low_latency_mode, enable_shrink
            explicitly_destroy = as_bool(explicitly_destroy, "explicitly_destroy")
            num_nvl_bytes, arena_limit_bytes = _checked_arena(num_nvl_bytes, arena_limit_bytes)
            if not (zero_copy is None or isinstance(zero_copy, (bool, int))):
                raise TypeError("zero_copy: must be True, False or None, got "
                                f"{type(zero_copy).__name__}")
            low_latency_mode = as_bool(low_latency_mode, "low_latency_mode")
            enable_shrink = as_bool(enable_shrink, "enable_shrink")
            if enable_shrink and not low_latency_mode:
                raise ValueError("enable_shrink: must be False without low_latency_mode")
            num_rdma_bytes = check_int(num_rdma_bytes, "num_rdma_bytes", 0, MAX_ARENA_BYTES)
            if num_rdma_bytes and not low_latency_mode:
                raise NotImplementedError("num_rdma_bytes: must be 0 without low_latency_mode, all "
                                          f"ranks share one NVLink domain; got {num_rdma_bytes}")
            check_reduce(reduce)
            check_int(num_qps_per_rank, "num_qps_per_rank", 1)
            timeout_ns(timeout_s)
            knobs = check_knobs(stages=stages, stage_bytes=stage_bytes)
            self._poisons = poison.is_asked_for()
            executor = group.executor
            self.tuning = tuning_files.find(tuning, executor.device_name, group.size,
                                            executor.arch)
            name, origin = select.requested_policy(policy)
            choose = functools.partial(select.choose, arch=executor.arch, origin=origin,
                                       cta_smem=executor.cta_smem, num_ranks=group.size)
            self.variants = choose(name)
            if self.tuning is not None and not select.is_policy_requested(policy):
                self.variants = tuned_variants(self.variants, self.tuning, choose)
            self._symmetric = Symmetric(group)
            return low_latency_mode, enable_shrink

        # No rank waits for one whose arguments were refused.
        _check_same(group, ("low_latency_mode", "enable_shrink"), all_or_none(group, check))
        self.rank = group.rank
        self.group_size = group.size
        self.num_nvl_bytes = num_nvl_bytes
        self.num_rdma_bytes = num_rdma_bytes
        self.low_latency_mode = low_latency_mode
        self.explicitly_destroy = explicitly_destroy
        self.enable_shrink = enable_shrink
        self.timeout_s = timeout_s
        self.zero_copy = None if zero_copy is None else bool(zero_copy)
        self.arena_limit_bytes = arena_limit_bytes
        places = _places(self.variants, low_latency_mode, enable_shrink)
        kernels = {place: (variant, select.read_text(variant))
                   for place, variant in places.items()}
        self._ranks_here = self._symmetric.connect(self.num_nvl_bytes, self.arena_limit_bytes or 0,
                                                   timeout_ns(timeout_s), kernels)
        core = self._symmetric.core
        leaving.forget(group)
        if self._poisons:
            core.poison_slots()
        # Every CTA of a call may wait for its own grid's and for other ranks, so those of all ranks
        # that share a GPU must fit on it together.
        resident = core.max_ctas()
        self._max_sms = min(resident // self._ranks_here, MAX_CTAS)
        if self._max_sms == 0:
            raise ValueError(f"group: {self._ranks_here} ranks do not fit on one GPU, at most "
                             f"{resident} do")
        self._choice = LaunchChoice(group.executor.device_name, group.size, self._ranks_here,
                                    self._max_sms, self.variants, self.tuning, knobs)
        self._room = Room(self._symmetric, group.size, self.arena_limit_bytes or 0)
        self._results = Results(core, self.zero_copy)
        self._core = core
        self._in_flight = Flights(core)
        is_thread = getattr(group.executor, "world", None) is not None
        self._launcher = Launcher(core, self._in_flight, self._results, self._max_sms,
                                  self._ranks_here, is_thread)
        if enable_shrink:
            core.shrink()
        self._start_low_latency(reduce, num_rdma_bytes)

    def __repr__(self):
        known = vars(self)
        of = f"rank {known.get('rank')} of {known.get('group_size')}"
        if known.get("low_latency_mode"):
            of += f", low latency, reduce={self.reduce if '_agreement' in known else None!r}"
        if known.get("enable_shrink"):
            of += ", enable_shrink"
        return f"<{type(self).__name__} of {of}>"

    # -- growth, end ---------------------------------------------------------------------------

    def _live_core(self):
        if self._core is None:
            raise DestroyedError("the buffer was used after destroy()")
        return self._core

    def check(self):
        """Wait for this buffer's calls and raise what the device has reported since the last look.

        After replays of a graph: wait for the stream of the replays first.

        Raises:
            DeepEPTimeoutError, RankMismatchError, CapacityError, ValueError, DeepEPError.
        """
        self._live_core().check()
        self._in_flight.forget_finished()

    def reset(self):
        """Make the buffer usable again after a `DeepEPTimeoutError` on any rank; collective.

        Slots that the failed calls held are free again.
        """
        self._live_core()
        self._reset_low_latency()
        self._room.reset()
        self._in_flight.forget_finished()

    def destroy(self):
        """Free the buffer; collective.  Results that still live keep their memory.

        Raises:
            What `check()` would, or what the group says of a rank that is gone; the buffer is gone
            all the same.
        """
        if self._core is None:
            return
        self._hooks.clear()
        failure = None
        try:
            try:
                if self._core.has_news or not self._core.is_aborted:
                    self.check()
            except (DeepEPError, ValueError) as error:
                failure = error
            self._symmetric.end()
        except BaseException as error:      # of a group of which a rank is gone, or Ctrl-C
            self._leave()
            if failure is None or not isinstance(error, Exception):
                raise
            raise failure from error
        core, self._core = self._core, None
        self._in_flight.end()
        self._results.end()
        core.close()
        if failure is not None:
            raise failure

    def _leave(self):
        """End without the other ranks, who may be in the middle of a call with this one."""
        core, self._core = self._core, None
        self._hooks.clear()
        core.abandon()
        leaving.keep(self._comm, core, list(self._in_flight))
        self._in_flight.end()
        self._results.end()

    def __enter__(self):
        return self

    def __exit__(self, exc_type, exc, traceback):
        # After an error the other ranks may never reach a barrier.
        if exc_type is None:
            self.destroy()
        elif self._core is not None:
            unraised = self._core.unraised()
            if unraised is not None:
                exc.add_note(f"rank {self.rank}: the device has reported, too: {unraised}")
            self._leave()

    def __del__(self):
        if getattr(self, "_core", None) is None:
            return
        if self.explicitly_destroy:
            warnings.warn(f"rank {self.rank}: Buffer was not destroyed", ResourceWarning,
                          stacklevel=2)
        # After whole calls nobody writes here any more; after an aborted one somebody may.
        must_leave = self._core.is_aborted or self._is_busy()
        unraised = self._core.unraised()
        if unraised is not None:
            warnings.warn(f"rank {self.rank}: Buffer was not destroyed, and nobody has raised what "
                          f"one of its calls found: {type(unraised).__name__}: {unraised}",
                          RuntimeWarning, stacklevel=2)
        if must_leave:
            self._leave()
            return
        core, self._core = self._core, None
        self._hooks.clear()
        self._in_flight.end()
        self._results.end()
        core.leave()
        leaving.keep(self._comm, core)

    def _is_busy(self):
        """Whether a call has not ended."""
        with contextlib.suppress(DeepEPError):      # of a run that has failed: nothing runs
            return self._in_flight.is_busy()
        return False

    # -- settings and state --------------------------------------------------------------------

    @staticmethod
    def set_num_sms(num_sms):
        """CTAs of the kernels of all buffers from now on, at least 1, odd numbers too; a call
        raises `ValueError` where that many do not fit on the GPU, beside those of other ranks that
        share it.  Before the first call of this, calls take what a tuning file or the model of
        docs/tuning.md gives them, and `num_sms` is 20, DeepEP's."""
        Buffer.num_sms = check_int(num_sms, "num_sms", 1)

    @staticmethod
    def is_sm90_compiled():
        """Whether kernels for sm_90 are there: they always are."""
        return any(variant["arch"] == "sm_90" for variant in select.load_table()["variants"])

    @staticmethod
    def get_dispatch_config(num_ranks):
        """DeepEP's recommended `Config` of dispatch, with `Buffer.num_sms`."""
        return configs.get_dispatch_config(num_ranks, Buffer.num_sms)

    @staticmethod
    def get_combine_config(num_ranks):
        """DeepEP's recommended `Config` of combine, with `Buffer.num_sms`."""
        return configs.get_combine_config(num_ranks, Buffer.num_sms)

    get_size_hint = staticmethod(configs.get_size_hint)

    @staticmethod
    def capture():
        """An `EventOverlap` of what the current stream has queued by now."""
        return EventOverlap(EventHandle())

    def get_comm_stream(self):
        """The stream on which the kernels run: a `torch.cuda.Stream` where torch is loaded, else
        an object with `cuda_stream` and `__cuda_stream__`."""
        core = self._live_core()
        library = self._launcher.library or default_library(core.executor)
        if not (core.executor.takes_streams and hasattr(library, "stream")):
            return Stream(core.stream)
        core.keep_stream()
        return library.stream(core.stream, core.executor.device)

    def get_local_buffer_tensor(self, dtype, size=None, offset=0, use_rdma_buffer=False):
        """A view over the first part of this rank's arena, the bytes with which it started, for
        looking at it; of no use after `destroy()`.

        Args:
            dtype: of torch, for a tensor; else what `numpy.dtype` takes, for a NumPy array on the
                CPU executor and a `DeviceArray` on GPUs.
            size: shape; None: all that is behind `offset`, in one dimension.
            offset: bytes from the start of the arena, a multiple of the element's size.
            use_rdma_buffer: False.

        Raises:
            ValueError: num_nvl_bytes and arena_limit_bytes were not given, or it does not hold that
                much.
        """
        core = self._live_core()
        if as_bool(use_rdma_buffer, "use_rdma_buffer"):
            raise ValueError("use_rdma_buffer: must be False, this buffer has no RDMA memory")
        if not (self.num_nvl_bytes or self.arena_limit_bytes):
            raise ValueError("num_nvl_bytes: must be given for get_local_buffer_tensor; an arena "
                             "that starts with nothing has no fixed place")
        region = Region(core)
        library, dtype = library_of_dtype(dtype, core.executor)
        offset = check_int(offset, "offset", 0, region.nbytes)
        if offset % dtype.itemsize:
            raise ValueError(f"offset: must be a multiple of {dtype.itemsize} bytes, got {offset}")
        room = (region.nbytes - offset) // dtype.itemsize
        shape = (room,) if size is None else check_shape(size, "size")
        if math.prod(shape) > room:
            raise ValueError(f"size: must have at most {room} elements from byte {offset} on, "
                             f"got {list(shape)}")
        return Call.of_library(core.executor, library, "dtype").part(region, offset, shape, dtype)

    def get_combine_buffer(self, rows, hidden, *, like=None, stream=None):
        """A bfloat16 array [rows, hidden] in the arena, for expert output that `combine` shall read
        there; freed with its last view.

        like: an array of the library that it is to be of; None: that of the newest call.
        stream: on which it is used; None: as in a call.

        Raises:
            CapacityError: the arena has no room; a call with an ordinary array pushes its rows.
        """
        core = self._live_core()
        rows = check_int(rows, "rows", 0, configs.MAX_ROWS)
        hidden = check_int(hidden, "hidden", 1, MAX_HIDDEN)
        if hidden % 8:
            raise ValueError(f"hidden: must be a multiple of 8, got {hidden}")
        library = self._launcher.library or default_library(core.executor)
        if like is not None:
            library = library_of(like, "like")
        if not (core.executor.in_host_memory or library.on_gpu):
            raise TypeError("like: must be an array on the GPU")
        call = Call.of_library(core.executor, library, "like", stream)
        if like is not None:
            call.check_place(like, "like")
        if rows == 0:
            return call.empty((rows, hidden), BFLOAT16).owner
        if not (core.executor.takes_streams or core.look(call.stream)):
            core.settle()           # the host stores to it, and is on no stream
        if not core.look(call.stream):
            self._results.begin(call, False)
        return self._results.combine_buffer(call, rows, hidden, BFLOAT16)

    def count_received(self, handle):
        """Rows that this rank received by the dispatch of `handle`, an int.  Local.

        Without num_worst_tokens it is handle.num_recv.  Else the host waits for this buffer's
        calls; behind `check()` there is nothing left to wait for.  After replays of a graph it is
        the newest one's; wait for their stream first.

        handle: of this buffer.

        Raises:
            ValueError: of another buffer, or its dispatch was refused, which `check()` tells.
        """
        core = self._live_core()
        handle = check_handle(handle, core.executor, self.rank, self.group_size)
        if handle.buffer_number != self._room.number:
            raise ValueError("handle: must be of a dispatch of this buffer")
        if not handle.num_worst_tokens:
            return handle.num_recv
        count = core.count_received(handle.placement.rank_prefix)
        if count < 0:
            raise ValueError("handle: must be of a dispatch that was carried out; check() tells "
                             "why this one was not")
        return count

    @property
    def last_num_sms(self):
        """CTAs of the newest call; None before the first."""
        return self._launcher.last_num_sms

    @property
    def last_launch(self):
        """Symbols of the newest call's kernels, in launch order."""
        return self._live_core().launched

    def stats(self):
        """dict: arena_bytes; arena_used_bytes, of results and arrays that live; landing_bytes, kept
        free for pushed rows and for results that find no room; arena_segments; copied_bytes, of
        results that did not stay in the arena."""
        core = self._live_core()
        return {
            "arena_bytes": core.arena_bytes,
            "arena_used_bytes": core.arena_used_bytes - core.landing_bytes,
            "landing_bytes": core.landing_bytes,
            "arena_segments": core.num_segments,
            "copied_bytes": self._results.copied_bytes,
        }

    # -- launch of a call ------------------------------------------------------------------------

    def _choose(self, op, array, num_tokens, num_topk, num_sms, config):
        """CTAs and `Choice.ring` of a call on the rows of `array`.  Ranks may differ: rows and
        flags do not depend on it."""
        choice = self._choice.of(op, array.itemsize, num_tokens, array.shape[1] * array.itemsize,
                                 num_topk or self.group_size)
        return self._sms_of(num_sms, config, choice.sms), choice.ring

    def _sms_of(self, num_sms, config, chosen):
        """CTAs of a call: its num_sms, its config's, `set_num_sms`'s, else what was chosen for it,
        by the file or the model."""
        check_config(config)
        if num_sms is None and config is not None and config.num_sms:
            if config.num_sms == DEFAULT_SMS:       # nobody's choice: it gives way
                return min(DEFAULT_SMS, self._max_sms)
            num_sms = config.num_sms
        if num_sms is not None:
            return self._launcher.fitting_sms(num_sms)
        if not isinstance(self.num_sms, _NobodySet):
            return self._launcher.fitting_sms(self.num_sms)
        return chosen

    def _number_of(self, handle):
        return self._room.number_of(handle.placement.handle, handle.buffer_number)

    def _layout_sms(self):
        """Most CTAs of a layout, which waits for nobody."""
        if isinstance(self.num_sms, _NobodySet):
            return min(DEFAULT_SMS, self._max_sms)
        return self._launcher.fitting_sms(self.num_sms)

    # -- calls ---------------------------------------------------------------------------------

    def get_dispatch_layout(self, topk_idx, num_experts, previous_event=None, async_finish=False,
                            allocate_on_comm_stream=False, *, stream=None):
        """Count where this rank's tokens go.

        Args:
            topk_idx: int64 or int32 [num_tokens, num_topk], num_topk in 1..32; -1 = unused.
            num_experts: a multiple of the group's size; expert e lives on rank
                e // (num_experts / size).
            previous_event: an `EventOverlap` to start after, in place of the caller's stream; or
                an `EventHandle`, an event with `cuda_event` (`torch.cuda.Event`), or an object
                whose `event` is one of these; without an event, as None.
            async_finish: the caller's stream does not wait; the event does.  That of a dispatch or
                combine also knows of the call's start.
            allocate_on_comm_stream: results are allocated for the buffer's stream; only with the
                two before.
            stream: the caller's.

        Returns:
            num_tokens_per_rank int32 [R], num_tokens_per_rdma_rank None, num_tokens_per_expert
            int32 [num_experts], is_token_in_rank bool [num_tokens, R], event.

        Raises:
            ValueError: an expert outside of [-1, num_experts); on GPUs the next `dispatch` raises
                it, and all other ranks a `DeepEPError`.
        """
        core = self._live_core()
        call = Call(core.executor, topk_idx, "topk_idx", stream)
        topk = take_indices(call, topk_idx)
        num_experts = check_int(num_experts, "num_experts", 1)
        check_experts(num_experts, self.group_size, "num_experts")
        launch = self._launcher.launch(call, self._layout_sms(), OWN_RING, previous_event,
                                       async_finish, allocate_on_comm_stream, has_start=False)
        per_rank = call.empty((self.group_size,), INT32)
        per_expert = call.empty((num_experts,), INT32)
        in_rank = call.empty((topk.shape[0], self.group_size), BOOL)
        mappings = core.layout(topk, per_rank, per_expert, in_rank, launch)
        event = EventOverlap()
        if launch.detached:
            flight = self._in_flight.depart(launch, call, mappings, [topk_idx])
            event = self._in_flight.announce(flight, call, [per_rank.owner, per_expert.owner,
                                                            in_rank.owner])
        return per_rank.owner, None, per_expert.owner, in_rank.owner, event

    def dispatch(self, x, handle=None, num_tokens_per_rank=None, num_tokens_per_rdma_rank=None,
                 is_token_in_rank=None, num_tokens_per_expert=None, topk_idx=None,
                 topk_weights=None, expert_alignment=1, num_worst_tokens=0, config=None,
                 previous_event=None, async_finish=False, allocate_on_comm_stream=False, *,
                 num_sms=None, stream=None, combine_hidden=0):
        """Send each token once to every rank that has one of its experts; collective.

        Args:
            x: [num_tokens, hidden] of any type whose values fill its bytes, rows a multiple of 16
                bytes; or a pair of such an array and scales [num_tokens, num_scales] of a type of
                1, 2 or 4 bytes in any strides.  Unchanged until the call has ended.
            handle: of an earlier dispatch: rows go where they went then, without top-k, and
                nothing is counted: the layout's arrays are not looked at.
            num_tokens_per_rank, num_tokens_per_rdma_rank, is_token_in_rank,
            num_tokens_per_expert: as `get_dispatch_layout` returned them; the ranks' counts are
                checked against is_token_in_rank, the experts' are passed on as they are.
            topk_idx: int64 or int32 [num_tokens, num_topk]; None with topk_weights None.  Not
                checked against the layout; what is no expert of a token's rank arrives as -1.
            topk_weights: float32 [num_tokens, num_topk].
            expert_alignment: num_recv_tokens_per_expert_list is rounded up to multiples of it.
            num_worst_tokens: 0, or the number of rows of every result, at least what any rank
                receives; then top-k is needed and the host does not wait for the totals.  The same
                on all ranks.  With a handle 0 or handle.num_recv, which alike give as many rows.
            config: None or a `Config`, of which num_sms counts, unless it is 0.
            previous_event, async_finish, allocate_on_comm_stream: as in `get_dispatch_layout`.
            num_sms: CTAs of this call, from 1 to as many as fit on the GPU beside those of other
                ranks; None: the config's, else `set_num_sms`'s, else what the tuning file or the
                model gives.  Ranks may differ.
            stream: the caller's.
            combine_hidden: of rows that combine is to take, where they are wider than x's elements
                are many, the same on all ranks: room for them is made now, not by a collective of
                the group later.

        Returns:
            recv_x: [n, hidden] as x, rows by source rank, then by token; for a pair a pair, with
                recv_scales [n, num_scales] C-contiguous.
            recv_topk_idx: [n, num_topk] as topk_idx: local expert, -1 for another rank's; or None.
            recv_topk_weights: float32 [n, num_topk], 0 where recv_topk_idx is -1; or None.
            num_recv_tokens_per_expert_list: list of ints, one per local expert; [] with
                num_worst_tokens, None with a handle.
            handle: for `combine` and `dispatch`; None with a handle.
            event: `EventOverlap`.
            The arrays lie in the arena as long as it has room, as zero_copy says, unless NumPy
            arrays were given on a GPU; the last view that dies frees their slot.  What the handle
            holds is in memory of the library.
            With num_worst_tokens, rows past those received have recv_topk_idx -1 and are otherwise
            unspecified.

        Raises:
            ValueError, TypeError: an argument; nothing was launched, or no row was moved.
            CapacityError: a rank has no room for its rows (all ranks raise it).
            RankMismatchError: ranks gave different arguments (all ranks raise it).
            DeepEPTimeoutError: another rank did not come; then `reset()`.
        """
        core = self._live_core()
        self._check_no_hook()
        call = Call(core.executor, first_array(x), "x", stream)
        if handle is not None:
            if topk_idx is not None or topk_weights is not None:
                raise ValueError("topk_idx: must be None with a handle, and topk_weights too")
            return self._cached_dispatch(core, call, x, handle, num_worst_tokens, num_sms, config,
                                         previous_event, async_finish, allocate_on_comm_stream)
        if num_tokens_per_rdma_rank is not None:
            raise ValueError("num_tokens_per_rdma_rank: must be None, all ranks share one NVLink "
                             "domain")
        expert_alignment = check_int(expert_alignment, "expert_alignment", 1)
        num_worst_tokens = check_int(num_worst_tokens, "num_worst_tokens", 0, MAX_CHOICE_ROWS)
        combine_hidden = check_int(combine_hidden, "combine_hidden", 0, MAX_HIDDEN)
        rows = take_rows(call, x)
        num_tokens = rows.array.shape[0]
        layout = take_layout(call, num_tokens_per_rank, num_tokens_per_expert, is_token_in_rank,
                             num_tokens, self.group_size)
        if num_worst_tokens and topk_idx is None:
            raise ValueError("topk_idx: must be given with num_worst_tokens")
        topk, weights = take_topk(call, topk_idx, topk_weights, num_tokens)
        num_topk = 0 if topk is None else topk.shape[1]
        num_sms, ring = self._choose("dispatch", rows.array, num_tokens, num_topk, num_sms, config)
        launch = self._launcher.launch(call, num_sms, ring, previous_event, async_finish,
                                       allocate_on_comm_stream)
        if launch.captured and not num_worst_tokens:
            raise ValueError("num_worst_tokens: must be given while the stream is captured, the "
                             "host cannot wait for the totals then")

        of_row = self._room.of_row(rows.hidden, rows.row_bytes, rows.scale_bytes, combine_hidden)
        at = Placement(call.library, call.empty((num_tokens, self.group_size), INT32),
                       call.empty((self.group_size, self.group_size), INT32), *layout)
        parts = [*_row_parts(rows), None, None, Part((), INT32, in_handle=True)]
        if topk is not None:
            parts[2:4] = (Part((num_topk,), topk.dtype, whole=True), Part((num_topk,), FLOAT32))
        plan = self._results.plan(call, launch, parts, num_worst_tokens or None)
        arguments = (rows, topk, weights, at, num_worst_tokens, of_row, combine_hidden, launch,
                     plan.copies, plan.granule)
        try:
            if num_worst_tokens:
                self._room.for_worst(num_tokens, num_worst_tokens, num_topk, of_row,
                                     [part.row_bytes for part in parts if part], launch.captured)
                received, mappings = core.dispatch(*arguments)
            else:
                received, mappings = self._room.with_growth(
                    core.dispatch, *arguments, self._results.ahead(call, plan), undo=plan.close)
        except BaseException:
            plan.close()
            raise
        pos, rank_prefix = at.pos.owner, at.rank_prefix.owner
        if launch.detached:
            flight = self._in_flight.depart(launch, call, mappings, [
                *_arrays(x), num_tokens_per_rank, is_token_in_rank, num_tokens_per_expert,
                topk_idx, topk_weights, pos, rank_prefix])
        results, copying = self._results.make(call, launch, received, at.rank_prefix, plan)
        recv_x, recv_scales, recv_idx, recv_weights, recv_src_idx = results
        for array in (pos, rank_prefix, recv_src_idx):
            call.freeze(array)
        event = EventOverlap()
        if launch.detached:
            flight.keep(copying)
            event = self._in_flight.announce(flight, call, [pos, rank_prefix, *results])
        handle = EPHandle._of((rank_prefix,), {
            "rank": self.rank, "executor": core.executor.name, "recv_src_idx": recv_src_idx,
            "is_token_in_rank": is_token_in_rank, "num_tokens": num_tokens,
            "num_recv": received.rows, "num_worst_tokens": num_worst_tokens, "num_topk": num_topk,
            "hidden": rows.hidden, "pos": pos,
            "placement": at.filled(received.number, received.rows),
            "room": self._room.of_handle(of_row, launch.captured),
            "buffer_number": self._room.number,
        })
        counts = received.expert_counts
        if expert_alignment != 1:
            counts = [-(-count // expert_alignment) * expert_alignment for count in counts]
        return _as_given(recv_x, recv_scales), recv_idx, recv_weights, counts, handle, event

    def _cached_dispatch(self, core, call, x, handle, num_worst_tokens, num_sms, config,
                         previous_event, async_finish, allocate_on_comm_stream):
        handle = check_handle(handle, core.executor, self.rank, self.group_size)
        if check_int(num_worst_tokens, "num_worst_tokens", 0) not in (0, handle.num_recv):
            raise ValueError(f"num_worst_tokens: must be 0 or {handle.num_recv}, the rows of the "
                             f"handle, got {num_worst_tokens}")
        rows = take_rows(call, x, handle.num_tokens)
        num_sms, ring = self._choose("dispatch", rows.array, handle.num_tokens, handle.num_topk,
                                     num_sms, config)
        launch = self._launcher.launch(call, num_sms, ring, previous_event, async_finish,
                                       allocate_on_comm_stream)
        at = take_placement(call, handle, self._number_of(handle))
        of_row = self._room.for_cached(handle, rows.row_bytes, rows.scale_bytes, launch.captured)
        plan = self._results.plan(call, launch, [*_row_parts(rows), None, None, None],
                                  handle.num_recv)
        received, mappings = core.dispatch(rows, None, None, at, handle.num_worst_tokens, 0, 0,
                                           launch, plan.copies, plan.granule)
        self._room.made(handle, of_row)
        if launch.detached:
            flight = self._in_flight.depart(launch, call, mappings, [*_arrays(x), handle])
        results, copying = self._results.make(call, launch, received, at.rank_prefix, plan)
        event = EventOverlap()
        if launch.detached:
            flight.keep(copying)
            event = self._in_flight.announce(flight, call, results)
        return _as_given(*results[:2]), None, None, None, None, event

    def combine(self, x, handle, topk_weights=None, bias=None, config=None, previous_event=None,
                async_finish=False, allocate_on_comm_stream=False, *, num_sms=None, stream=None):
        """Add up, for each of this rank's tokens, the rows that its ranks made of it; collective.

        The sum is in float32, in ascending rank order on top of the biases, rounded once.

        Args:
            x: bfloat16 [handle.num_recv, hidden], of any hidden (where it is larger than the
                dispatch's, see its `combine_hidden`); in the arena (computed in place in recv_x, or
                in `get_combine_buffer`) it is read there by the other ranks, else it is sent.
            handle: of the dispatch.
            topk_weights: float32 [handle.num_recv, num_topk] or None.
            bias: None, bfloat16 [num_tokens, hidden], or a pair of such, of which each may be
                None.
            config, previous_event, async_finish, allocate_on_comm_stream, num_sms: as in
                `dispatch`.
            stream: the caller's.

        Returns:
            combined_x bfloat16 [num_tokens, hidden], combined_topk_weights float32 [num_tokens,
            num_topk] (sums over the ranks) or None, event.

        Raises:
            As `dispatch`; what the device finds, a call that waits for the host raises.
        """
        core = self._live_core()
        self._check_no_hook()
        handle = check_handle(handle, core.executor, self.rank, self.group_size)
        call = Call(core.executor, x, "x", stream)
        rows = take_output(call, x, handle)
        hidden = rows.shape[1]
        weights = out_weights = None
        if topk_weights is not None:
            weights = take_weights(call, topk_weights, handle.num_recv)
        bias0, bias1 = take_bias(call, bias, handle.num_tokens, hidden)
        pulls = self.zero_copy is not False
        is_pulled = core.is_pulled(rows, pulls)
        num_sms, ring = self._choose("combine_pull" if is_pulled else "combine_push", rows,
                                     handle.num_tokens, handle.num_topk, num_sms, config)
        launch = self._launcher.launch(call, num_sms, ring, previous_event, async_finish,
                                       allocate_on_comm_stream)
        at = take_placement(call, handle, self._number_of(handle))
        out = call.empty((handle.num_tokens, hidden), BFLOAT16)
        if weights is not None:
            out_weights = call.empty((handle.num_tokens, weights.shape[1]), FLOAT32)
        arguments = (rows, is_pulled, weights, bias0, bias1, out, out_weights, at,
                     handle.num_topk or self.group_size, pulls, launch)
        of_row = self._room.for_combine(handle, hidden * rows.itemsize, launch.captured)
        mappings = core.combine(*arguments)
        self._room.made(handle, of_row)
        combined_x = out.owner
        combined_weights = None if out_weights is None else out_weights.owner
        event = EventOverlap()
        if launch.detached:
            flight = self._in_flight.depart(launch, call, mappings,
                                            [x, topk_weights, *_arrays(bias), handle])
            event = self._in_flight.announce(flight, call, [combined_x, combined_weights])
        return combined_x, combined_weights, event


def _places(variants, low_latency_mode, enable_shrink):
    """Name of a kernel's place -> the variant that runs there.

    Of the calls that such a buffer makes: to load a kernel takes time, and memory of the GPU.
    """
    def is_used(name):
        if not name.startswith("ll_"):
            return True
        return low_latency_mode and enable_shrink == (name.endswith(_SHRINK) or name == "ll_mask")

    return {name.removesuffix(_SHRINK): variant for name, variant in variants.items()
            if is_used(name)}


def _check_same(group, arguments, everybody):
    """What each rank has given for each argument, a bool, is the same; they all raise alike."""
    for rank, values in enumerate(everybody):
        if not (type(values) is tuple and len(values) == len(arguments)
                and all(type(value) is bool for value in values)):
            raise group.refusal(f"{values!r} of rank {rank}, which is in another collective")
        for argument, first, value in zip(arguments, everybody[0], values, strict=True):
            if value != first:
                raise RankMismatchError(
                    f"{argument}: rank 0 has {first}, rank {rank} has {value}; it must be equal on "
                    "all ranks", argument=argument, ranks=(0, rank), values=(first, value))


def _checked_arena(num_nvl_bytes, limit):
    """The sizes of an arena, the second None where it grows."""
    num_nvl_bytes = _checked_size(num_nvl_bytes, "num_nvl_bytes")
    if limit is None:
        return num_nvl_bytes, None
    limit = _checked_size(limit, "arena_limit_bytes")
    if limit == 0 or limit < num_nvl_bytes:
        raise ValueError(f"arena_limit_bytes: must be at least num_nvl_bytes, {num_nvl_bytes}, and "
                         f"above 0, got {limit}")
    return num_nvl_bytes, limit


def _checked_size(value, name):
    nbytes = check_int(value, name, 0, MAX_ARENA_BYTES)
    if nbytes % SLOT_ALIGN:
        raise ValueError(f"{name}: must be a multiple of {SLOT_ALIGN}, got {nbytes}")
    return nbytes


def _row_parts(rows):
    """x of a result, and its scales or None."""
    x = Part(rows.array.shape[1:], rows.array.dtype)
    if rows.scales is None:
        return [x, None]
    return [x, Part(rows.scales.shape[1:], rows.scales.dtype)]


def _as_given(recv_x, recv_scales):
    """recv_x, a pair where x was one."""
    return recv_x if recv_scales is None else (recv_x, recv_scales)


def _arrays(value):
    """The arrays of an argument that is one, a pair or None."""
    return value if isinstance(value, tuple) else (value,)
