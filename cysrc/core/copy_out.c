/* SPDX-License-Identifier: MIT
 *
 * Arrays of a result that move out of the arena. */
#include "core/copy_out.h"

#include <string.h>

#include "core/launch.h"
#include "core/util.h"

/* Of a CTA's share, below which another CTA costs more than it brings; and CTAs that fill any GPU. */
#define BYTES_OF_CTA 16384
#define MOST_CTAS 264

static uint32_t num_ctas(const struct ep_copies *copies)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < EP_SLOT_ARRAYS; i++)
        if (copies->copy[i].dst)
            bytes += (uint64_t)copies->rows * copies->copy[i].row_bytes;
    uint64_t ctas = (bytes + BYTES_OF_CTA - 1) / BYTES_OF_CTA;
    return ctas < 1 ? 1 : ctas > MOST_CTAS ? MOST_CTAS : (uint32_t)ctas;
}

int ep_launch_copies(struct ep_buffer *b, const struct ep_copies *copies,
                     const struct ep_block *block, uint32_t slot_rows)
{
    struct ep_copy_params params = {.comm = b->comm, .rank_prefix = copies->rank_prefix,
                                    .slot_rows = slot_rows, .rows = copies->rows};
    if (!copies->rows || !block)
        return EP_OK;
    params.slot = b->arena.segment[block->segment].base + block->offset;
    memcpy(params.copy, copies->copy, sizeof params.copy);
    return ep_launch_on(b, b->stream, EP_KERNEL_COPY, &b->kernel[EP_KERNEL_COPY], &params,
                        sizeof params, num_ctas(copies));
}

int ep_buffer_copy_out(struct ep_buffer *b, const struct ep_call *call,
                       const struct ep_copies *copies, const struct ep_block *slot,
                       uint32_t slot_rows)
{
    const struct ep_executor *exec = b->exec;
    if (b->closed)
        return EP_ERR_DESTROYED;
    TRY(ep_launch_copies(b, copies, slot, slot_rows));
    if (call->flags & EP_CALL_WAIT)
        return exec->stream_synchronize(exec->self, b->stream);
    if (call->flags & EP_CALL_DETACHED)
        return EP_OK;
    return exec->stream_wait(exec->self, call->caller_stream, b->stream);
}
