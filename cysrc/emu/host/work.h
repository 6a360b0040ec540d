/* SPDX-License-Identifier: MIT
 *
 * What streams have queued: ops, the marks between them, and graphs that were made of them. */
#ifndef DEEPEP_PTX_EMU_HOST_WORK_H
#define DEEPEP_PTX_EMU_HOST_WORK_H

#include "emu/host/state.h"

/* NULL: no memory. */
struct host_stream *host_stream_new(struct host_world *h, uint32_t rank);
/* The rank's stream, NULL = its default one; returns NULL with an error for any other pointer. */
struct host_stream *host_stream_find(struct host_world *h, uint32_t rank,
                                     const struct host_stream *stream);
/* For a call that queues on `stream` or asks for it: EP_OK and *out, or what the call returns. */
int host_stream_take(struct host_world *h, uint32_t rank, const struct host_stream *stream,
                     struct host_stream **out);
/* Whether what is queued now need not wait: nothing is there before it, and nothing captures it. */
static inline int host_runs_at_once(const struct host_stream *stream)
{
    return !stream->head && !stream->graph;
}
void host_delete_stream(struct host_world *h, struct host_stream *stream);
void host_free_streams(struct host_world *h, struct rank *r);

/* NULL with an error: no memory.  `bytes` of `data` are copied. */
struct op *host_new_op(struct host_world *h, uint32_t rank, enum op_kind kind, const void *data,
                       uint64_t bytes);
void host_free_ops(struct host_world *h, struct op *first);
void host_free_op(struct host_world *h, struct op *op);
/* The op is the stream's from now on, or that of the graph that captures it. */
void host_append(struct host_world *h, struct host_stream *stream, struct op *op);

/* A mark behind all that `stream` has queued, and a reference to it for the caller; NULL with an
 * error: no memory. */
struct mark *host_mark(struct host_world *h, uint32_t rank, struct host_stream *stream);
void host_drop_mark(struct mark *mark);

/* Takes a reference away.  With the last one the ops go, and what it keeps becomes h->gone. */
void host_drop_graph(struct host_world *h, struct host_graph *graph);

#endif
