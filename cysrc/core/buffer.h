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
 * The end: a barrier, ep_buffer_close_peers, a barrier, ep_buffer_close; ep_buffer_destroy once the
 * last slot has been released.
 *
 * Functions return enum ep_result.  One call at a time, but ep_buffer_release may come from any
 * thread at any time.  After EP_ERR_STATUS `status` says what the device reported; with
 * `control.abort` set only a reset makes the buffer usable. */
#ifndef DEEPEP_PTX_BUFFER_H
#define DEEPEP_PTX_BUFFER_H

#include <pthread.h>
#include <stdint.h>

#include "core/arena.h"
#include "core/executor.h"
#include "core/slot.h"
#include "deepep_ptx/params.h"

#define EP_DTYPE_BF16 1          /* EP_AGREE_DTYPE                                             */
#define EP_NO_PEER 0xffffffffu   /* status record without a peer                               */

struct ep_loaded {
    void    *handle;             /* as the executor gave it                                    */
    uint32_t threads;            /* of a CTA                                                   */
    uint32_t smem, smem_per_rank;                /* bytes of dynamic shared memory of a CTA     */
};

struct ep_buffer {
    const struct ep_executor *exec;
    struct ep_comm comm;         /* first field of every parameter block                       */
    struct ep_loaded kernel[EP_NUM_KERNELS];
    void    *stream;
    void    *abort_stream;       /* an abort must not queue behind the call it ends             */
    uint64_t heap_bytes;

    /* Other ranks' memory as mapped here; own entries are own addresses.  publish() copies both
     * tables to the device. */
    ep_dptr_t peer_heap[EP_MAX_RANKS];
    ep_dptr_t peer_arena[EP_MAX_SEGMENTS][EP_MAX_RANKS];

    /* Scratch of the call that runs: device memory. */
    ep_dptr_t scratch;           /* the four below, in one allocation                          */
    ep_dptr_t sent, dest, source, push;

    struct ep_status_ring *ring;
    struct ep_totals *totals;
    ep_dptr_t totals_dptr;
    uint64_t  ticket;

    struct ep_control control;   /* as it was after the newest call                            */
    struct ep_status_record status[EP_STATUS_RECORDS];
    uint32_t  num_status;
    uint32_t  launched[EP_NUM_KERNELS], num_launched;    /* kernels of the newest call          */

    pthread_mutex_t lock;        /* guards all below                                           */
    struct ep_arena arena;
    struct ep_block *quarantine; /* slots of aborted calls, until reset                        */
    int       closed;
    int       abandoned;         /* peers may still write to this rank's memory: it stays       */
};

/* -- life ----------------------------------------------------------------------------------- */
int  ep_buffer_create(const struct ep_executor *exec, uint32_t rank, uint32_t num_ranks,
                      uint64_t timeout_ns, struct ep_buffer **out);
void ep_buffer_set_kernel(struct ep_buffer *b, uint32_t kernel, const struct ep_loaded *loaded);
/* Size of a kernel's parameter block: what a loaded kernel must take. */
uint32_t ep_param_bytes(uint32_t kernel);
int  ep_buffer_heap_handle(struct ep_buffer *b, void *handle);
int  ep_buffer_open_heap(struct ep_buffer *b, uint32_t rank, const void *handle);
/* Allocates a segment; its number goes to *index, its address to *base. */
int  ep_buffer_add_segment(struct ep_buffer *b, uint64_t bytes, uint32_t *index, ep_dptr_t *base,
                           void *handle);
/* `view`: where the caller's arrays over own segment `index` begin. */
void ep_buffer_set_view(struct ep_buffer *b, uint32_t index, uint64_t view);
int  ep_buffer_open_segment(struct ep_buffer *b, uint32_t rank, uint32_t index, const void *handle);
int  ep_buffer_publish(struct ep_buffer *b);
/* Takes back the newest segment, of which nothing is in use: some rank could not have it. */
void ep_buffer_drop_segment(struct ep_buffer *b);
void ep_buffer_close_peers(struct ep_buffer *b);
/* Frees everything but segments with slots in use; those go with their last slot. */
void ep_buffer_close(struct ep_buffer *b);
/* Leaves without the other ranks: tells them, does not wait, and frees no memory that they or
 * kernels may still use.  It stays until the process ends. */
void ep_buffer_abandon(struct ep_buffer *b);
void ep_buffer_destroy(struct ep_buffer *b);

/* reset: reset_begin, a barrier, allgather of *epoch, reset_end with the maximum, a barrier. */
int  ep_buffer_reset_begin(struct ep_buffer *b, uint64_t *epoch);
int  ep_buffer_reset_end(struct ep_buffer *b, uint64_t max_epoch);

void ep_buffer_release(struct ep_buffer *b, struct ep_block *slot);
/* Bytes of slots in use, quarantined ones included. */
uint64_t ep_buffer_used(struct ep_buffer *b);

/* -- calls ---------------------------------------------------------------------------------- */
struct ep_layout_args {          /* device addresses as in struct ep_layout_params              */
    ep_dptr_t topk_idx;
    ep_dptr_t rank_counts, expert_counts, in_rank;
    uint32_t  num_tokens, num_topk, num_experts, topk_idx_bytes;
    uint32_t  num_sms;
    void     *caller_stream;     /* on which the arrays are ready                              */
};

struct ep_dispatch_args {        /* device addresses as in the parameter blocks                 */
    ep_dptr_t x, topk_idx, topk_weights;         /* the latter two 0 without top-k              */
    ep_dptr_t in_rank, rank_counts, expert_counts;
    ep_dptr_t pos, rank_prefix;                  /* out: kept for combine                       */
    uint32_t  num_tokens, hidden_bytes, num_topk, topk_idx_bytes, num_experts;
    uint32_t  dtype;             /* EP_DTYPE_*                                                  */
    uint32_t  worst_rows;        /* 0: wait for the totals                                      */
    uint32_t  num_sms;
    void     *caller_stream;
};

struct ep_dispatch_result {
    struct ep_block *block;      /* NULL without rows                                           */
    uint64_t view;               /* where its arrays begin, as the caller sees memory           */
    struct ep_slot slot;
    uint32_t rows;               /* received; in worst-case mode worst_rows                     */
    uint64_t epoch;              /* collective calls completed after this one                   */
    const uint32_t *expert_counts;               /* valid until the next call; host-wait mode   */
};

struct ep_combine_args {
    ep_dptr_t x, weights;        /* 0 when pulled, or without weights                           */
    uint64_t  x_offset, weights_offset;          /* when pulled                                 */
    uint32_t  x_segment, weights_segment;
    uint32_t  mode;              /* EP_MODE_*                                                   */
    uint32_t  num_tokens, hidden_bytes, num_topk;
    uint32_t  dtype;
    uint32_t  num_sms;
    uint64_t  handle_epoch;
    void     *caller_stream;
    ep_dptr_t out, out_weights, bias0, bias1;
    ep_dptr_t pos, rank_prefix;
};

int ep_buffer_layout(struct ep_buffer *b, const struct ep_layout_args *args);
int ep_buffer_dispatch(struct ep_buffer *b, const struct ep_dispatch_args *args,
                       struct ep_dispatch_result *out);
int ep_buffer_combine(struct ep_buffer *b, const struct ep_combine_args *args);

#endif
