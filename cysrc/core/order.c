/* SPDX-License-Identifier: MIT
 *
 * docs/protocols.md says why each order is safe. */
#include "core/order.h"

#include "core/slots.h"
#include "core/util.h"

static int is_captured(const struct ep_buffer *b, void *stream)
{
    void *graph = NULL;
    return b->exec->capture(b->exec->self, stream, &graph) == EP_OK && graph;
}

/* What ep_order_settle says, with `order` held. */
static int await_last_use(struct ep_buffer *b)
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

int ep_order_settle(struct ep_buffer *b)
{
    pthread_mutex_lock(&b->order);
    int rc = await_last_use(b);
    pthread_mutex_unlock(&b->order);
    return rc;
}

/* -- calls ---------------------------------------------------------------------------------- */

/* What the call comes after but for `previous`.  With `order` held: no slot that dies may be ordered
 * in between. */
static int order_streams(struct ep_buffer *b, const struct ep_call *call)
{
    /* A captured stream takes this one into its capture only if it is waited for. */
    int waits = b->graph || !call->previous;
    b->between_calls = 0;
    /* What died is ordered before a replay by the caller, as the calls before it are. */
    if (!b->graph && !(waits && call->caller_stream == b->calls_on))
        TRY(await_last_use(b));
    if (!waits)
        return EP_OK;
    TRY(b->exec->stream_wait(b->exec->self, b->stream, call->caller_stream));
    if (!b->graph)
        b->awaits_last_use = 0;
    return EP_OK;
}

int ep_order_begin(struct ep_buffer *b, const struct ep_call *call)
{
    pthread_mutex_lock(&b->order);
    int rc = order_streams(b, call);
    pthread_mutex_unlock(&b->order);
    TRY(rc);
    return call->previous ? b->exec->event_wait(b->exec->self, b->stream, call->previous) : EP_OK;
}

void ep_order_end(struct ep_buffer *b, const struct ep_call *call)
{
    pthread_mutex_lock(&b->order);
    b->calls_on = call->caller_stream;
    b->between_calls = 1;
    pthread_mutex_unlock(&b->order);
}

int ep_order_follow(struct ep_buffer *b, void *stream)
{
    if (stream != b->calls_on)
        TRY(ep_order_settle(b));
    return b->exec->stream_wait(b->exec->self, stream, b->stream);
}

/* -- slots that die ------------------------------------------------------------------------- */

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

/* Of a slot whose last use is behind the buffer's stream, with `order` held and the buffer open.  What
 * a graph keeps is not free.  A device on which the fill fails fails the next call. */
static void poison(struct ep_buffer *b, const struct ep_block *slot)
{
    pthread_mutex_lock(&b->lock);
    int is_kept = slot->used > 1;
    ep_dptr_t address = b->arena.segment[slot->segment].base + slot->offset;
    pthread_mutex_unlock(&b->lock);
    if (!is_kept)
        b->exec->fill(b->exec->self, address, EP_POISON, slot->bytes, b->stream);
}

void ep_buffer_poison_slots(struct ep_buffer *b)
{
    b->poisons = 1;
}

void ep_buffer_retire(struct ep_buffer *b, struct ep_block *slot, void *const streams[2],
                      int lasting)
{
    pthread_mutex_lock(&b->order);
    int ordered = (!b->poisons && note_last_use(b, streams, lasting)) || order_after(b, streams);
    if (ordered && b->poisons && !b->closed) {
        poison(b, slot);
        /* A graph that gets the extent may be replayed there: nothing else orders it behind the fill. */
        for (int i = 0; i < 2; i++)
            b->exec->stream_wait(b->exec->self, streams[i], b->stream);
    }
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
    if (b->poisons) {
        pthread_mutex_lock(&b->order);
        if (!b->closed && !is_captured(b, b->stream))
            poison(b, slot);
        pthread_mutex_unlock(&b->order);
    }
    ep_slots_release(b, slot);
}

void ep_order_release_retired(struct ep_buffer *b)
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
