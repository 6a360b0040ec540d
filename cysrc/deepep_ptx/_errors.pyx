# SPDX-License-Identifier: MIT
"""Result codes and status records as exceptions."""

from libc.stdint cimport int32_t

from gen.params cimport (
    EP_AGREE_DTYPE,
    EP_AGREE_HANDLE,
    EP_AGREE_HIDDEN_BYTES,
    EP_AGREE_NUM_EXPERTS,
    EP_AGREE_NUM_TOPK,
    EP_AGREE_OP,
    EP_AGREE_SCALE_BYTES,
    EP_AGREE_TOPK_IDX_BYTES,
    EP_AGREE_WORST_ROWS,
    EP_CAPACITY_ARRAY,
    EP_CAPACITY_WORST,
    EP_CODE_ABORTED,
    EP_CODE_CAPACITY,
    EP_CODE_DEAD_HANDLE,
    EP_CODE_IN_CALL,
    EP_CODE_MISMATCH,
    EP_CODE_PEER_ABORT,
    EP_CODE_PEER_FAULT,
    EP_CODE_RANK_COUNTS,
    EP_CODE_TIMEOUT,
    EP_CODE_TOPK_RANGE,
    EP_CODE_TOPK_ROWS,
    EP_OP_CACHED_DISPATCH,
    EP_OP_COMBINE,
    EP_OP_DISPATCH,
    EP_OP_LL_COMBINE,
    EP_OP_LL_DISPATCH,
    EP_WAIT_CALL,
    EP_WAIT_DONE,
    EP_WAIT_LOAD,
    EP_WAIT_NUMBERS,
    EP_WAIT_PUSH,
)

from deepep_ptx._executor cimport (
    EP_ERR_CAPACITY,
    EP_ERR_CAPTURED,
    EP_ERR_DESTROYED,
    EP_ERR_INTERRUPTED,
    EP_ERR_STATUS,
    EP_ERR_TIMEOUT,
    EP_OK,
)

from deepep_ptx.arrays import dtypes
from deepep_ptx.errors import (
    CapacityError,
    DeepEPError,
    DeepEPTimeoutError,
    DestroyedError,
    RankMismatchError,
)

# Kernel of variants.toml, or a use of one, -> index in the core's table of kernels.
KERNELS = {ep_kernels[i].name.decode(): i for i in range(EP_NUM_KERNELS)}

cdef dict KERNEL_NAMES = {index: name for name, index in KERNELS.items()}

cdef frozenset LL_COMBINES = frozenset((
    EP_KERNEL_LL_COMBINE, EP_KERNEL_LL_COMBINE_SHRINK, EP_KERNEL_LL_LOGFMT_COMBINE))
cdef frozenset LL_KERNELS = LL_COMBINES | {EP_KERNEL_LL_DISPATCH, EP_KERNEL_LL_DISPATCH_SHRINK}

cdef dict WAITS = {
    EP_WAIT_CALL: "call record",
    EP_WAIT_PUSH: "pushed rows",
    EP_WAIT_DONE: "end of call",
    EP_WAIT_NUMBERS: "numbered tokens",
    EP_WAIT_LOAD: "bulk load",
}

cdef dict OPERATIONS = {EP_OP_DISPATCH: "dispatch", EP_OP_COMBINE: "combine",
                        EP_OP_CACHED_DISPATCH: "dispatch with a handle",
                        EP_OP_LL_DISPATCH: "low_latency_dispatch",
                        EP_OP_LL_COMBINE: "low_latency_combine"}

# Word of a call record -> the argument that it stands for, and how to print its value.
cdef dict AGREEMENTS = {
    EP_AGREE_OP: ("call", lambda word: OPERATIONS.get(word, word)),
    EP_AGREE_NUM_EXPERTS: ("num_experts", int),
    EP_AGREE_HIDDEN_BYTES: ("hidden", lambda word: f"{word} bytes"),
    EP_AGREE_DTYPE: ("x.dtype", dtypes.name_of_code),
    EP_AGREE_NUM_TOPK: ("num_topk", int),
    EP_AGREE_TOPK_IDX_BYTES: ("topk_idx.itemsize", lambda word: word & 255),
    EP_AGREE_HANDLE: ("handle", lambda word: "one of another buffer" if word >> 31
                      else f"of call {word}"),
    EP_AGREE_SCALE_BYTES: ("num_scales", lambda word: f"{word} bytes"),
    EP_AGREE_WORST_ROWS: ("num_worst_tokens", int),
}


