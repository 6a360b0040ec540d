/* SPDX-License-Identifier: MIT
 *
 * What the device says of a buffer's calls: status records in the pinned ring, and the control
 * words. */
#ifndef DEEPEP_PTX_STATUS_H
#define DEEPEP_PTX_STATUS_H

#include "core/buffer.h"

/* What a look at the device takes of what it has reported. */
enum ep_scope {
    EP_TOLD,                     /* what all ranks know of                                      */
    EP_UNTOLD,                   /* what layout found and no dispatch has told the others yet     */
    EP_ALL
};

/* b->status := that code; returns EP_ERR_STATUS. */
int ep_status_refuse(struct ep_buffer *b, uint32_t code);

/* The same for `bytes` side by side that this rank's arena does not have, beside `held` bytes. */
int ep_status_no_room(struct ep_buffer *b, uint64_t bytes, uint64_t held);

/* Waits for what was called so far and reads its verdict. */
int ep_status_look(struct ep_buffer *b, enum ep_scope scope);

/* The errors of earlier calls, at a call that waits for the host on all ranks: they all learn of
 * them here.  An abort leaves a record, so without one there is nothing to read. */
int ep_status_look_back(struct ep_buffer *b);

/* Whether the device has aborted since the host last looked: then nothing it is given runs. */
int ep_status_has_aborted(const struct ep_buffer *b);

#endif
