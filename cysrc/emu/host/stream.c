/* SPDX-License-Identifier: MIT
 *
 * Streams: launches, copies, fills and frees in order.  What finds its stream empty happens at
 * once; the rest when host_pump() comes to it, between two steps of the world. */
#include "emu/host/event.h"
#include "emu/host/failure.h"
#include "emu/host/memory.h"
#include "emu/host/pump.h"
#include "emu/host/work.h"

#include <stdlib.h>

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
        s->owned.destroyed = 1;
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
        race_order_follow(h->races, s->order, host_order(h, rank));
        race_act_for(h->races, s->order);
        result = src ? emu_host_write(h->world, rank, dst, src, bytes)
                     : emu_host_fill(h->world, rank, dst, value, bytes);
        if (!h->started)                 /* a world for one thread: its writes are synchronous */
            race_order_follow(h->races, host_order(h, rank), s->order);
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
        int result = host_launch_now(h, s, op);

        if (result != EMU_OK) {
            host_free_op(h, op);
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
        int result;

        race_order_follow(h->races, host_order(h, rank), s->order);
        race_act_for(h->races, host_order(h, rank));
        result = emu_host_read(h->world, rank, dst, src, bytes);

        if (result != EMU_OK)
            code = host_emu_error(h, rank, result, "src");
    }
    unlock(h);
    return code;
}
