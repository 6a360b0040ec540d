/* SPDX-License-Identifier: MIT
 *
 * Capture of streams into graphs, and their replay.  A graph is a list: what its streams queued, in
 * the order in which they did, which every dependency between them agrees with. */
#include "emu/host/graph.h"
#include "emu/host/failure.h"
#include "emu/host/owned.h"
#include "emu/host/work.h"

#include <stdlib.h>

/* NULL with an error: not a graph of the rank. */
static struct host_graph *find(struct host_world *h, uint32_t rank, const struct host_graph *graph)
{
    return host_find(h, rank, h->ranks[rank].graphs, graph, "graph", "a graph");
}

/* The same for one whose capture is over. */
static struct host_graph *find_whole(struct host_world *h, uint32_t rank,
                                     const struct host_graph *graph)
{
    struct host_graph *g = find(h, rank, graph);

    if (!g || !g->origin)
        return g;
    host_error(h, rank, EP_ERR_ARGUMENT, "graph: its capture is not over");
    return NULL;
}

/* -- life ------------------------------------------------------------------------------------- */

/* The owner's reference goes. */
static void disown(struct host_world *h, struct host_graph *graph)
{
    host_disown(&h->ranks[graph->rank].graphs, &graph->owned);
    host_drop_graph(h, graph);
}

void host_free_graphs(struct host_world *h, struct rank *r)
{
    while (r->graphs)
        disown(h, (struct host_graph *)r->graphs);
}

int host_graph_destroy(struct host_world *h, uint32_t rank, struct host_graph *graph)
{
    struct host_graph *g;

    lock(h);
    g = find_whole(h, rank, graph);
    if (g)
        disown(h, g);
    unlock(h);
    return g ? EP_OK : EP_ERR_ARGUMENT;
}

int host_graph_keep(struct host_world *h, uint32_t rank, struct host_graph *graph, void *what,
                    void (*release)(void *what))
{
    struct host_graph *g;
    struct keep *keep;
    int code = EP_OK;

    lock(h);
    g = find(h, rank, graph);
    if (!g) {
        code = EP_ERR_ARGUMENT;
    } else if (!(keep = calloc(1, sizeof *keep))) {
        code = host_error(h, rank, EP_ERR_MEMORY, "graph: no memory");
    } else {
        keep->what = what;
        keep->release = release;
        keep->next = g->kept;
        g->kept = keep;
    }
    unlock(h);
    return code;
}

/* -- capture ---------------------------------------------------------------------------------- */

int host_capture_begin(struct host_world *h, uint32_t rank, struct host_stream *stream)
{
    struct host_graph *g = NULL;
    struct host_stream *s;
    int code;

    lock(h);
    code = host_stream_take(h, rank, stream, &s);
    if (code == EP_OK && s->graph)
        code = host_error(h, rank, EP_ERR_ARGUMENT, "stream: is captured already");
    else if (code == EP_OK && !(g = calloc(1, sizeof *g)))
        code = host_error(h, rank, EP_ERR_MEMORY, "graph: no memory");
    if (g) {
        g->rank = rank;
        g->refs = 1;
        g->origin = s;
        host_own(&h->ranks[rank].graphs, &g->owned);
        s->graph = g;
    }
    unlock(h);
    return code;
}

/* From the newest op to the oldest, a stream is joined when the origin's end comes after what it
 * queued up to there.  Returns whether every op was queued on a joined stream; the graph is left
 * with its work in order. */
static int put_in_order(struct host_world *h, struct host_graph *graph)
{
    struct op *op = graph->ops, *next;
    int joined = 1;

    graph->ops = NULL;
    graph->origin->joined = 1;
    for (; op; op = next) {
        struct host_stream *stream = op->stream;

        next = op->next;
        if (op->kind == OP_WAIT) {
            op->mark->joined |= stream->joined;
            host_free_op(h, op);
        } else if (op->kind == OP_MARK) {
            stream->joined |= op->mark->joined;
            op->mark->graph = NULL;
            host_free_op(h, op);
        } else {
            joined &= stream->joined;
            op->stream = NULL;
            op->next = graph->ops;
            graph->ops = op;
        }
    }
    return joined;
}

