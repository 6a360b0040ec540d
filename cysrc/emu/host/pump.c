/* SPDX-License-Identifier: MIT */
#include "emu/host/pump.h"
#include "emu/host/failure.h"
#include "emu/host/memory.h"
#include "emu/host/work.h"

#include <stdio.h>

int host_launch_now(struct host_world *h, uint32_t rank, struct op *op)
{
    return emu_launch(h->world, rank, op->kernel->kernel, op->data, (uint32_t)op->bytes, op->grid,
                      op->block, op->smem, &op->running);
}

/* Starts or looks after the op at a stream's head.  Returns whether it is over. */
static int advance(struct host_world *h, struct host_stream *stream, struct op *op)
{
    int result = EMU_OK;

    switch (op->kind) {
    case OP_LAUNCH:
        if (!op->running) {
            result = host_launch_now(h, stream->rank, op);
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
