/* SPDX-License-Identifier: MIT */
#include "core/status.h"
#include "core/util.h"

#include <stddef.h>

int ep_status_refuse(struct ep_buffer *b, uint32_t code)
{
    b->num_status = 1;
    b->status[0] = (struct ep_status_record){.epoch = b->control.epoch, .code = code,
                                             .peer = EP_NO_PEER, .valid = 1};
    return EP_ERR_STATUS;
}

int ep_status_no_room(struct ep_buffer *b, uint64_t bytes, uint64_t held)
{
    b->num_status = 1;
    b->status[0] = (struct ep_status_record){
        .code = EP_CODE_CAPACITY, .peer = b->comm.rank, .what = EP_CAPACITY_ARRAY,
        .expected = held + ep_align_slot(bytes), .seen = bytes, .valid = 1};
    return EP_ERR_STATUS;
}

/* Records that were written since the last look, up to this one, are known to all ranks: behind it
 * layout may have found more. */
static uint32_t num_told(const struct ep_buffer *b, uint32_t num_written)
{
    for (uint32_t i = num_written; i > 0; i--) {
        const struct ep_status_record *record = &b->ring->record[i - 1];
        if (record->valid && record->code == EP_CODE_PEER_FAULT
            && record->kernel == EP_KERNEL_DISPATCH && record->what != EP_CODE_DEAD_HANDLE
            && record->peer == b->comm.rank)
            return i;
    }
    return 0;
}

/* Take these records into b->status, oldest first; the others stay.  No kernel runs. */
static void drain(struct ep_buffer *b, enum ep_scope scope)
{
    uint32_t num_written = min_u32(b->ring->next, EP_STATUS_RECORDS), num_left = 0;
    uint32_t told = num_told(b, num_written);
    b->num_status = 0;
    for (uint32_t i = 0; i < num_written; i++) {
        struct ep_status_record record = b->ring->record[i];
        int untold = record.code == EP_CODE_TOPK_RANGE && i >= told;
        b->ring->record[i].valid = 0;
        if (!record.valid)
            continue;
        if (scope == EP_ALL || untold == (scope == EP_UNTOLD))
            b->status[b->num_status++] = record;
        else
            b->ring->record[num_left++] = record;
    }
    b->ring->next = num_left;
}

int ep_status_look(struct ep_buffer *b, enum ep_scope scope)
{
    const struct ep_executor *exec = b->exec;
    TRY(exec->stream_synchronize(exec->self, b->stream));
    TRY(exec->copy_out(exec->self, &b->control, b->comm.heap, sizeof b->control, b->stream));
    if (!b->control.abort)
        b->control.abort = b->host_abort;
    if (scope != EP_UNTOLD)
        b->unseen = 0;
    drain(b, scope);
    if (scope != EP_TOLD && b->control.fault) {     /* the host has it: nothing is left to tell    */
        b->control.fault = EP_CODE_OK;
        TRY(exec->fill(exec->self, b->comm.heap + offsetof(struct ep_control, fault), 0,
                       sizeof b->control.fault, b->stream));
    }
    if (b->num_status)
        return EP_ERR_STATUS;
    return b->control.abort && scope != EP_UNTOLD ? ep_status_refuse(b, EP_CODE_ABORTED) : EP_OK;
}

int ep_status_look_back(struct ep_buffer *b)
{
    TRY(b->exec->stream_synchronize(b->exec->self, b->stream));
    b->unseen = 0;
    return __atomic_load_n(&b->ring->next, __ATOMIC_ACQUIRE) ? ep_status_look(b, EP_TOLD) : EP_OK;
}

int ep_status_has_aborted(const struct ep_buffer *b)
{
    return __atomic_load_n(&b->ring->aborted, __ATOMIC_ACQUIRE) != 0;
}

int ep_buffer_is_aborted(const struct ep_buffer *b)
{
    return b->control.abort != 0 || (!b->closed && ep_status_has_aborted(b));
}

int ep_buffer_check(struct ep_buffer *b)
{
    return b->closed ? EP_ERR_DESTROYED : ep_status_look(b, EP_ALL);
}

int ep_buffer_settle(struct ep_buffer *b)
{
    return b->closed ? EP_ERR_DESTROYED : b->exec->stream_synchronize(b->exec->self, b->stream);
}

int ep_buffer_look(struct ep_buffer *b, void *stream, void **graph)
{
    return b->closed ? EP_ERR_DESTROYED : b->exec->look(b->exec->self, stream, graph);
}

int ep_buffer_has_news(const struct ep_buffer *b)
{
    return b->ring && b->ring->next != 0;
}

uint32_t ep_buffer_unraised(const struct ep_buffer *b,
                            struct ep_status_record records[EP_STATUS_RECORDS])
{
    uint32_t num_written = b->ring ? min_u32(b->ring->next, EP_STATUS_RECORDS) : 0, num = 0;
    for (uint32_t i = 0; i < num_written; i++)      /* kernels may still write others */
        if (__atomic_load_n(&b->ring->record[i].valid, __ATOMIC_ACQUIRE))
            records[num++] = b->ring->record[i];
    return num;
}
