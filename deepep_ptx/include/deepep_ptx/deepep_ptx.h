/* SPDX-License-Identifier: MIT
 *
 * The core for programs without Python: one rank's buffer, its memory and its calls.  This is the
 * ground floor of a C ABI and internal for now: names and layouts change with any version, and
 * whoever includes this file links the core of the same tree (cysrc/core).
 *
 * A buffer has a symmetric heap, in which ranks tell each other things, and an arena, in which results
 * and rows that peers push lie.  The caller brings an executor (executor.h), kernels that it has
 * loaded, and a way to exchange handles with the other ranks.
 *
 * Construction, on every rank; symmetric.h does it, and growth, reset and end as well, over a group
 * that the caller brings:
 *     ep_buffer_create, ep_buffer_set_kernel for each kernel
 *     ep_buffer_heap_handle, exchange, ep_buffer_open_heap of each rank
 *     ep_buffer_add_segment, exchange, ep_buffer_open_segment of each rank   (again to grow)
 *     ep_buffer_publish, a barrier
 * The end: a barrier, ep_buffer_close_peers, a barrier, ep_buffer_close; or ep_buffer_leave; or
 * ep_buffer_abandon.  Then ep_buffer_destroy, once the last slot has been given back.
 *
 * Order.  dispatch, combine, reset and everything about segments are collective: all ranks make them,
 * in the same order.  A call's kernels run on the buffer's stream; the host waits for their end only
 * where EP_CALL_WAIT asks for it.  Once a buffer is closed, functions that return a result say
 * EP_ERR_DESTROYED; its slots still end, and what says of itself that it may be asked still answers.
 *
 * Threads.  Functions of one buffer are called one at a time, from whatever threads.  Those marked
 * "any thread" may run at any time beside these, until ep_buffer_destroy.  Several buffers need no
 * order, also those of one executor.
 *
 * Errors.  A function that returns int gives enum ep_result, unless its comment says what else.
 * EP_ERR_EXECUTOR, EP_ERR_MEMORY and EP_ERR_TIMEOUT have their reason in the executor's last_error().
 * After EP_ERR_STATUS ep_buffer_status says what the device has reported.  A call that fails on the
 * host once it has begun aborts the buffer on all ranks: while ep_buffer_is_aborted says so, calls end
 * with EP_ERR_STATUS until a reset.  What the device finds later is told by the next call that waits
 * for the host, alike on all ranks, or by ep_buffer_check. */
#ifndef DEEPEP_PTX_H
#define DEEPEP_PTX_H

#include <stdint.h>

#include "deepep_ptx/executor.h"
#include "deepep_ptx/params.h"

