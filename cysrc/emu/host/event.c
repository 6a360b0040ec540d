/* SPDX-License-Identifier: MIT
 *
 * Marks, places in the work of streams, and who waits for them: streams, the host, events. */
#include "emu/host/event.h"
#include "emu/host/failure.h"
#include "emu/host/owned.h"
#include "emu/host/ranks.h"
#include "emu/host/work.h"

#include <stdlib.h>

/* The host asks for what only a graph holds. */
static int refuse_captured(struct host_world *h, uint32_t rank, struct mark *mark, const char *what)
{
    if (!mark->graph)
        return host_error(h, rank, EP_ERR_ARGUMENT,
                          "event: was recorded in a capture, which is over; record it again");
    mark->graph->broken = 1;
    return host_error(h, rank, EP_ERR_EXECUTOR, "%s: the work is captured, it does not run before "
                      "its graph is replayed; this broke the capture", what);
}

int host_wait_mark(struct host_world *h, uint32_t rank, struct mark *mark, const char *what)
{
    struct wait w = { .kind = WAIT_MARK, .what = what, .mark = mark };
    int code = host_failure_code(h, rank);

    if (code == EP_OK)
        code = mark->captured ? refuse_captured(h, rank, mark, what)
                              : host_wait(h, rank, &w, EP_FOREVER);
    host_drop_mark(mark);
    return code;
}

/* Nothing in a capture waits for what is outside of it. */
static int check_wait(struct host_world *h, uint32_t rank, struct host_stream *stream,
                      struct mark *mark)
{
    if (mark->captured ? mark->graph && (!stream->graph || stream->graph == mark->graph)
                       : !stream->graph)
        return EP_OK;
    if (stream->graph)
        stream->graph->broken = 1;
    if (mark->graph) {
        mark->graph->broken = 1;
        return host_error(h, rank, EP_ERR_EXECUTOR, "stream: is captured and cannot wait for work "
                          "of another capture; this broke both");
    }
    if (mark->captured)
        return refuse_captured(h, rank, mark, NULL);
    return host_error(h, rank, EP_ERR_EXECUTOR, "stream: is captured and cannot wait for work "
                      "outside of its capture; this broke it");
}

/* What is queued on `stream` from now on runs after `mark`. */
static int wait_for(struct host_world *h, uint32_t rank, struct host_stream *stream,
                    struct mark *mark)
{
    int code = check_wait(h, rank, stream, mark);
    struct op *op;

    if (code == EP_OK && mark->passed)
        race_order_after(h->races, stream->order, mark->after);
    if (code != EP_OK || mark->passed)
        return code;
    op = host_new_op(h, rank, OP_WAIT, NULL, 0);
    if (!op)
        return EP_ERR_MEMORY;
    mark->refs++;
    op->mark = mark;
    stream->graph = mark->graph;
    host_append(h, stream, op);
    return EP_OK;
}

int host_stream_wait(struct host_world *h, uint32_t rank, struct host_stream *waiter,
                     struct host_stream *waited)
{
    struct host_stream *behind, *before;
    struct mark *mark;
    int code;

    lock(h);
    code = host_stream_take(h, rank, waiter, &behind);
    if (code == EP_OK)
        code = host_stream_take(h, rank, waited, &before);
    if (code == EP_OK) {
        mark = host_mark(h, rank, before);
        code = mark ? wait_for(h, rank, behind, mark) : EP_ERR_MEMORY;
        host_drop_mark(mark);
    }
    unlock(h);
    return code;
}

/* -- events ----------------------------------------------------------------------------------- */

/* NULL with an error: not an event of the rank. */
static struct host_event *find(struct host_world *h, uint32_t rank, const struct host_event *event)
{
    return host_find(h, rank, h->ranks[rank].events, event, "event", "an event");
}

/* As host_stream_take(). */
static int take(struct host_world *h, uint32_t rank, const struct host_event *event,
                struct host_event **out)
{
    int code = host_failure_code(h, rank);

    if (code == EP_OK && !(*out = find(h, rank, event)))
        code = EP_ERR_ARGUMENT;
    return code;
}

int host_event_create(struct host_world *h, uint32_t rank, struct host_event **out)
{
    struct host_event *e = NULL;
    int code;

    lock(h);
    code = host_failure_code(h, rank);
    if (code == EP_OK && !(e = calloc(1, sizeof *e)))
        code = host_error(h, rank, EP_ERR_MEMORY, "event: no memory");
    if (code == EP_OK) {
        host_own(&h->ranks[rank].events, &e->owned);
        *out = e;
    }
    unlock(h);
    return code;
}

int host_event_destroy(struct host_world *h, uint32_t rank, struct host_event *event)
{
    struct host_event *e;

    lock(h);
    e = find(h, rank, event);
    if (e) {
        host_disown(&h->ranks[rank].events, &e->owned);
        host_drop_mark(e->mark);
        free(e);
    }
    unlock(h);
    return e ? EP_OK : EP_ERR_ARGUMENT;
}

int host_event_record(struct host_world *h, uint32_t rank, struct host_event *event,
                      struct host_stream *stream)
{
    struct host_stream *s;
    struct host_event *e;
    struct mark *mark;
    int code;

    lock(h);
    code = take(h, rank, event, &e);
    if (code == EP_OK)
        code = host_stream_take(h, rank, stream, &s);
    if (code == EP_OK && !(mark = host_mark(h, rank, s)))
        code = EP_ERR_MEMORY;
    if (code == EP_OK) {
        host_drop_mark(e->mark);
        e->mark = mark;
    }
    unlock(h);
    return code;
}

int host_event_wait(struct host_world *h, uint32_t rank, struct host_stream *stream,
                    struct host_event *event)
{
    struct host_stream *s;
    struct host_event *e;
    int code;

    lock(h);
    code = take(h, rank, event, &e);
    if (code == EP_OK)
        code = host_stream_take(h, rank, stream, &s);
    if (code == EP_OK && e->mark)
        code = wait_for(h, rank, s, e->mark);
    unlock(h);
    return code;
}

int host_event_synchronize(struct host_world *h, uint32_t rank, struct host_event *event)
{
    struct host_event *e;
    int code;

    lock(h);
    code = take(h, rank, event, &e);
    if (code == EP_OK && e->mark) {
        e->mark->refs++;                 /* the event may be destroyed meanwhile */
        code = host_wait_mark(h, rank, e->mark, "event_synchronize");
    }
    unlock(h);
    return code;
}

int host_event_query(struct host_world *h, uint32_t rank, struct host_event *event, int *done)
{
    struct host_event *e;
    int code;

    lock(h);
    code = take(h, rank, event, &e);
    if (code == EP_OK && e->mark && e->mark->captured)
        code = refuse_captured(h, rank, e->mark, "event_query");
    else if (code == EP_OK)
        *done = !e->mark || e->mark->passed;
    if (code == EP_OK && e->mark && *done)
        race_order_after(h->races, host_order(h, rank), e->mark->after);
    unlock(h);
    return code;
}

void host_free_events(struct rank *r)
{
    while (r->events) {
        struct host_event *event = (struct host_event *)r->events;

        r->events = event->owned.next;
        host_drop_mark(event->mark);
        free(event);
    }
}
