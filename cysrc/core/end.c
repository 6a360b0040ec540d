/* SPDX-License-Identifier: MIT
 *
 * The three ends of a buffer: with the other ranks, without them, and in the middle of a call. */
#include "core/graphs.h"
#include "core/heap.h"
#include "core/launch.h"
#include "core/ll_memory.h"
#include "core/order.h"
#include "core/residency.h"
#include "core/slots.h"
#include "core/util.h"

/* The first to close, who then frees; a slot that dies meanwhile waits, and finds it closed. */
static int begin_close(struct ep_buffer *b)
{
    pthread_mutex_lock(&b->order);
    pthread_mutex_lock(&b->lock);
    int closed = b->closed;
    b->closed = 1;
    ep_slots_release_quarantine(b);
    pthread_mutex_unlock(&b->lock);
    pthread_mutex_unlock(&b->order);
    return !closed && !b->abandoned;
}

/* What peers may write to without a record, and the stream of what is done with it. */
static void free_heap(struct ep_buffer *b)
{
    const struct ep_executor *exec = b->exec;
    ep_ll_memory_free(b, &b->ll);
    ep_ll_memory_free(b, &b->next_ll);
    if (b->comm.heap)
        exec->free(exec->self, b->comm.heap, b->stream);
    if (b->stream && !b->stream_stays)
        exec->stream_destroy(exec->self, b->stream);
}

void ep_buffer_keep_stream(struct ep_buffer *b)
{
    b->stream_stays = 1;
}

void ep_buffer_close(struct ep_buffer *b)
{
    const struct ep_executor *exec = b->exec;
    ep_residency_leave(b);
    if (!begin_close(b))
        return;
    ep_order_settle(b);
    if (b->stream)               /* where it fails nothing runs any more                        */
        exec->stream_synchronize(exec->self, b->stream);
    ep_order_release_retired(b);
    ep_slots_drop_landing(b);
    ep_buffer_close_peers(b);
    ep_slots_close(b);
    if (b->comm.peers)
        exec->free(exec->self, b->comm.peers, b->stream);
    if (b->tally)
        exec->free(exec->self, b->tally, b->stream);
    if (b->ring)
        exec->host_free(exec->self, b->ring);
    b->ring = NULL;
    if (b->totals)
        exec->host_free(exec->self, b->totals);
    if (b->last_use)
        exec->event_destroy(exec->self, b->last_use);
    if (b->abort_stream)
        exec->stream_destroy(exec->self, b->abort_stream);
    if (!b->left)
        free_heap(b);
}

void ep_buffer_abandon(struct ep_buffer *b)
{
    if (b->closed)
        return;
    /* Where even this fails, the peers find out by their time limits. */
    if (!b->control.abort && !b->alone)
        ep_launch_abort(b);
    b->abandoned = 1;
    ep_buffer_close(b);
}

static int tell_peers(struct ep_buffer *b)
{
    const struct ep_executor *exec = b->exec;
    struct ep_flags flags = {.abort = (b->num_calls + 1) << 8 | (b->comm.rank + 1), .left = 1};
    for (uint32_t rank = 0; rank < b->comm.num_ranks; rank++)
        if (rank != b->comm.rank && b->peers.heap[rank])
            TRY(exec->copy_in(exec->self, b->peers.heap[rank] + flags_at(b, b->comm.rank), &flags,
                              sizeof flags, b->stream));
    return exec->stream_synchronize(exec->self, b->stream);
}

void ep_buffer_leave(struct ep_buffer *b)
{
    if (b->closed)
        return;
    b->left = 1;
    b->abandoned = tell_peers(b) != EP_OK;       /* of a device that works no more              */
    ep_buffer_close(b);
}

int ep_buffer_is_last(const struct ep_buffer *b)
{
    const struct ep_executor *exec = b->exec;
    struct ep_flags flags[EP_MAX_RANKS];
    uint32_t num_ranks = b->comm.num_ranks, num_left = 0;
    if (b->abandoned || exec->copy_out(exec->self, flags, b->comm.heap + flags_at(b, 0),
                                       num_ranks * sizeof *flags, b->stream) != EP_OK)
        return 0;
    for (uint32_t rank = 0; rank < num_ranks; rank++)
        num_left += rank != b->comm.rank && flags[rank].left;
    return num_left == num_ranks - 1;
}

void ep_buffer_destroy(struct ep_buffer *b)
{
    ep_buffer_close(b);
    if (b->left && ep_buffer_is_last(b))
        free_heap(b);
    ep_graphs_end(b);
}
