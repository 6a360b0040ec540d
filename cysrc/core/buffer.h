/* SPDX-License-Identifier: MIT
 *
 * One rank's buffer: the symmetric heap, the arena, and the launch sequences of every call.  The
 * caller brings an executor, loaded kernels and a way to exchange handles with the other ranks.
 *
 * Construction, on every rank:
 *     ep_buffer_create, ep_buffer_set_kernel for each kernel
 *     ep_buffer_heap_handle, exchange, ep_buffer_open_heap of each rank
 *     ep_buffer_add_segment, exchange, ep_buffer_open_segment of each rank   (again to grow)
 *     ep_buffer_publish, a barrier
 * The end: a barrier, ep_buffer_close_peers, a barrier, ep_buffer_close; or ep_buffer_leave; or
 * ep_buffer_abandon.  Then ep_buffer_destroy, once the last slot has been released.
 *
 * Functions return enum ep_result.  One call at a time, but ep_buffer_retire may come from any
 * thread at any time.  After EP_ERR_STATUS `status` says what the device reported; with
 * `control.abort` set only a reset makes the buffer usable.
 *
 * A call's kernels run on the buffer's stream; the host waits for their end only where EP_CALL_WAIT
 * asks for it.  What the device finds later is told by the next call that waits for the host, alike
 * on all ranks, or by ep_buffer_check. */
#ifndef DEEPEP_PTX_BUFFER_H
#define DEEPEP_PTX_BUFFER_H

#include <pthread.h>
#include <stdint.h>

#include "core/arena.h"
#include "deepep_ptx/executor.h"
#include "core/slot.h"
#include "deepep_ptx/params.h"
#include "kernels.h"

#define EP_NO_PEER 0xffffffffu   /* status record without a peer                               */

struct ep_loaded {
    void    *handle;             /* as the executor gave it                                    */
    uint32_t threads;            /* of a CTA                                                   */
    uint32_t smem, smem_per_rank;                /* bytes of dynamic shared memory of a CTA     */
    uint32_t max_smem;           /* what a CTA can have of it                                  */
    uint32_t rings;              /* of stages for bulk copies, in a CTA                        */
    uint32_t stages, stage_bytes;                /* of a ring, where a call does not say       */
};

struct ep_buffer {
    const struct ep_executor *exec;
    struct ep_comm comm;         /* first field of every parameter block                       */
    struct ep_loaded kernel[EP_NUM_KERNELS];
    void    *stream;
    void    *abort_stream;       /* an abort must not queue behind the call it ends             */

    /* Other ranks' memory as mapped here; own entries are own addresses.  publish() copies the
     * tables to the device. */
    struct ep_peers {
        ep_dptr_t heap[EP_MAX_RANKS];
        ep_dptr_t arena[EP_MAX_SEGMENTS][EP_MAX_RANKS];
    } peers;

    ep_dptr_t tally;             /* of layout, zero between calls                              */

    struct ep_status_ring *ring;
    struct ep_totals *totals;
    ep_dptr_t totals_dptr;
    uint64_t  ticket;

    uint64_t  num_calls;         /* collective calls made, also those that were only captured   */
    int       grows;             /* the arena grows: see landing                                */
    int       unseen;            /* calls were made since the host last looked                  */
    int       may_grow;          /* the newest call, and no other, found no room                */
    int       lands;             /* it cannot grow: results for which nothing is free land         */
    int       wants_room;        /* it grows, and a result had to land since it last did           */
    uint64_t  host_abort;        /* like control.abort, where the device could not be told      */
    void     *graph;             /* of the running call, NULL when it is not captured           */
    uint32_t  resident;          /* CTAs of its calls that the device runs at the same time, 0: not
                                  * known; this and the next three are residency.c's            */
    uint32_t  most_ctas;         /* of a call so far                                            */
    int       crowded;           /* see ep_residency_is_crowded                                 */
    struct ep_buffer *next_resident;
    int       stream_stays;      /* others use the handle of `stream` after the buffer's end       */

    struct ep_control control;   /* as it was when the host last looked                         */
    struct ep_status_record status[EP_STATUS_RECORDS];
    uint32_t  num_status;
    uint32_t  launched[EP_NUM_KERNELS], num_launched;     /* of the newest call, in this table   */

