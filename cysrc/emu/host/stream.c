/* SPDX-License-Identifier: MIT
 *
 * Streams: launches, copies, fills and frees in order.  What finds its stream empty happens at
 * once; the rest when host_pump() comes to it, between two steps of the world. */
#include "emu/host/state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct host_stream *host_stream_new(struct host_world *h, uint32_t rank)
{
    struct host_stream *s = calloc(1, sizeof *s);

    if (!s)
        return NULL;
    s->rank = rank;
    s->next = h->ranks[rank].streams;
    h->ranks[rank].streams = s;
    return s;
}

void host_delete_stream(struct host_world *h, struct host_stream *stream)
{
    struct host_stream **link = &h->ranks[stream->rank].streams;

    while (*link != stream)
        link = &(*link)->next;
    *link = stream->next;
    free(stream);
}

struct host_stream *host_stream_find(struct host_world *h, uint32_t rank,
                                   const struct host_stream *stream)
{
    if (!stream)
        return h->ranks[rank].stream0;
    for (struct host_stream *s = h->ranks[rank].streams; s; s = s->next)
        if (s == stream && !s->closing)
            return s;
    host_error(h, rank, EP_ERR_ARGUMENT, "stream: not a stream of rank %u", rank);
    return NULL;
}

static int launch_now(struct host_world *h, uint32_t rank, struct op *op)
{
    return emu_launch(h->world, rank, op->kernel->kernel, op->data, (uint32_t)op->bytes, op->grid,
                      op->block, op->smem, &op->running);
}

void host_free_op(struct host_world *h, struct op *op)
{
    host_drop_mark(op->mark);
    if (op->graph)
        host_drop_graph(h, op->graph);
    free(op);
}

/* Starts or looks after the op at a stream's head.  Returns whether it is over. */
static int advance(struct host_world *h, struct host_stream *stream, struct op *op)
{
    int result = EMU_OK;

    switch (op->kind) {
    case OP_LAUNCH:
        if (!op->running) {
            result = launch_now(h, stream->rank, op);
            break;
        }
        if (!emu_grid_done(op->running))
            return 0;
        emu_grid_free(op->running);
        return 1;
    case OP_COPY:
        result = emu_host_write(h->world, stream->rank, op->va, op->data, op->bytes);
        break;
    case OP_FILL:
        result = emu_host_fill(h->world, stream->rank, op->va, op->value, op->bytes);
        break;
    case OP_FREE: {
        struct segment *s = host_find_segment(h, stream->rank, op->va);

        if (s)
            host_release_segment(h, stream->rank, s);
        return 1;
    }
    case OP_MARK:
        op->mark->passed = 1;
        return 1;
    case OP_WAIT:
        return op->mark->passed;
    }
    h->touched = 1;
    if (result == EMU_ERR_FAULT && emu_world_fault(h->world)) {
        host_fail_by_fault(h);
    } else if (result != EMU_OK && h->failure == HOST_OK) {
        snprintf(h->report, sizeof h->report, "rank %u: a queued %s%s no longer fitted when its "
                 "turn came", stream->rank,
                 op->kind == OP_LAUNCH ? "launch of " : op->kind == OP_COPY ? "copy" : "fill",
                 op->kind == OP_LAUNCH ? op->kernel->symbol : "");
        host_fail(h, HOST_LAUNCH_FAILED, (int)stream->rank);
    }
    return result != EMU_OK || op->kind != OP_LAUNCH;
}

int host_pump(struct host_world *h)
{
    struct host_stream **link = &h->active, *stream;
    int changed = 0;

    while ((stream = *link)) {
        struct op *op;

        while ((op = stream->head) && h->failure == HOST_OK) {
            int began = op->kind == OP_LAUNCH && !op->running;

            if (!advance(h, stream, op)) {
                changed |= began;
                break;
            }
            changed = 1;
            stream->head = op->next;
            host_free_op(h, op);
        }
        if (stream->head) {
            link = &stream->next_active;
            continue;
        }
        stream->tail = NULL;
        *link = stream->next_active;
        stream->next_active = NULL;
        if (stream->closing && !stream->graph)
            host_delete_stream(h, stream);
    }
    return changed;
}

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

