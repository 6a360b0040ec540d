/* SPDX-License-Identifier: MIT */
#include <string.h>

#include "core/heap.h"
#include "core/slots.h"
#include "core/util.h"

int ep_buffer_reset_begin(struct ep_buffer *b, uint64_t *epoch)
{
    const struct ep_executor *exec = b->exec;
    if (b->closed)
        return EP_ERR_DESTROYED;
    TRY(exec->stream_synchronize(exec->self, b->abort_stream));
    TRY(exec->stream_synchronize(exec->self, b->stream));
    TRY(exec->copy_out(exec->self, &b->control, b->comm.heap, sizeof b->control, b->stream));
    /* Captured calls have numbers and no epoch: neither may come again. */
    *epoch = b->num_calls > b->control.epoch ? b->num_calls : b->control.epoch;
    return EP_OK;
}

int ep_buffer_reset_end(struct ep_buffer *b, uint64_t max_epoch)
{
    const struct ep_executor *exec = b->exec;
    if (b->closed)
        return EP_ERR_DESTROYED;
    /* Two past the maximum: no flag that any rank has raised reaches the new epoch. */
    struct ep_control control = {.epoch = max_epoch + 2};
    TRY(exec->copy_in(exec->self, b->comm.heap, &control, sizeof control, b->stream));
    TRY(exec->fill(exec->self, b->comm.heap + flags_at(b, 0), 0,
                   b->comm.num_ranks * sizeof(struct ep_flags), b->stream));
    TRY(exec->stream_synchronize(exec->self, b->stream));
    b->control = control;
    b->num_calls = control.epoch;        /* equal on all ranks again                       */
    b->host_abort = 0;
    b->unseen = 0;
    b->num_status = 0;
    memset(b->ring, 0, sizeof *b->ring);
    pthread_mutex_lock(&b->lock);
    ep_slots_release_quarantine(b);
    pthread_mutex_unlock(&b->lock);
    return EP_OK;
}