    pthread_mutex_t order;       /* held while a dying slot is ordered on `stream`, and at its end;
                                  * guards the next four                                        */
    void     *calls_on;          /* the caller's stream of the newest call that was not captured */
    int       between_calls;     /* such a call is queued, and none has begun since              */
    void     *last_use;          /* event: what `calls_on` had queued when a slot died between calls */
    int       awaits_last_use;   /* `stream` does not come after it yet                         */
    pthread_mutex_t lock;        /* guards all below                                           */
    struct ep_arena arena;
    /* Where the arena grows: the extent that no result keeps.  Rows pushed by a combine land in it,
     * and results that the arena has no room for, which are copied out at once.  Every dispatch sees
     * to it that landing can take what combines and cached dispatches with its handle need, so these
     * need no verdict on the host.  In an arena of fixed size pushed rows land in what is free, and
     * a result stays only while as much room is left as the largest so far took. */
    struct ep_block *landing;
    uint64_t  landing_want;      /* bytes that the next dispatch shall make it: a refused call asked
                                  * for them, or it had them before segments were recycled      */
    uint64_t  largest_slot;      /* bytes of the largest result so far                          */
    struct ep_block *quarantine; /* slots of aborted calls, until reset                        */
    struct ep_block *retired;    /* slots that died during a capture                            */
    uint32_t  num_kept;          /* blocks held by graphs                                       */
    int       orphan;            /* destroyed; the last of these graphs frees what is left      */
    int       closed;
    int       alone;             /* maps nothing of its peers' any more: no kernel may tell them    */
    int       abandoned;         /* peers may still write to this rank's memory: it stays       */
    int       left;              /* of it, the heap alone: see ep_buffer_leave                  */
};

/* -- life ----------------------------------------------------------------------------------- */
/* grows: the caller adds segments when a call finds no room; the same on all ranks. */
int  ep_buffer_create(const struct ep_executor *exec, uint32_t rank, uint32_t num_ranks,
                      uint64_t timeout_ns, int grows, struct ep_buffer **out);
void ep_buffer_set_kernel(struct ep_buffer *b, uint32_t kernel, const struct ep_loaded *loaded);
/* Largest stage_bytes that a call of that kernel may want; 0: it has no rings. */
uint32_t ep_buffer_most_stage_bytes(const struct ep_buffer *b, uint32_t kernel);
/* CTAs of a dispatch or combine that the device runs at the same time.  Once, when the kernels are
 * set: the buffer counts among the process's from then on. */
int  ep_buffer_max_ctas(struct ep_buffer *b, uint32_t *ctas);
int  ep_buffer_heap_handle(struct ep_buffer *b, void *handle);
int  ep_buffer_open_heap(struct ep_buffer *b, uint32_t rank, const void *handle);
/* Allocates a segment; its number goes to *index, its address to *base. */
int  ep_buffer_add_segment(struct ep_buffer *b, uint64_t bytes, uint32_t *index, ep_dptr_t *base,
                           void *handle);
/* `view`: where the caller's arrays over own segment `index` begin. */
void ep_buffer_set_view(struct ep_buffer *b, uint32_t index, uint64_t view);
int  ep_buffer_open_segment(struct ep_buffer *b, uint32_t rank, uint32_t index, const void *handle);
int  ep_buffer_publish(struct ep_buffer *b);
/* Bit i: nothing of segment i is in use.  Gives up landing, should that be all there is. */
uint32_t ep_buffer_idle_segments(struct ep_buffer *b);
/* A segment of which nothing is in use, in two steps with a barrier between them: no rank maps it
 * any more when its owner frees it. */
void ep_buffer_unmap_segment(struct ep_buffer *b, uint32_t index);
void ep_buffer_drop_segment(struct ep_buffer *b, uint32_t index);
void ep_buffer_close_peers(struct ep_buffer *b);
/* Frees everything but segments with slots in use; those go with their last slot. */
void ep_buffer_close(struct ep_buffer *b);
/* Leaves without the other ranks: tells them, does not wait, and frees no memory that they or
 * kernels may still use.  It stays until the process ends. */
void ep_buffer_abandon(struct ep_buffer *b);
/* Closes a buffer that is in no call, without the other ranks, and tells them: their next call ends
 * with an abort.  Until they have left too they may write to this rank's heap: it stays. */
void ep_buffer_leave(struct ep_buffer *b);
/* Whether nobody writes to the heap of a buffer that was left any more. */
int  ep_buffer_is_last(const struct ep_buffer *b);
void ep_buffer_destroy(struct ep_buffer *b);

