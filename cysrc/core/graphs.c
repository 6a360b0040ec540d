/* SPDX-License-Identifier: MIT */
#include "core/graphs.h"

#include <stdlib.h>

#include "core/slots.h"

struct kept {
    struct ep_buffer *b;
    struct ep_block *block;
};

static void free_object(struct ep_buffer *b)
{
    ep_arena_clear(&b->arena);
    pthread_mutex_destroy(&b->order);
    pthread_mutex_destroy(&b->lock);
    free(b);
}

/* In a thread of the driver's, which may not call it: a segment that could be freed now stays. */
static void release_kept(void *what)
{
    struct kept *kept = what;
    struct ep_buffer *b = kept->b;
    pthread_mutex_lock(&b->lock);
    ep_arena_release(&b->arena, kept->block);
    int last = --b->num_kept == 0 && b->orphan;
    pthread_mutex_unlock(&b->lock);
    free(kept);
    if (last)
        free_object(b);
}

/* `block` has one reference more, which the graph takes over. */
static int hand_over(struct ep_buffer *b, struct ep_block *block)
{
    struct kept *kept = malloc(sizeof *kept);
    if (!kept) {
        ep_slots_release(b, block);
        return EP_ERR_MEMORY;
    }
    *kept = (struct kept){.b = b, .block = block};
    pthread_mutex_lock(&b->lock);
    b->num_kept++;
    pthread_mutex_unlock(&b->lock);
    int rc = b->exec->graph_keep(b->exec->self, b->graph, kept, release_kept);
    if (rc != EP_OK)
        release_kept(kept);
    return rc;
}

int ep_graphs_keep(struct ep_buffer *b, struct ep_block *block)
{
    if (!b->graph || !block)
        return EP_OK;
    ep_slots_hold(b, block);
    return hand_over(b, block);
}

int ep_graphs_keep_at(struct ep_buffer *b, uint32_t segment, uint64_t offset)
{
    if (!b->graph)
        return EP_OK;
    pthread_mutex_lock(&b->lock);
    struct ep_block *block = b->arena.segment[segment].first;
    while (block && offset >= block->offset + block->bytes)
        block = block->next;
    if (block && !block->used)       /* a view of the whole arena may lie over free extents      */
        block = NULL;
    if (block)
        block->used++;
    pthread_mutex_unlock(&b->lock);
    return block ? hand_over(b, block) : EP_OK;
}

void ep_graphs_end(struct ep_buffer *b)
{
    pthread_mutex_lock(&b->lock);
    b->orphan = b->num_kept != 0;
    int orphan = b->orphan;
    pthread_mutex_unlock(&b->lock);
    if (!orphan)
        free_object(b);
}