int host_stream_create(struct host_world *h, uint32_t rank, struct host_stream **out)
{
    struct host_stream *s;
    int code;

    lock(h);
    code = host_failure_code(h, rank);
    if (code == EP_OK) {
        s = host_stream_new(h, rank);
        if (s)
            *out = s;
        else
            code = host_error(h, rank, EP_ERR_MEMORY, "stream: no memory");
    }
    unlock(h);
    return code;
}

int host_stream_destroy(struct host_world *h, uint32_t rank, struct host_stream *stream)
{
    struct host_stream *s;
    int code = EP_OK;

    lock(h);
    s = host_stream_find(h, rank, stream);
    if (!s)
        code = EP_ERR_ARGUMENT;
    else if (s == h->ranks[rank].stream0)
        code = host_error(h, rank, EP_ERR_ARGUMENT,
                          "stream: the default stream cannot be destroyed");
    else if (s->graph && s->graph->origin == s)
        code = host_error(h, rank, EP_ERR_ARGUMENT, "stream: its capture must end first");
    else if (s->head || s->graph)
        s->closing = 1;
    else
        host_delete_stream(h, s);
    unlock(h);
    return code;
}

/* A copy (src) or a fill (src NULL): now if the stream is empty, else in its turn. */
static int store(struct host_world *h, uint32_t rank, ep_dptr_t dst, const void *src,
                 uint8_t value, uint64_t bytes, struct host_stream *stream)
{
    struct host_stream *s = host_stream_find(h, rank, stream);
    int code = host_failure_code(h, rank), result;
    struct op *op;
    void *host;

    if (code != EP_OK || bytes == 0)
        return code;
    if (!s)
        return EP_ERR_ARGUMENT;
    if (host_runs_at_once(s)) {
        result = src ? emu_host_write(h->world, rank, dst, src, bytes)
                     : emu_host_fill(h->world, rank, dst, value, bytes);
        h->touched = 1;
        return result == EMU_OK ? EP_OK : host_emu_error(h, rank, result, "dst");
    }
    /* Checked now, since nobody is there to hear of it later. */
    result = emu_host_address(h->world, rank, dst, bytes, &host);
    if (result != EMU_OK)
        return host_emu_error(h, rank, result, "dst");
    op = host_new_op(h, rank, src ? OP_COPY : OP_FILL, src, src ? bytes : 0);
    if (!op)
        return EP_ERR_MEMORY;
    op->va = dst;
    op->bytes = bytes;
    op->value = value;
    host_append(h, s, op);
    return EP_OK;
}

int host_copy_in(struct host_world *h, uint32_t rank, ep_dptr_t dst, const void *src,
                 uint64_t bytes, struct host_stream *stream)
{
    int code;

    lock(h);
    code = store(h, rank, dst, src, 0, bytes, stream);
    unlock(h);
    return code;
}

int host_fill(struct host_world *h, uint32_t rank, ep_dptr_t dst, uint8_t value, uint64_t bytes,
              struct host_stream *stream)
{
    int code;

    lock(h);
    code = store(h, rank, dst, NULL, value, bytes, stream);
    unlock(h);
    return code;
}

int host_free(struct host_world *h, uint32_t rank, ep_dptr_t va, struct host_stream *stream)
{
    struct host_stream *s;
    struct segment *segment;
    struct op *op;
    int code = EP_OK;

    lock(h);
    segment = host_find_segment(h, rank, va);
    s = host_stream_find(h, rank, stream);
    if (!s) {
        code = EP_ERR_ARGUMENT;
    } else if (!segment || segment->kind != SEGMENT_ALLOC || segment->freed) {
        code = host_error(h, rank, EP_ERR_ARGUMENT,
                          "ptr: 0x%llx is not the start of an allocation of rank %u",
                          (unsigned long long)va, rank);
    } else if (s->graph && h->failure == HOST_OK) {
        code = host_error(h, rank, EP_ERR_EXECUTOR,
                          "stream: is captured, and a free cannot be; free on another stream");
    } else if (s->head && h->failure == HOST_OK) {
        op = host_new_op(h, rank, OP_FREE, NULL, 0);
        code = op ? EP_OK : EP_ERR_MEMORY;
        if (op) {
            op->va = va;
            host_append(h, s, op);
        }
    } else {
        host_release_segment(h, rank, segment);
    }
    unlock(h);
    return code;
}