# Likewise, where a low-latency call has another argument there.
cdef dict LL_AGREEMENTS = {
    EP_AGREE_WORST_ROWS: ("num_max_dispatch_tokens_per_rank", int),
    EP_AGREE_DTYPE: ("use_fp8", lambda word: f"use_fp8={word & 1}, round_scale={word >> 1 & 1}, "
                                             f"use_ue8m0={word >> 2}"),
}
# And a combine of low latency.
cdef dict LL_COMBINE_AGREEMENTS = {EP_AGREE_DTYPE: ("use_logfmt", bool)}


cdef object timeout_error(const ep_status_record *record, const Report *report):
    cdef uint32_t rank = report.rank
    wait = WAITS.get(record.what, f"wait {record.what}")
    kernel = KERNEL_NAMES.get(record.kernel, f"kernel {record.kernel}")
    peer = record.peer
    if record.code == EP_CODE_PEER_ABORT and peer == rank and report.shrinks:
        return DeepEPTimeoutError(
            f"rank {rank}: rank {record.seen} has masked this rank, which did not come in time; "
            "this rank takes part again behind low_latency_clean_mask_buffer() or reset() on all "
            "ranks", rank=rank, peer=record.seen, wait=wait)
    if record.code == EP_CODE_TIMEOUT:
        text = (f"rank {rank}: {kernel} reached the time limit waiting for the {wait} of rank "
                f"{peer}: did it make the same call? (flag {record.seen:#x}, wanted "
                f"{record.expected:#x})")
    else:
        text = f"rank {rank}: {kernel} waited for the {wait} of rank {record.seen}, which has "
        text += ("given up or left" if record.seen == peer
                 else f"aborted and blames rank {peer}")
    if report.crowded:
        text += ("; the calls of this process's buffers do not fit on the GPU side by side: make "
                 "them one behind the other on one stream, in the same order on all ranks, or with "
                 "fewer SMs")
    return DeepEPTimeoutError(f"{text}; the buffer stays aborted until reset()",
                              rank=rank, peer=peer, wait=wait)


cdef object mismatch_error(const ep_status_record *record, uint32_t rank):
    argument, show = AGREEMENTS.get(record.what, (f"word {record.what}", int))
    if record.kernel in LL_KERNELS:
        argument, show = LL_AGREEMENTS.get(record.what, (argument, show))
    if record.kernel in LL_COMBINES:
        argument, show = LL_COMBINE_AGREEMENTS.get(record.what, (argument, show))
    if record.what == EP_AGREE_TOPK_IDX_BYTES and (record.expected ^ record.seen) & 255 == 0:
        argument, show = "combine_hidden", lambda word: word >> 8
    values = (show(record.expected), show(record.seen))
    return RankMismatchError(
        f"{argument}: rank {rank} has {values[0]}, rank {record.peer} has {values[1]}; "
        "it must be equal on all ranks",
        argument=argument, ranks=(rank, record.peer), values=values,
    )


cdef object capacity_error(const ep_status_record *record, str name):
    # name: of the argument that gives the arena its size
    if record.what == EP_CAPACITY_ARRAY:
        return CapacityError(
            f"{name}: rank {record.peer} has no {record.seen} free bytes side by side; "
            f"{name}={record.expected} would hold them beside what it holds now",
            needed_bytes=record.expected)
    if record.what == EP_CAPACITY_WORST:
        return CapacityError(f"num_worst_tokens: must be at least {record.seen}, the rows that "
                             f"rank {record.peer} receives")
    what = "pushed" if record.kernel == EP_KERNEL_COMBINE else "received"
    return CapacityError(
        f"{name}: rank {record.peer} has no room for {record.seen} rows to be {what}; "
        f"{name}={record.expected} would hold them beside what it holds now",
        needed_bytes=record.expected)


