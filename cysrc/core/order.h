/* SPDX-License-Identifier: MIT
 *
 * The order of a buffer's stream: what a call comes after, and what a slot's next user comes after.
 * What the mutex `order` guards changes here alone. */
#ifndef DEEPEP_PTX_ORDER_H
#define DEEPEP_PTX_ORDER_H

#include "core/buffer.h"

/* A call's kernels run after `previous`, or after what the caller's stream has queued. */
int  ep_order_begin(struct ep_buffer *b, const struct ep_call *call);
/* That call, which is not captured, is queued. */
void ep_order_end(struct ep_buffer *b, const struct ep_call *call);
/* `stream` comes after all calls, and after what died between them. */
int  ep_order_follow(struct ep_buffer *b, void *stream);
/* The buffer's stream comes after the last use of what died between calls.  EP_ERR_CAPTURED where that
 * cannot be now. */
int  ep_order_settle(struct ep_buffer *b);
/* What died during captures, now that nothing is captured. */
void ep_order_release_retired(struct ep_buffer *b);

#endif
