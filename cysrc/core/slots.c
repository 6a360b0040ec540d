/* SPDX-License-Identifier: MIT */
#include "core/slots.h"
#include "core/status.h"
#include "core/util.h"

#include <stdlib.h>

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

/* -- streams -------------------------------------------------------------------------------- */

static int is_captured(const struct ep_buffer *b, void *stream)
{
    void *graph = NULL;
    return b->exec->capture(b->exec->self, stream, &graph) == EP_OK && graph;
}

int ep_slots_await_last_use(struct ep_buffer *b)
{
    const struct ep_executor *exec = b->exec;
    int passed = 0;
    if (!b->awaits_last_use)
        return EP_OK;
    if (is_captured(b, b->calls_on))     /* the event may be part of that capture               */
        return EP_ERR_CAPTURED;
    if (exec->event_query(exec->self, b->last_use, &passed) != EP_OK)    /* of one that is over   */
        TRY(exec->stream_wait(exec->self, b->stream, b->calls_on));
    else if (!passed)
        TRY(exec->event_wait(exec->self, b->stream, b->last_use));
    b->awaits_last_use = 0;
    return EP_OK;
}

int ep_slots_settle(struct ep_buffer *b)
{
    pthread_mutex_lock(&b->order);
    int rc = ep_slots_await_last_use(b);
    pthread_mutex_unlock(&b->order);
    return rc;
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

int ep_buffer_make_landing(struct ep_buffer *b, uint64_t bytes, int *made)
{
    if (b->closed)
        return EP_ERR_DESTROYED;
    TRY(ep_slots_make_landing(b, bytes));
    *made = bytes == 0 || (b->landing && b->landing->bytes >= bytes);
    return EP_OK;
}

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
    return ep_slots_settle(b) == EP_OK ? idle : 0;
}

/* -- graphs --------------------------------------------------------------------------------- */

struct kept {
    struct ep_buffer *b;
    struct ep_block *block;
};

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
        ep_buffer_destroy(b);
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

int ep_slots_keep(struct ep_buffer *b, struct ep_block *block)
{
    if (!b->graph || !block)
        return EP_OK;
    ep_slots_hold(b, block);
    return hand_over(b, block);
}

int ep_slots_keep_at(struct ep_buffer *b, uint32_t segment, uint64_t offset)
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

/* -- ends ----------------------------------------------------------------------------------- */

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

/* Whether nothing has to wait for the slot's streams now: the next call comes after them anyway, or
 * else after the event.  With `order` held. */
static int note_last_use(struct ep_buffer *b, void *const streams[2], int lasting)
{
    if (!lasting || !b->between_calls || b->closed || streams[0] != b->calls_on
        || streams[1] != b->calls_on
        || b->exec->event_record(b->exec->self, b->last_use, b->calls_on) != EP_OK)
        return 0;
    b->awaits_last_use = 1;
    return 1;
}

/* Whether the slot can be given back now.  With `order` held. */
static int order_after(struct ep_buffer *b, void *const streams[2])
{
    if (b->closed)               /* no more calls                                               */
        return 1;
    uint32_t num_streams = streams[1] == streams[0] ? 1 : 2;
    /* An edge between a captured stream and one that is not would break the capture. */
    if (is_captured(b, b->stream))
        return 0;
    for (uint32_t i = 0; i < num_streams; i++)
        if (is_captured(b, streams[i]))
            return 0;
    for (uint32_t i = 0; i < num_streams; i++)
        b->exec->stream_wait(b->exec->self, b->stream, streams[i]);
    return 1;
}

void ep_buffer_retire(struct ep_buffer *b, struct ep_block *slot, void *const streams[2],
                      int lasting)
{
    pthread_mutex_lock(&b->order);
    int ordered = note_last_use(b, streams, lasting) || order_after(b, streams);
    if (!ordered) {
        pthread_mutex_lock(&b->lock);
        slot->streams[0] = streams[0];
        slot->streams[1] = streams[1];
        slot->link = b->retired;
        b->retired = slot;
        pthread_mutex_unlock(&b->lock);
    }
    pthread_mutex_unlock(&b->order);
    if (ordered)
        ep_slots_release(b, slot);
}

void ep_buffer_give_back(struct ep_buffer *b, struct ep_block *slot)
{
    ep_slots_release(b, slot);
}

void ep_slots_release_retired(struct ep_buffer *b)
{
    pthread_mutex_lock(&b->lock);
    struct ep_block *slot = b->retired;
    b->retired = NULL;
    pthread_mutex_unlock(&b->lock);
    while (slot) {
        struct ep_block *next = slot->link;
        void *streams[2] = {slot->streams[0], slot->streams[1]};
        ep_buffer_retire(b, slot, streams, 0);
        slot = next;
    }
}

/* `stream` comes after all calls, and after what died between them. */
static int follow_calls(struct ep_buffer *b, void *stream)
{
    if (stream != b->calls_on)
        TRY(ep_slots_settle(b));
    return b->exec->stream_wait(b->exec->self, stream, b->stream);
}

static int reserve_on(struct ep_buffer *b, uint64_t bytes, void *stream, struct ep_block **out)
{
    int rc = b->exec->capture(b->exec->self, stream, &b->graph);
    if (rc == EP_OK && !b->graph)
        ep_slots_release_retired(b);
    if (rc == EP_OK)
        rc = ep_slots_exact(b, bytes, out);
    if (rc != EP_OK || !*out)
        return rc;
    /* It may have been staging or a result that is still in use.  A graph's order with what came
     * before it is the caller's. */
    rc = b->graph ? ep_slots_keep(b, *out) : follow_calls(b, stream);
    if (rc != EP_OK)
        ep_slots_release(b, *out);
    return rc;
}

int ep_buffer_reserve(struct ep_buffer *b, uint64_t bytes, void *stream, struct ep_block **out,
                      uint64_t *view)
{
    if (b->closed)
        return EP_ERR_DESTROYED;
    *out = NULL;
    int rc = reserve_on(b, bytes, stream, out);
    if (rc != EP_OK)
        return rc;
    if (!*out)
        return ep_status_no_room(b, bytes, ep_buffer_used(b));
    *view = b->arena.segment[(*out)->segment].view + (*out)->offset;
    return EP_OK;
}

uint64_t ep_buffer_used(struct ep_buffer *b)
{
    pthread_mutex_lock(&b->lock);
    uint64_t bytes = b->arena.in_use;
    pthread_mutex_unlock(&b->lock);
    return bytes;
}