cdef object status_error(const ep_status_record *record, const Report *report):
    cdef uint32_t rank = report.rank
    code = record.code
    if code == EP_CODE_TIMEOUT or code == EP_CODE_PEER_ABORT:
        return timeout_error(record, report)
    if code == EP_CODE_MISMATCH:
        return mismatch_error(record, rank)
    if code == EP_CODE_CAPACITY:
        return capacity_error(record, "num_nvl_bytes" if report.grows else "arena_limit_bytes")
    if code == EP_CODE_TOPK_RANGE:
        return ValueError(
            f"topk_idx: row {record.what} has expert {<long long>record.seen}, "
            f"accepted are -1 and [0, {record.expected})"
        )
    if code == EP_CODE_TOPK_ROWS:
        return ValueError(
            f"topk_idx: row {record.what} of rank {rank} names expert {record.seen} when its "
            f"tokens have done so {record.expected} times, num_max_dispatch_tokens_per_rank; the "
            "buffer stays aborted until reset()"
        )
    if code == EP_CODE_RANK_COUNTS:
        return ValueError(
            f"num_tokens_per_rank: {<int32_t>record.seen} tokens for rank {record.what}, "
            f"is_token_in_rank has {record.expected}"
        )
    if code == EP_CODE_DEAD_HANDLE:
        return ValueError("handle: must be of a dispatch that was carried out; the one that made "
                          "it was refused, which check() tells")
    if code == EP_CODE_PEER_FAULT:
        return DeepEPError(f"rank {record.peer} reported bad arguments; no rows were moved")
    if code == EP_CODE_IN_CALL:
        return DeepEPError("two calls of one buffer overlap, or a kernel did not end its call; "
                           "each must end before the next begins")
    if code == EP_CODE_ABORTED:
        return DeepEPError("the buffer is aborted; call reset() on all ranks")
    return DeepEPError(f"the device reported code {code}")


cdef object report_error(const Report *report):
    if report == NULL or report.num_records == 0:
        return DeepEPError("the device refused the call and wrote no status record")
    first = status_error(&report.records[0], report)
    texts = {str(first)}
    for i in range(1, report.num_records):
        if (report.records[i].code == EP_CODE_PEER_FAULT
                and report.records[i].peer == report.rank):
            continue        # that the others were told of what stands before it
        other = str(status_error(&report.records[i], report))
        if other not in texts:
            texts.add(other)
            first.add_note(f"also: {other}")
    if isinstance(first, CapacityError) and first.needed_bytes is not None:
        first.needed_bytes = max(
            report.records[i].expected for i in range(report.num_records)
            if report.records[i].code == EP_CODE_CAPACITY
            and report.records[i].what != EP_CAPACITY_WORST)
    return first


cdef int check(int code, Executor executor, const Report *report=NULL) except -1:
    if code == EP_OK:
        return 0
    if code == EP_ERR_STATUS:
        raise report_error(report)
    if code == EP_ERR_TIMEOUT:
        rank = report.rank if report != NULL else -1
        raise DeepEPTimeoutError(
            f"rank {rank}: the totals of the call did not arrive; the buffer stays aborted until "
            "reset()", rank=rank, peer=-1, wait="totals",
        )
    if code == EP_ERR_CAPACITY:
        raise CapacityError("num_nvl_bytes: the arena has all the segments that it can have; let "
                            "it start with more")
    if code == EP_ERR_DESTROYED:
        raise DestroyedError("the buffer was used after destroy()")
    if code == EP_ERR_INTERRUPTED:
        raise KeyboardInterrupt
    if code == EP_ERR_CAPTURED:
        raise DeepEPError("stream: is being captured, and would have to be waited for: by the "
                          "host, or because a result of the call before has died on it; make this "
                          "call before the capture or after it")
    if executor is None:
        raise MemoryError("no memory for the core")
    raise executor.error(code)
