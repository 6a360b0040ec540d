/* SPDX-License-Identifier: MIT */
#include "core/timeline.h"

#define TRY(call) do { int rc_ = (call); if (rc_ != EP_OK) return rc_; } while (0)

int ep_timeline_join(struct ep_buffer *b, void *stream)
{
    if (b->joined && b->ahead == stream && !b->moved)
        return EP_OK;            /* the newest call was on it                                   */
    TRY(ep_timeline_take(b));
    TRY(b->exec->stream_wait(b->exec->self, stream, b->stream));
    b->joined = 1;
    b->ahead = stream;
    b->moved = 0;
    return EP_OK;
}

int ep_timeline_mark(struct ep_buffer *b, void *stream)
{
    TRY(b->exec->event_record(b->exec->self, b->tail, stream));
    b->behind = 1;
    return EP_OK;
}

int ep_timeline_take(struct ep_buffer *b)
{
    if (b->behind)
        TRY(b->exec->event_wait(b->exec->self, b->stream, b->tail));
    b->behind = 0;
    b->moved = 1;
    return EP_OK;
}

int ep_timeline_settle(struct ep_buffer *b)
{
    pthread_mutex_lock(&b->order);
    int behind = b->behind, moved = b->moved;
    pthread_mutex_unlock(&b->order);
    if (behind)
        TRY(b->exec->event_synchronize(b->exec->self, b->tail));
    return behind && !moved ? EP_OK : b->exec->stream_synchronize(b->exec->self, b->stream);
}
