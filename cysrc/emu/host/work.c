/* SPDX-License-Identifier: MIT */
#include "emu/host/work.h"
#include "emu/host/failure.h"
#include "emu/host/owned.h"

#include <stdlib.h>
#include <string.h>

/* -- streams ---------------------------------------------------------------------------------- */

struct host_stream *host_stream_new(struct host_world *h, uint32_t rank)
{
    struct host_stream *s = calloc(1, sizeof *s);

    if (!s)
        return NULL;
    s->rank = rank;
    s->order = race_order_new(h->races, rank, true);
    host_own(&h->ranks[rank].streams, &s->owned);
    return s;
}

void host_delete_stream(struct host_world *h, struct host_stream *stream)
{
    race_order_give(h->races, stream->order, &h->ranks[stream->rank].ended);
    host_disown(&h->ranks[stream->rank].streams, &stream->owned);
    race_order_free(stream->order);
    free(stream);
}

struct host_stream *host_stream_find(struct host_world *h, uint32_t rank,
                                     const struct host_stream *stream)
{
    if (!stream)
        return h->ranks[rank].stream0;
    return host_find(h, rank, h->ranks[rank].streams, stream, "stream", "a stream");
}

int host_stream_take(struct host_world *h, uint32_t rank, const struct host_stream *stream,
                     struct host_stream **out)
{
    int code = host_failure_code(h, rank);

    if (code == EP_OK && !(*out = host_stream_find(h, rank, stream)))
        code = EP_ERR_ARGUMENT;
    return code;
}

void host_free_streams(struct host_world *h, struct rank *r)
{
    while (r->streams) {
        struct host_stream *stream = (struct host_stream *)r->streams;

        r->streams = stream->owned.next;
        host_free_ops(h, stream->head);
        race_order_free(stream->order);
        free(stream);
    }
}

/* -- ops, and the marks and graphs that they refer to ------------------------------------------ */

struct op *host_new_op(struct host_world *h, uint32_t rank, enum op_kind kind, const void *data,
                       uint64_t bytes)
{
    struct op *op = calloc(1, sizeof *op + bytes);

    if (!op) {
        host_error(h, rank, EP_ERR_MEMORY, "stream: no memory for %llu bytes",
                   (unsigned long long)bytes);
        return NULL;
    }
    op->kind = kind;
    op->after = race_order_now(h->races, host_order(h, rank));
    op->bytes = bytes;
    if (bytes)
        memcpy(op->data, data, bytes);
    return op;
}

void host_append(struct host_world *h, struct host_stream *stream, struct op *op)
{
    if (stream->graph) {
        op->stream = stream;
        op->next = stream->graph->ops;
        stream->graph->ops = op;
        return;
    }
    if (stream->tail) {
        stream->tail->next = op;
    } else {
        struct host_stream **link = &h->active;

        while (*link)
            link = &(*link)->next_active;
        *link = stream;
        stream->head = op;
    }
    stream->tail = op;
}

void host_drop_mark(struct mark *mark)
{
    if (!mark || --mark->refs)
        return;
    race_clock_release(mark->after);
    free(mark);
}

void host_free_op(struct host_world *h, struct op *op)
{
    host_drop_mark(op->mark);
    race_clock_release(op->after);
    if (op->graph)
        host_drop_graph(h, op->graph);
    free(op);
}

void host_free_ops(struct host_world *h, struct op *op)
{
    while (op) {
        struct op *next = op->next;

        host_free_op(h, op);
        op = next;
    }
}

void host_drop_graph(struct host_world *h, struct host_graph *graph)
{
    struct keep **end = &h->gone;

    if (--graph->refs > 0)
        return;
    host_free_ops(h, graph->ops);
    while (*end)
        end = &(*end)->next;
    *end = graph->kept;
    free(graph);
}

struct mark *host_mark(struct host_world *h, uint32_t rank, struct host_stream *stream)
{
    struct mark *mark = calloc(1, sizeof *mark);
    struct op *op;

    if (!mark) {
        host_error(h, rank, EP_ERR_MEMORY, "stream: no memory");
        return NULL;
    }
    mark->refs = 1;
    mark->graph = stream->graph;
    mark->captured = stream->graph != NULL;
    mark->passed = host_runs_at_once(stream);
    if (mark->passed) {
        mark->after = race_order_now(h->races, stream->order);
        return mark;
    }
    op = host_new_op(h, rank, OP_MARK, NULL, 0);
    if (!op) {
        host_drop_mark(mark);
        return NULL;
    }
    mark->refs++;
    op->mark = mark;
    host_append(h, stream, op);
    return mark;
}
