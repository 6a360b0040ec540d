/* SPDX-License-Identifier: MIT
 *
 * Begin and end of a call, and what happens to its slot when it fails.  docs/protocols.md says why
 * each order is safe. */
#include "core/call.h"

#include "core/launch.h"
#include "core/slots.h"
#include "core/status.h"
#include "core/util.h"

int ep_call_begin(struct ep_buffer *b, const struct ep_call *call)
{
    if (b->closed)
        return EP_ERR_DESTROYED;
    b->num_launched = 0;
    b->num_status = 0;
    b->graph = call->graph;
    b->may_grow = 0;
    if (b->control.abort)        /* what made it so may not have been raised yet                */
        return b->ring->next ? ep_status_look(b, EP_ALL) : ep_status_refuse(b, EP_CODE_ABORTED);
    if (!b->graph) {
        if (ep_status_has_aborted(b))
            return ep_status_look(b, EP_ALL);
        ep_slots_release_retired(b);
    }
    return EP_OK;
}

/* What the call comes after but for `previous`.  With `order` held: no slot that dies may be ordered
 * in between. */
static int order_streams(struct ep_buffer *b, const struct ep_call *call)
{
    /* A captured stream takes this one into its capture only if it is waited for. */
    int waits = b->graph || !call->previous;
    b->between_calls = 0;
    /* What died is ordered before a replay by the caller, as the calls before it are. */
    if (!b->graph && !(waits && call->caller_stream == b->calls_on))
        TRY(ep_slots_await_last_use(b));
    if (!waits)
        return EP_OK;
    TRY(b->exec->stream_wait(b->exec->self, b->stream, call->caller_stream));
    if (!b->graph)
        b->awaits_last_use = 0;
    return EP_OK;
}

int ep_call_order(struct ep_buffer *b, const struct ep_call *call)
{
    pthread_mutex_lock(&b->order);
    int rc = order_streams(b, call);
    pthread_mutex_unlock(&b->order);
    TRY(rc);
    return call->previous ? b->exec->event_wait(b->exec->self, b->stream, call->previous) : EP_OK;
}

int ep_call_end(struct ep_buffer *b, const struct ep_call *call)
{
    b->unseen = 1;
    if (!(call->flags & EP_CALL_DETACHED))
        TRY(b->exec->stream_wait(b->exec->self, call->caller_stream, b->stream));
    if (b->graph)
        return EP_OK;
    pthread_mutex_lock(&b->order);
    b->calls_on = call->caller_stream;
    b->between_calls = 1;
    pthread_mutex_unlock(&b->order);
    return EP_OK;
}

int ep_call_wait_end(struct ep_buffer *b)
{
    int rc = ep_status_look(b, EP_TOLD);
    if (rc != EP_OK || b->control.verdict == EP_CODE_OK)
        return rc;
    return ep_status_refuse(b, b->control.verdict);
}

/* The word that ends this rank's waits needs no launch, which may queue behind the call that waits
 * (CUDA_DEVICE_MAX_CONNECTIONS).  The launch tells the peers, also where no call of this rank runs. */
static int launch_abort(struct ep_buffer *b)
{
    struct ep_abort_params params = {.comm = b->comm};
    __atomic_store_n(&b->ring->stop, 1, __ATOMIC_RELEASE);
    return ep_launch_on(b, b->abort_stream, EP_KERNEL_ABORT, &b->kernel[EP_KERNEL_ABORT], &params,
                        sizeof params, 1);
}

void ep_buffer_abandon(struct ep_buffer *b)
{
    if (b->closed)
        return;
    /* Where even this fails, the peers find out by their time limits. */
    if (!b->control.abort && !b->alone)
        launch_abort(b);
    b->abandoned = 1;
    ep_buffer_close(b);
}

void ep_call_abort(struct ep_buffer *b)
{
    const struct ep_executor *exec = b->exec;
    if (launch_abort(b) == EP_OK
        && exec->stream_synchronize(exec->self, b->abort_stream) == EP_OK)
        ep_status_look(b, EP_ALL);
    /* Also where nothing could be launched: the device's state is unknown. */
    if (!b->control.abort)
        b->host_abort = b->control.abort = b->control.epoch << 8 | (b->comm.rank + 1);
}

int ep_call_fail(struct ep_buffer *b, const struct ep_call *call, struct ep_block *block, int rc)
{
    if (b->graph) {              /* nothing runs; the capture gets its streams back             */
        b->exec->stream_wait(b->exec->self, call->caller_stream, b->stream);
    } else if (rc != EP_ERR_STATUS) {
        ep_call_abort(b);
    }
    if (block && b->control.abort && block != b->landing)
        ep_slots_quarantine(b, block);
    else if (block)
        ep_slots_release(b, block);
    return rc;
}
