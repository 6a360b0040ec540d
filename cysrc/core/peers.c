/* SPDX-License-Identifier: MIT
 *
 * Memory that ranks share: what this one offers, and what it maps of the others. */
#include "core/ll_memory.h"
#include "core/order.h"
#include "core/slots.h"
#include "core/util.h"

int ep_buffer_heap_handle(struct ep_buffer *b, void *handle)
{
    if (b->closed)
        return EP_ERR_DESTROYED;
    return b->exec->export_memory(b->exec->self, b->comm.heap, handle);
}

int ep_buffer_open_heap(struct ep_buffer *b, uint32_t rank, const void *handle)
{
    if (b->closed)
        return EP_ERR_DESTROYED;
    if (rank == b->comm.rank)
        return EP_OK;
    return b->exec->import_memory(b->exec->self, handle, &b->peers.heap[rank]);
}

int ep_buffer_add_segment(struct ep_buffer *b, uint64_t bytes, uint32_t *index, ep_dptr_t *base,
                          void *handle)
{
    if (b->closed)
        return EP_ERR_DESTROYED;
    if (bytes == 0 || bytes % EP_SLOT_ALIGN)
        return EP_ERR_ARGUMENT;
    if (b->arena.num_segments == EP_MAX_SEGMENTS)
        return EP_ERR_CAPACITY;
    TRY(b->exec->alloc(b->exec->self, bytes, "arena", base));
    int rc = b->exec->export_memory(b->exec->self, *base, handle);
    if (rc == EP_OK) {
        pthread_mutex_lock(&b->lock);
        *index = ep_arena_next(&b->arena);
        rc = ep_arena_add(&b->arena, *base, *base, bytes);
        pthread_mutex_unlock(&b->lock);
    }
    if (rc != EP_OK) {
        b->exec->free(b->exec->self, *base, b->stream);
        return rc;
    }
    b->peers.arena[*index][b->comm.rank] = *base;
    return EP_OK;
}

void ep_buffer_set_view(struct ep_buffer *b, uint32_t index, uint64_t view)
{
    b->arena.segment[index].view = view;
}

int ep_buffer_open_segment(struct ep_buffer *b, uint32_t rank, uint32_t index, const void *handle)
{
    if (b->closed)
        return EP_ERR_DESTROYED;
    if (rank == b->comm.rank)
        return EP_OK;
    return b->exec->import_memory(b->exec->self, handle, &b->peers.arena[index][rank]);
}

int ep_buffer_publish(struct ep_buffer *b)
{
    const struct ep_executor *exec = b->exec;
    if (b->closed)
        return EP_ERR_DESTROYED;
    TRY(exec->copy_in(exec->self, b->comm.peers, &b->peers, sizeof b->peers, b->stream));
    return exec->stream_synchronize(exec->self, b->stream);
}

/* -- what goes ------------------------------------------------------------------------------ */

uint32_t ep_buffer_idle_segments(struct ep_buffer *b)
{
    /* Older handles count on it: the next dispatch makes it again. */
    if (b->landing && b->landing_want < b->landing->bytes)
        b->landing_want = b->landing->bytes;
    ep_slots_drop_landing(b);
    uint32_t idle = 0;
    pthread_mutex_lock(&b->lock);
    for (uint32_t i = 0; i < EP_MAX_SEGMENTS; i++)
        if (b->arena.segment[i].first && !b->arena.segment[i].num_used)
            idle |= 1u << i;
    pthread_mutex_unlock(&b->lock);
    /* Behind the look: a slot's last use is noted before the slot is released. */
    return ep_order_settle(b) == EP_OK ? idle : 0;
}

static void release_segment(struct ep_buffer *b, uint32_t index, uint32_t rank)
{
    if (rank != b->comm.rank && b->peers.arena[index][rank])
        b->exec->release_memory(b->exec->self, b->peers.arena[index][rank]);
    b->peers.arena[index][rank] = 0;
}

void ep_buffer_unmap_segment(struct ep_buffer *b, uint32_t index)
{
    /* Also where the segment stays: the peers map it no more, as this rank does not theirs. */
    pthread_mutex_lock(&b->lock);
    b->arena.segment[index].withdrawn = 1;
    pthread_mutex_unlock(&b->lock);
    for (uint32_t rank = 0; rank < b->comm.num_ranks; rank++)
        release_segment(b, index, rank);
}

void ep_buffer_drop_segment(struct ep_buffer *b, uint32_t index)
{
    pthread_mutex_lock(&b->lock);
    ep_dptr_t base = ep_arena_drop(&b->arena, index);
    pthread_mutex_unlock(&b->lock);
    b->exec->free(b->exec->self, base, b->stream);
}

void ep_buffer_close_peers(struct ep_buffer *b)
{
    const struct ep_executor *exec = b->exec;
    ep_ll_memory_unmap(b, &b->ll);
    ep_ll_memory_unmap(b, &b->next_ll);
    for (uint32_t rank = 0; rank < b->comm.num_ranks; rank++) {
        if (rank == b->comm.rank)
            continue;
        if (b->peers.heap[rank])
            exec->release_memory(exec->self, b->peers.heap[rank]);
        b->peers.heap[rank] = 0;
        for (uint32_t i = 0; i < EP_MAX_SEGMENTS; i++)
            release_segment(b, i, rank);
    }
    b->alone = 1;
}
