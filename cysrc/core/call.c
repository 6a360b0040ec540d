/* SPDX-License-Identifier: MIT
 *
 * Begin and end of a call, and what happens to its slot when it fails. */
#include "core/call.h"

#include "core/launch.h"
#include "core/order.h"
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
        ep_order_release_retired(b);
    }
    return EP_OK;
}

int ep_call_end(struct ep_buffer *b, const struct ep_call *call)
{
    b->unseen = 1;
    if (!(call->flags & EP_CALL_DETACHED))
        TRY(b->exec->stream_wait(b->exec->self, call->caller_stream, b->stream));
    if (!b->graph)
        ep_order_end(b, call);
    return EP_OK;
}

int ep_call_end_local(struct ep_buffer *b, const struct ep_call *call, int rc)
{
    if (rc == EP_OK)
        return call->flags & EP_CALL_WAIT ? ep_status_look(b, EP_UNTOLD) : ep_call_end(b, call);
    if (b->graph)
        ep_call_end(b, call);
    return rc;
}

int ep_call_wait_end(struct ep_buffer *b)
{
    int rc = ep_status_look(b, EP_TOLD);
    if (rc != EP_OK || b->control.verdict == EP_CODE_OK)
        return rc;
    return ep_status_refuse(b, b->control.verdict);
}

void ep_call_abort(struct ep_buffer *b)
{
    const struct ep_executor *exec = b->exec;
    if (ep_launch_abort(b) == EP_OK
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
