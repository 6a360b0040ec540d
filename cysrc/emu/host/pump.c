/* SPDX-License-Identifier: MIT */
#include "emu/host/pump.h"
#include "emu/host/failure.h"
#include "emu/host/memory.h"
#include "emu/host/work.h"

#include <stdio.h>

int host_launch_now(struct host_world *h, struct host_stream *stream, struct op *op)
{
    uint32_t rank = stream->rank;
    int result = emu_launch(h->world, rank, op->kernel->kernel, op->data, (uint32_t)op->bytes,
                            op->grid, op->block, op->smem, &op->running);

    if (result == EMU_OK && h->races) {
        race_order_after(h->races, stream->order, op->after);
        race_launch(h->races, op->running, stream->order);
    }
    return result;
}

/* The stream is about to access memory itself. */
static void begin_access(struct host_world *h, struct host_stream *stream, const struct op *op)
{
    race_order_after(h->races, stream->order, op->after);
    race_act_for(h->races, stream->order);
}

/* Starts or looks after the op at a stream's head.  Returns whether it is over. */
static int advance(struct host_world *h, struct host_stream *stream, struct op *op)
{
    int result = EMU_OK;

    switch (op->kind) {
    case OP_LAUNCH:
        if (!op->running) {
            result = host_launch_now(h, stream, op);
            break;
        }
        if (!emu_grid_done(op->running))
            return 0;
        race_finish(h->races, op->running, stream->order);
        emu_grid_free(op->running);
        return 1;
    case OP_COPY:
        begin_access(h, stream, op);
        result = emu_host_write(h->world, stream->rank, op->va, op->data, op->bytes);
        break;
    case OP_FILL:
        begin_access(h, stream, op);
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
        op->mark->after = race_order_now(h->races, stream->order);
        return 1;
    case OP_WAIT:
        if (op->mark->passed)
            race_order_after(h->races, stream->order, op->mark->after);
        return op->mark->passed;
    }
    h->touched = 1;
    if (result == EMU_ERR_FAULT && emu_faulted(h->world)) {
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
        if (stream->owned.destroyed && !stream->graph)
            host_delete_stream(h, stream);
    }
    return changed;
}