#ifdef __cplusplus
extern "C" {
#endif

struct ep_buffer;
struct ep_block;                 /* a slot: an extent of the arena, held for a result or an array   */

/* -- life ----------------------------------------------------------------------------------- */

/* grows: the caller adds segments when a call finds no room; the same on all ranks.  The executor's
 * table outlives the buffer.  Where it fails nothing is left. */
int  ep_buffer_create(const struct ep_executor *exec, uint32_t rank, uint32_t num_ranks,
                      uint64_t timeout_ns, int grows, struct ep_buffer **out);
/* Between two barriers, once no rank makes a call any more: unmaps the peers' memory. */
void ep_buffer_close_peers(struct ep_buffer *b);
/* Waits for the calls made so far, and frees everything but segments with slots in use; those go with
 * their last slot.  Nothing is done a second time. */
void ep_buffer_close(struct ep_buffer *b);
/* Leaves without the other ranks, in the middle of a call too: tells them, does not wait, and frees no
 * memory that they or kernels may still use.  It stays until the process ends. */
void ep_buffer_abandon(struct ep_buffer *b);
/* Closes a buffer that is in no call, without the other ranks, and tells them: their next call ends
 * with an abort.  Until they have left too they may write to this rank's heap: it stays. */
void ep_buffer_leave(struct ep_buffer *b);
/* Of a buffer that was left: whether nobody writes to its heap any more. */
int  ep_buffer_is_last(const struct ep_buffer *b);
/* Closes it, if nobody has, and ends the object; once, and behind all other functions.  All slots
 * have been given back; what graphs hold goes with them. */
void ep_buffer_destroy(struct ep_buffer *b);

/* After an abort.  On all ranks: reset_begin, which waits for this rank's kernels, a barrier, an
 * exchange of *epoch, reset_end with the maximum of all, a barrier. */
int  ep_buffer_reset_begin(struct ep_buffer *b, uint64_t *epoch);
int  ep_buffer_reset_end(struct ep_buffer *b, uint64_t max_epoch);

/* -- kernels -------------------------------------------------------------------------------- */

/* Kernels are numbered from 0 on as ptx/variants.toml has them, and behind them the uses of a kernel
 * that may have a variant of their own: "combine_push" is the combine of a rank that pushes rows.
 * Any thread; a number that is none has no name, NULL, and no bytes, 0. */
uint32_t ep_num_kernels(void);
const char *ep_kernel_name(uint32_t kernel);
/* Size of its parameter block: what a loaded kernel must take. */
uint32_t ep_param_bytes(uint32_t kernel);

struct ep_loaded {
    void    *handle;             /* as the executor gave it                                    */
    uint32_t threads;            /* of a CTA                                                   */
    uint32_t smem, smem_per_rank;                /* bytes of dynamic shared memory of a CTA     */
    uint32_t max_smem;           /* what a CTA can have of it                                  */
    uint32_t rings;              /* of stages for bulk copies, in a CTA                        */
    uint32_t stages, stage_bytes;                /* of a ring, where a call does not say       */
};

/* Before the first call; later, while no call runs.  kernel: below ep_num_kernels(). */
void ep_buffer_set_kernel(struct ep_buffer *b, uint32_t kernel, const struct ep_loaded *loaded);
/* Largest stage_bytes that a call of that kernel may want; 0: it has no rings. */
uint32_t ep_buffer_most_stage_bytes(const struct ep_buffer *b, uint32_t kernel);
/* CTAs of a dispatch or combine that the device runs at the same time.  Once, when the kernels are
 * set: the buffer counts among the process's from then on. */
int  ep_buffer_max_ctas(struct ep_buffer *b, uint32_t *ctas);

/* -- memory that ranks share ---------------------------------------------------------------- */

/* handle: EP_HANDLE_BYTES, for ep_buffer_open_heap of the other ranks. */
int  ep_buffer_heap_handle(struct ep_buffer *b, void *handle);
/* Maps that rank's heap; nothing for the own one. */
int  ep_buffer_open_heap(struct ep_buffer *b, uint32_t rank, const void *handle);
/* Allocates a segment of a multiple of EP_SLOT_ALIGN bytes; its number goes to *index, its address to
 * *base, its handle for ep_buffer_open_segment to `handle`.  EP_ERR_CAPACITY: there are
 * EP_MAX_SEGMENTS. */
int  ep_buffer_add_segment(struct ep_buffer *b, uint64_t bytes, uint32_t *index, ep_dptr_t *base,
                           void *handle);
/* `view`: where the caller's arrays over own segment `index` begin, if not at its address.  Before
 * anything lies there. */
void ep_buffer_set_view(struct ep_buffer *b, uint32_t index, uint64_t view);
int  ep_buffer_open_segment(struct ep_buffer *b, uint32_t rank, uint32_t index, const void *handle);
/* Makes all that was opened known to the kernels; waits for that, and for the calls made so far. */
int  ep_buffer_publish(struct ep_buffer *b);
/* Bit i: nothing of segment i is in use.  Gives up landing, should that be all there is.  0 while a
 * stream on which slots have died is captured. */
uint32_t ep_buffer_idle_segments(struct ep_buffer *b);
/* A segment of which nothing is in use, in two steps with a barrier between them: no rank maps it
 * any more when its owner frees it. */
void ep_buffer_unmap_segment(struct ep_buffer *b, uint32_t index);
void ep_buffer_drop_segment(struct ep_buffer *b, uint32_t index);

/* Landing is the extent that no result keeps: rows that a combine pushes land in it, and results for
 * which nothing else is free.  Makes it of at least that many bytes, if there is room; *made: whether
 * it is there. */
int  ep_buffer_make_landing(struct ep_buffer *b, uint64_t bytes, int *made);
/* Whether a result for which nothing is free lands, to be copied out, though the host waits: in an
 * arena that cannot grow now. */
void ep_buffer_land_results(struct ep_buffer *b, int lands);

struct ep_extent {               /* bytes of this rank's arena                                  */
    ep_dptr_t dptr;              /* as kernels see them                                         */
    uint64_t  view;              /* as the caller's arrays see them                             */
    uint64_t  bytes;
    uint64_t  offset;            /* in the segment                                              */
    uint32_t  segment;
};

/* All of a segment that there is.  It stays where it is until it is dropped. */
void ep_buffer_segment(const struct ep_buffer *b, uint32_t index, struct ep_extent *out);
/* Whether [view, view + bytes) lies in one segment; if so, where. */
int  ep_buffer_find(const struct ep_buffer *b, uint64_t view, uint64_t bytes,
                    struct ep_extent *out);

/* -- slots ---------------------------------------------------------------------------------- */

/* Where a slot is, which stays so while it is held.  Any thread, also of a closed buffer. */
void ep_buffer_extent(const struct ep_buffer *b, const struct ep_block *slot,
                      struct ep_extent *out);
/* Room for a caller's array on `stream`, which comes after all calls; EP_ERR_STATUS with a capacity
 * record when there is none. */
int  ep_buffer_reserve(struct ep_buffer *b, uint64_t bytes, void *stream, struct ep_block **out);
/* Gives a slot back that is used on both streams; calls made later come after what these have
 * queued by now.  lasting: neither handle is ever another stream's.  Any thread, also of a closed
 * buffer; fails never. */
void ep_buffer_retire(struct ep_buffer *b, struct ep_block *slot, void *const streams[2],
                      int lasting);
/* Gives a slot back whose last use is behind the buffer's stream already, or over.  Likewise. */
void ep_buffer_give_back(struct ep_buffer *b, struct ep_block *slot);
/* A debug mode, before the first call: slots that are given back are filled with bytes of EP_POISON,
 * behind their last use as far as it was told.  Not those that a graph keeps, or that are given back
 * while the buffer's stream is captured. */
#define EP_POISON 0xff           /* NaN of bfloat16 and E4M3, and -1                            */
void ep_buffer_poison_slots(struct ep_buffer *b);

/* -- state ---------------------------------------------------------------------------------- */

/* Waits for the calls made so far; EP_ERR_STATUS when one of them failed. */
int  ep_buffer_check(struct ep_buffer *b);
/* Waits for the calls made so far; says nothing of what they found. */
int  ep_buffer_settle(struct ep_buffer *b);
/* Whether only a reset makes the buffer usable again, as far as the device has said.  Of a closed
 * buffer too. */
int  ep_buffer_is_aborted(const struct ep_buffer *b);

#define EP_NO_PEER 0xffffffffu   /* of a status record: no peer                                 */

/* What the newest function that gave EP_ERR_STATUS has found: how many records, oldest first.  They
 * are the buffer's, and there until its next call, check or reset. */
uint32_t ep_buffer_status(const struct ep_buffer *b, const struct ep_status_record **records);
/* Whether the device has reported something that no function has given yet; waits for nothing. */
int  ep_buffer_has_news(const struct ep_buffer *b);
/* Copies that; returns how many.  The next function that looks still gives it. */
uint32_t ep_buffer_unraised(const struct ep_buffer *b,
                            struct ep_status_record records[EP_STATUS_RECORDS]);

/* Whether the newest call, and no other, found no room in an arena that grows: it can be made again
 * once all ranks have added a segment. */
int  ep_buffer_may_grow(const struct ep_buffer *b);
/* Whether this process's buffers on the device may make calls whose CTAs do not fit on it side by
 * side, as far as it was known at the newest call. */
int  ep_buffer_is_crowded(const struct ep_buffer *b);
/* Kernels of the newest call, in launch order, at most ep_num_kernels(); returns how many. */
uint32_t ep_buffer_launched(const struct ep_buffer *b, uint32_t *kernels);

struct ep_arena_stats {
    uint64_t arena_bytes;        /* of all segments                                             */
    uint64_t used_bytes;         /* held: slots, landing, and what waits for a reset            */
    uint64_t landing_bytes;
    uint32_t num_segments;
};

void ep_buffer_stats(struct ep_buffer *b, struct ep_arena_stats *out);

/* The stream of the kernels, as the executor made it. */
void *ep_buffer_stream(const struct ep_buffer *b);
/* That stream stays when the buffer ends: others use its handle, whenever that is. */
void ep_buffer_keep_stream(struct ep_buffer *b);

/* -- calls ---------------------------------------------------------------------------------- */
#define EP_CALL_WAIT 1           /* the host waits for the end                                  */
#define EP_CALL_DETACHED 2       /* the caller's stream does not wait for the end               */

struct ep_call {                 /* of every call                                               */
    void     *caller_stream;     /* on which the arrays are ready and the results are used      */
    void     *previous;          /* event to start after, NULL: after what caller_stream holds  */
    void     *graph;             /* as ep_buffer_look found it on caller_stream                 */
    void     *started;           /* NULL, or an event that a dispatch or combine records when all its
                                  * CTAs have begun, or later                                   */
    uint32_t  num_sms;           /* CTAs of a dispatch or combine, 1 at least                   */
    uint32_t  flags;             /* EP_CALL_*                                                   */
    uint32_t  stages;            /* of each ring for bulk copies, as far as there is room for   */
    uint32_t  stage_bytes;       /* them; 0: the kernel's own                                   */
};

/* Where a call begins.  *graph: what is being captured on `stream`, the caller's, NULL where nothing
 * is. */
int ep_buffer_look(struct ep_buffer *b, void *stream, void **graph);

struct ep_layout_args {          /* device addresses as in struct ep_layout_params              */
    struct ep_call call;
    ep_dptr_t topk_idx;
    ep_dptr_t rank_counts, expert_counts, in_rank;
    uint32_t  num_tokens, num_topk, num_experts, topk_idx_bytes;
};

/* Not collective.  An expert id that is none is told by the next dispatch, or here where the host
 * waits. */
int ep_buffer_layout(struct ep_buffer *b, const struct ep_layout_args *args);

/* Byte offsets of a result's arrays in its slot; x is at 0.  Without scales or top-k their arrays take
 * no bytes. */
struct ep_slot {
    uint64_t scales;
    uint64_t topk_idx;
    uint64_t topk_weights;
    uint64_t src_idx;
    uint64_t bytes;              /* of the whole slot                                           */
};

/* Arrays of a slot that are copied out of it, by a kernel behind the dispatch. */
struct ep_copies {
    struct ep_copy copy[EP_SLOT_ARRAYS];
    ep_dptr_t rank_prefix;       /* of the dispatch                                             */
    uint32_t  rows;              /* that there is room for; 0: nothing is copied                */
};

struct ep_dispatch_args {        /* device addresses as in the parameter blocks                 */
    struct ep_call call;
    ep_dptr_t x, scales, topk_idx, topk_weights; /* the latter three 0 where there are none     */
    int64_t   scale_row_stride, scale_stride;
    ep_dptr_t in_rank, rank_counts, expert_counts;       /* not of a cached dispatch            */
    ep_dptr_t pos, rank_prefix;                  /* out: kept for combine; in when cached       */
    uint64_t  handle;            /* cached: number of the call that made it, else 0             */
    uint32_t  num_tokens, hidden_bytes, scale_bytes, scale_width, num_topk, topk_idx_bytes,
              num_experts;
    uint32_t  dtype;             /* the caller's code of x and scales                           */
    uint32_t  rows;              /* of the result; 0: wait for the totals                       */
    uint32_t  worst_rows;        /* 0, or `rows` when they are the worst case                   */
    uint32_t  landing_bytes;     /* of a row that combines with this handle may push            */
    uint32_t  combine_hidden;    /* what the caller said of such rows, below 2^24; 0: nothing   */
    uint32_t  granule;           /* the slot is a multiple of so many bytes where there is room;
                                  * 0: of any                                                   */
    struct ep_copies copies;     /* queued with the call, whatever its totals are               */
    /* NULL, or called by the same thread when all is queued, before the host waits for the totals:
     * how many bytes of the slot's extent [view, view + bytes) shall stay, whatever the totals are.
     * It calls no function of this buffer but those of any thread. */
    uint64_t (*queued)(void *what, uint64_t view, uint64_t bytes);
    void     *what;
};

struct ep_dispatch_result {
    struct ep_block *block;      /* the caller's to give back; NULL without rows                */
    struct ep_slot slot;
    uint32_t rows;               /* of the result                                               */
    uint32_t landed;             /* 1: to be copied out before the next call                     */
    uint64_t number;             /* of this call, for handles                                   */
    const uint32_t *expert_counts;               /* valid until the next call; host-wait mode   */
};

/* EP_ERR_ARGUMENT: stages that the kernel cannot have; nothing was launched. */
int ep_buffer_dispatch(struct ep_buffer *b, const struct ep_dispatch_args *args,
                       struct ep_dispatch_result *out);
/* Copies behind a dispatch, before another call, of a slot that is made for slot_rows rows.  Nothing
 * is copied of a call that the device refused. */
int ep_buffer_copy_out(struct ep_buffer *b, const struct ep_call *call,
                       const struct ep_copies *copies, const struct ep_block *slot,
                       uint32_t slot_rows);

struct ep_combine_args {
    struct ep_call call;
    ep_dptr_t x, weights;        /* 0 when pulled, or without weights                           */
    uint64_t  x_offset, weights_offset;          /* when pulled                                 */
    uint64_t  x_bytes, weights_bytes;            /* likewise; 0: nothing is read                */
    uint32_t  x_segment, weights_segment;
    uint32_t  mode;              /* EP_MODE_*                                                   */
    uint32_t  num_tokens, hidden_bytes, num_topk;
    uint32_t  max_ranks;         /* that a token went to at most                                */
    uint64_t  handle;            /* number of the call that made it                             */
    ep_dptr_t out, out_weights, bias0, bias1;
    ep_dptr_t pos, rank_prefix;
};

/* EP_ERR_ARGUMENT likewise. */
int ep_buffer_combine(struct ep_buffer *b, const struct ep_combine_args *args);
/* The number of the kernel that such a combine runs.  Any thread. */
uint32_t ep_buffer_combine_kernel(const struct ep_combine_args *args);

/* -- low latency ------------------------------------------------------------------------------ */

/* What is equal on all ranks. */
struct ep_ll_shape {
    uint32_t max_tokens;         /* of any rank                                                 */
    uint32_t hidden;             /* a multiple of EP_LL_GROUP                                   */
    uint32_t num_experts, num_topk;
    uint32_t reduce;             /* EP_LL_REDUCE_*                                              */
    uint32_t word_tokens;        /* of a rank with more, a combine's rows or sums cross as they
                                  * are, behind flags, and not as words                         */
};

/* Bytes of low-latency memory that calls of that shape take on each rank.  Any thread. */
uint64_t ep_ll_bytes(const struct ep_ll_shape *shape, uint32_t num_ranks);
/* Bytes of dynamic shared memory that a dispatch of that shape takes.  Any thread. */
uint64_t ep_ll_smem(const struct ep_ll_shape *shape);
/* Bytes of low-latency memory that there are: see ep_symmetric_ensure_low_latency. */
uint64_t ep_buffer_ll_bytes(const struct ep_buffer *b);

struct ep_ll_args {
    struct ep_call call;
    struct ep_ll_shape shape;
    uint32_t num_tokens;         /* of this rank, at most max_tokens                            */
    uint32_t topk_idx_bytes;
    /* EP_LL_SEND | EP_LL_RECEIVE: the whole call.  One without the other: a part of it, which are two
     * launches with the same arguments and no other call between them. */
    uint32_t phases;
};

struct ep_ll_dispatch_args {     /* device addresses as in struct ep_ll_dispatch_params          */
    struct ep_ll_args ll;
    ep_dptr_t x, topk_idx;
    ep_dptr_t recv_x, recv_scales, recv_count, src_info, layout_range, rows_of, source_tokens;
    ep_dptr_t recv_stats, wait_stats;            /* 0: nobody counts                            */
    uint32_t  cast;              /* EP_LL_CAST_*                                                */
};

/* EP_ERR_ARGUMENT: there is too little memory for that shape; nothing was launched.  *number: of this
 * call, for combine. */
int ep_buffer_ll_dispatch(struct ep_buffer *b, const struct ep_ll_dispatch_args *args,
                          uint64_t *number);

struct ep_ll_combine_args {      /* likewise                                                    */
    struct ep_ll_args ll;
    ep_dptr_t x, topk_idx, topk_weights, out, rows_of, source_tokens;
    ep_dptr_t wait_stats;
    uint64_t  handle;            /* number of the dispatch                                      */
    uint32_t  x_row_bytes;
    uint32_t  logfmt;            /* rows cross in LogFMT-10: exact, hidden a multiple of 512    */
};

/* EP_ERR_ARGUMENT: likewise, or rows of that shape cannot be encoded, or logfmt after
 * ep_buffer_ll_shrink. */
int ep_buffer_ll_combine(struct ep_buffer *b, const struct ep_ll_combine_args *args);

/* Its kernels for low-latency calls are those that mask a rank which does not come, in place of failing:
 * they neither send to it nor wait for it until ep_symmetric_reset, which all ranks make.  Of a masked
 * rank every call fails until then. */
void ep_buffer_ll_shrink(struct ep_buffer *b);

struct ep_ll_mask_args {
    struct ep_call call;
    uint64_t  mask;              /* ranks to mask: a bit for each, not this rank's              */
    ep_dptr_t status;            /* out i32[num_ranks], 1 of masked ranks, else 0; 0: nobody asks */
};

/* In stream order, as a call of this rank alone.  EP_ERR_ARGUMENT: see `mask`; nothing was launched. */
int ep_buffer_ll_mask(struct ep_buffer *b, const struct ep_ll_mask_args *args);
/* *mask: the ranks that are masked, once all calls made so far have ended; waits for them. */
int ep_buffer_ll_masked(struct ep_buffer *b, uint64_t *mask);

#ifdef __cplusplus
}
#endif

#endif