/* A queued launch has nobody to report to when its turn comes. */
static int check_launch(struct host_world *h, uint32_t rank, const struct ep_launch *launch)
{
    const struct host_kernel *kernel = launch->kernel;
    uint32_t ctas = 0;

    if (launch->param_bytes != kernel->param_bytes)
        return host_error(h, rank, EP_ERR_ARGUMENT, "params: %s takes %u bytes, got %u",
                          kernel->symbol, kernel->param_bytes, launch->param_bytes);
    if (launch->grid == 0)
        return host_error(h, rank, EP_ERR_ARGUMENT,
                          "grid: %s must be launched with at least 1 CTA, got 0", kernel->symbol);
    if (emu_max_resident(h->world, kernel->kernel, launch->block, launch->smem, &ctas) != EMU_OK ||
        ctas == 0)
        return host_error(h, rank, EP_ERR_ARGUMENT, "block: %s does not fit a device with %u "
                          "threads and %u bytes of dynamic shared memory", kernel->symbol,
                          launch->block, launch->smem);
    return EP_OK;
}

static int launch_on(struct host_world *h, uint32_t rank, const struct ep_launch *launch)
{
    struct host_kernel *kernel = launch->kernel;
    struct host_stream *s;
    struct op *op;
    int code = host_failure_code(h, rank);

    if (code == EP_OK)
        code = check_launch(h, rank, launch);
    if (code != EP_OK)
        return code;
    s = host_stream_find(h, rank, launch->stream);
    if (!s)
        return EP_ERR_ARGUMENT;
    op = host_new_op(h, rank, OP_LAUNCH, launch->params, launch->param_bytes);
    if (!op)
        return EP_ERR_MEMORY;
    op->kernel = kernel;
    op->grid = launch->grid;
    op->block = launch->block;
    op->smem = launch->smem;
    if (host_runs_at_once(s)) {
        int result = launch_now(h, rank, op);

        if (result != EMU_OK) {
            free(op);
            return host_emu_error(h, rank, result, kernel->symbol);
        }
        h->touched = 1;
    }
    host_append(h, s, op);
    return EP_OK;
}

int host_launch(struct host_world *h, uint32_t rank, const struct ep_launch *launch)
{
    int code;

    lock(h);
    code = launch_on(h, rank, launch);
    unlock(h);
    return code;
}

static int synchronize(struct host_world *h, uint32_t rank, struct host_stream *stream)
{
    struct mark *mark = host_mark(h, rank, stream);

    return mark ? host_wait_mark(h, rank, mark, "stream_synchronize") : EP_ERR_MEMORY;
}

int host_synchronize(struct host_world *h, uint32_t rank, struct host_stream *stream)
{
    struct host_stream *s;
    int code = EP_ERR_ARGUMENT;

    lock(h);
    s = host_stream_find(h, rank, stream);
    if (s)
        code = synchronize(h, rank, s);
    unlock(h);
    return code;
}

int host_copy_out(struct host_world *h, uint32_t rank, void *dst, ep_dptr_t src, uint64_t bytes,
                  struct host_stream *stream)
{
    struct host_stream *s;
    int code = EP_ERR_ARGUMENT;

    lock(h);
    s = host_stream_find(h, rank, stream);
    if (s)
        code = host_runs_at_once(s) ? host_failure_code(h, rank) : synchronize(h, rank, s);
    if (code == EP_OK && bytes) {
        int result = emu_host_read(h->world, rank, dst, src, bytes);

        if (result != EMU_OK)
            code = host_emu_error(h, rank, result, "src");
    }
    unlock(h);
    return code;
}

void host_free_streams(struct host_world *h, struct rank *r)
{
    while (r->streams) {
        struct host_stream *stream = r->streams;

        r->streams = stream->next;
        while (stream->head) {
            struct op *op = stream->head;

            stream->head = op->next;
            host_free_op(h, op);
        }
        free(stream);
    }
}
