/* SPDX-License-Identifier: MIT */
#include "core/slots.h"

struct ep_block *ep_slots_largest(struct ep_buffer *b)
{
    pthread_mutex_lock(&b->lock);
    struct ep_block *block = ep_arena_reserve_largest(&b->arena);
    pthread_mutex_unlock(&b->lock);
    return block;
}

int ep_slots_exact(struct ep_buffer *b, uint64_t bytes, struct ep_block **out)
{
    pthread_mutex_lock(&b->lock);
    int rc = ep_arena_reserve(&b->arena, bytes, out);
    pthread_mutex_unlock(&b->lock);
    return rc;
}

uint64_t ep_slots_room(struct ep_buffer *b)
{
    pthread_mutex_lock(&b->lock);
    uint64_t bytes = ep_arena_largest_free(&b->arena);
    pthread_mutex_unlock(&b->lock);
    return bytes;
}

uint64_t ep_slots_used(struct ep_buffer *b)
{
    pthread_mutex_lock(&b->lock);
    uint64_t bytes = b->arena.in_use;
    pthread_mutex_unlock(&b->lock);
    return bytes;
}

void ep_slots_trim(struct ep_buffer *b, struct ep_block *block, uint64_t bytes)
{
    pthread_mutex_lock(&b->lock);
    ep_arena_trim(&b->arena, block, bytes);
    pthread_mutex_unlock(&b->lock);
}

void ep_slots_hold(struct ep_buffer *b, struct ep_block *block)
{
    pthread_mutex_lock(&b->lock);
    block->used++;
    pthread_mutex_unlock(&b->lock);
}

/* With the buffer closed, the address of a segment that nothing uses any more, else 0: the caller
 * holds the lock and frees it after letting go. */
static ep_dptr_t take_idle(const struct ep_buffer *b, struct ep_segment *segment)
{
    if (!b->closed || b->abandoned || segment->num_used)
        return 0;
    ep_dptr_t base = segment->base;
    segment->base = 0;
    return base;
}

void ep_slots_release(struct ep_buffer *b, struct ep_block *block)
{
    pthread_mutex_lock(&b->lock);
    struct ep_segment *segment = &b->arena.segment[block->segment];
    ep_arena_release(&b->arena, block);
    ep_dptr_t idle = take_idle(b, segment);
    pthread_mutex_unlock(&b->lock);
    if (idle)
        b->exec->free(b->exec->self, idle, NULL);
}

void ep_slots_close(struct ep_buffer *b)
{
    for (uint32_t i = 0; i < EP_MAX_SEGMENTS; i++) {
        pthread_mutex_lock(&b->lock);
        ep_dptr_t idle = take_idle(b, &b->arena.segment[i]);
        pthread_mutex_unlock(&b->lock);
        if (idle)
            b->exec->free(b->exec->self, idle, b->stream);
    }
}

/* -- landing -------------------------------------------------------------------------------- */

void ep_slots_drop_landing(struct ep_buffer *b)
{
    if (b->landing)
        ep_slots_release(b, b->landing);
    b->landing = NULL;
}

int ep_slots_make_landing(struct ep_buffer *b, uint64_t bytes)
{
    uint64_t had = b->landing ? b->landing->bytes : 0;
    struct ep_block *larger;
    if (had >= bytes)
        return EP_OK;
    int rc = ep_slots_exact(b, bytes, &larger);
    if (rc != EP_OK || larger) {
        if (larger) {
            ep_slots_drop_landing(b);
            b->landing = larger;
        }
        return rc;
    }
    if (b->landing && b->landing->used > 1)      /* a graph's too: to let go of it frees nothing */
        return EP_OK;
    /* Perhaps where it is, with what is free beside it. */
    ep_slots_drop_landing(b);
    rc = ep_slots_exact(b, bytes, &b->landing);
    if (rc == EP_OK && !b->landing && had)
        rc = ep_slots_exact(b, had, &b->landing);
    return rc;
}

/* -- after aborts --------------------------------------------------------------------------- */

void ep_slots_quarantine(struct ep_buffer *b, struct ep_block *block)
{
    pthread_mutex_lock(&b->lock);
    block->link = b->quarantine;
    b->quarantine = block;
    pthread_mutex_unlock(&b->lock);
}

void ep_slots_release_quarantine(struct ep_buffer *b)
{
    while (b->quarantine) {
        struct ep_block *block = b->quarantine;
        b->quarantine = block->link;
        ep_arena_release(&b->arena, block);
    }
}
