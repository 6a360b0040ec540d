/* SPDX-License-Identifier: MIT
 *
 * Low-latency memory, which every rank has of the same size and maps of all others.  It is replaced as
 * a whole where more is needed: between calls nothing in it is. */
#include "core/ll_memory.h"

#include "core/util.h"

int ep_ll_memory_make(struct ep_buffer *b, uint64_t bytes, const struct ep_ll_areas *areas,
                      void *handle)
{
    const struct ep_executor *exec = b->exec;
    struct ep_ll_memory *next = &b->next_ll;
    if (b->closed)
        return EP_ERR_DESTROYED;
    *next = (struct ep_ll_memory){.bytes = bytes, .areas = *areas};
    TRY(exec->alloc(exec->self, bytes, "low-latency memory", &next->base));
    next->peer[b->comm.rank] = next->base;
    /* Zero is of no call. */
    TRY(exec->fill(exec->self, next->base, 0, bytes, b->stream));
    TRY(exec->stream_synchronize(exec->self, b->stream));
    return exec->export_memory(exec->self, next->base, handle);
}

int ep_ll_memory_open(struct ep_buffer *b, uint32_t rank, const void *handle)
{
    if (rank == b->comm.rank)
        return EP_OK;
    return b->exec->import_memory(b->exec->self, handle, &b->next_ll.peer[rank]);
}

void ep_ll_memory_divide(struct ep_buffer *b, const struct ep_ll_areas *areas)
{
    b->ll.areas = *areas;
    b->peers.half_bytes = b->ll.bytes / 2;
    b->peers.words_at = areas->numbers;
    b->peers.raw_at = areas->numbers + areas->words;
}

void ep_ll_memory_swap(struct ep_buffer *b)
{
    struct ep_ll_memory old = b->ll;
    b->ll = b->next_ll;
    b->next_ll = old;
    for (uint32_t rank = 0; rank < b->comm.num_ranks; rank++)
        b->peers.low_latency[rank] = b->ll.peer[rank];
    ep_ll_memory_divide(b, &b->ll.areas);
}

void ep_ll_memory_unmap(struct ep_buffer *b, struct ep_ll_memory *memory)
{
    for (uint32_t rank = 0; rank < b->comm.num_ranks; rank++) {
        if (rank != b->comm.rank && memory->peer[rank])
            b->exec->release_memory(b->exec->self, memory->peer[rank]);
        memory->peer[rank] = 0;
    }
}

void ep_ll_memory_free(struct ep_buffer *b, struct ep_ll_memory *memory)
{
    if (memory->base)
        b->exec->free(b->exec->self, memory->base, b->stream);
    *memory = (struct ep_ll_memory){0};
}

uint64_t ep_buffer_ll_bytes(const struct ep_buffer *b)
{
    return b->ll.bytes;
}