/* reset: reset_begin, a barrier, allgather of *epoch, reset_end with the maximum, a barrier. */
int  ep_buffer_reset_begin(struct ep_buffer *b, uint64_t *epoch);
int  ep_buffer_reset_end(struct ep_buffer *b, uint64_t max_epoch);

/* *graph: what is being captured on `stream`, a caller's, for the call that comes; NULL where
 * nothing is. */
int  ep_buffer_look(struct ep_buffer *b, void *stream, void **graph);
/* Whether only a reset makes the buffer usable again, as far as the device has said. */
int  ep_buffer_is_aborted(const struct ep_buffer *b);
/* Waits for the calls made so far; EP_ERR_STATUS when one of them failed. */
int  ep_buffer_check(struct ep_buffer *b);

/* Landing of at least that many bytes, if there is room; whether it is there. */
int  ep_buffer_make_landing(struct ep_buffer *b, uint64_t bytes, int *made);

/* -- slots ---------------------------------------------------------------------------------- */
/* Gives a slot back that is used on both streams; calls made later come after what these have
 * queued by now.  lasting: neither handle is ever another stream's. */
void ep_buffer_retire(struct ep_buffer *b, struct ep_block *slot, void *const streams[2],
                      int lasting);
/* Gives a slot back whose last use is behind the buffer's stream already, or over. */
void ep_buffer_give_back(struct ep_buffer *b, struct ep_block *slot);
/* Room for a caller's array on `stream`, which comes after all calls; EP_ERR_STATUS with a capacity
 * record when there is none. */
int  ep_buffer_reserve(struct ep_buffer *b, uint64_t bytes, void *stream, struct ep_block **out,
                       uint64_t *view);
/* Waits for the calls made so far; says nothing of what they found. */
int  ep_buffer_settle(struct ep_buffer *b);
/* Bytes in use, landing and quarantined slots included. */
uint64_t ep_buffer_used(struct ep_buffer *b);

/* -- calls ---------------------------------------------------------------------------------- */
#define EP_CALL_WAIT 1           /* the host waits for the end                                  */
#define EP_CALL_DETACHED 2       /* the caller's stream does not wait for the end               */

struct ep_call {                 /* of every call                                               */
    void     *caller_stream;     /* on which the arrays are ready and the results are used      */
    void     *previous;          /* event to start after, NULL: after what caller_stream holds  */
    void     *graph;             /* as ep_buffer_look found it on caller_stream                 */
    uint32_t  num_sms;
    uint32_t  flags;             /* EP_CALL_*                                                   */
    uint32_t  stages;            /* of each ring for bulk copies, as far as there is room for   */
    uint32_t  stage_bytes;       /* them; 0: the kernel's own                                   */
};

struct ep_layout_args {          /* device addresses as in struct ep_layout_params              */
    struct ep_call call;
    ep_dptr_t topk_idx;
    ep_dptr_t rank_counts, expert_counts, in_rank;
    uint32_t  num_tokens, num_topk, num_experts, topk_idx_bytes;
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
    /* NULL, or called when all is queued, before the host waits for the totals: how many bytes of
     * the slot's extent [view, view + bytes) shall stay, whatever the totals are. */
    uint64_t (*queued)(void *what, uint64_t view, uint64_t bytes);
    void     *what;
};

struct ep_dispatch_result {
    struct ep_block *block;      /* NULL without rows                                           */
    uint64_t view;               /* where its arrays begin, as the caller sees memory           */
    struct ep_slot slot;
    uint32_t rows;               /* of the result                                               */
    uint32_t landed;             /* 1: to be copied out before the next call                     */
    uint64_t number;             /* of this call, for handles                                   */
    const uint32_t *expert_counts;               /* valid until the next call; host-wait mode   */
};

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

int ep_buffer_layout(struct ep_buffer *b, const struct ep_layout_args *args);
int ep_buffer_dispatch(struct ep_buffer *b, const struct ep_dispatch_args *args,
                       struct ep_dispatch_result *out);
/* Copies behind a dispatch, before another call, of a slot that is made for slot_rows rows.  Nothing
 * is copied of a call that the device refused. */
int ep_buffer_copy_out(struct ep_buffer *b, const struct ep_call *call,
                       const struct ep_copies *copies, const struct ep_block *slot,
                       uint32_t slot_rows);
int ep_buffer_combine(struct ep_buffer *b, const struct ep_combine_args *args);
/* Where the kernel table has what such a combine runs. */
uint32_t ep_buffer_combine_kernel(const struct ep_combine_args *args);

#endif