/* Nothing is captured into the graph any more. */
static void let_go(struct host_world *h, struct host_graph *graph)
{
    struct owned *each = h->ranks[graph->rank].streams, *next;

    for (; each; each = next) {
        struct host_stream *stream = (struct host_stream *)each;

        next = each->next;
        if (stream->graph != graph)
            continue;
        stream->graph = NULL;
        stream->joined = 0;
        if (each->destroyed && !stream->head)
            host_delete_stream(h, stream);
    }
    graph->origin = NULL;
}

static int end_capture(struct host_world *h, uint32_t rank, struct host_graph *graph)
{
    int joined = put_in_order(h, graph), code = host_failure_code(h, rank);

    let_go(h, graph);
    if (code != EP_OK)
        return code;
    if (graph->broken)
        return host_error(h, rank, EP_ERR_EXECUTOR, "stream: an error broke its capture");
    if (!joined)
        return host_error(h, rank, EP_ERR_EXECUTOR, "stream: other streams of its capture are not "
                          "joined: it must wait for an event behind their last work");
    return EP_OK;
}

int host_capture_end(struct host_world *h, uint32_t rank, struct host_stream *stream,
                     struct host_graph **out)
{
    struct host_stream *s;
    struct host_graph *g;
    int code = EP_ERR_ARGUMENT;

    lock(h);
    s = host_stream_find(h, rank, stream);
    g = s ? s->graph : NULL;
    if (s && !g) {
        host_error(h, rank, code, "stream: is not captured");
    } else if (g && g->origin != s) {
        g->broken = 1;
        code = host_error(h, rank, EP_ERR_EXECUTOR, "stream: joined a capture that began on "
                          "another stream and must end there; this broke it");
    } else if (g) {
        code = end_capture(h, rank, g);
        if (code == EP_OK)
            *out = g;
        else
            disown(h, g);
    }
    unlock(h);
    return code;
}

int host_capture_of(struct host_world *h, uint32_t rank, struct host_stream *stream,
                    struct host_graph **out)
{
    struct host_stream *s;
    int code;

    lock(h);
    code = host_stream_take(h, rank, stream, &s);
    if (code == EP_OK)
        *out = s->graph;
    unlock(h);
    return code;
}

/* -- replay ----------------------------------------------------------------------------------- */

static struct op *clone(struct host_world *h, struct host_graph *graph, const struct op *op)
{
    uint64_t bytes = op->kind == OP_FILL ? 0 : op->bytes;
    struct op *copy = host_new_op(h, graph->rank, op->kind, op->data, bytes);
    struct race_clock *after;

    if (!copy)
        return NULL;
    after = copy->after;
    *copy = *op;                         /* all but the data */
    copy->after = after;
    copy->next = NULL;
    copy->graph = graph;
    graph->refs++;
    return copy;
}

static int replay(struct host_world *h, struct host_graph *graph, struct host_stream *stream)
{
    struct op *first = NULL, **end = &first, *next;

    for (const struct op *op = graph->ops; op; op = op->next) {
        *end = clone(h, graph, op);
        if (!*end) {
            host_free_ops(h, first);
            return EP_ERR_MEMORY;
        }
        end = &(*end)->next;
    }
    for (; first; first = next) {
        next = first->next;
        first->next = NULL;
        host_append(h, stream, first);
    }
    return EP_OK;
}

int host_graph_replay(struct host_world *h, uint32_t rank, struct host_graph *graph,
                      struct host_stream *stream)
{
    struct host_graph *g;
    struct host_stream *s;
    int code;

    lock(h);
    code = host_stream_take(h, rank, stream, &s);
    if (code == EP_OK && !(g = find_whole(h, rank, graph)))
        code = EP_ERR_ARGUMENT;
    if (code == EP_OK)
        code = replay(h, g, s);
    unlock(h);
    return code;
}
