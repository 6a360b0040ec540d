/* SPDX-License-Identifier: MIT
 *
 * What all calls have in common: how they begin, end and fail. */
#ifndef DEEPEP_PTX_CALL_H
#define DEEPEP_PTX_CALL_H

#include "core/buffer.h"

/* Whether a call can be made, with what holds for it; nothing is queued yet. */
int ep_call_begin(struct ep_buffer *b, const struct ep_call *call);
/* The caller's stream waits for the call, unless it is detached. */
int ep_call_end(struct ep_buffer *b, const struct ep_call *call);
/* A call of this rank alone, whose launch came out as rc: its end, for which the host may wait, or the
 * capture's streams are given back. */
int ep_call_end_local(struct ep_buffer *b, const struct ep_call *call, int rc);
/* The host waits for the end of a collective call: an abort or a verdict without a record is an error
 * as well. */
int ep_call_wait_end(struct ep_buffer *b);
/* A host error in the middle of a call: tell the peers, who may already wait for this rank. */
void ep_call_abort(struct ep_buffer *b);
/* A call that failed with rc once it had begun, its slot included, NULL for none. */
int ep_call_fail(struct ep_buffer *b, const struct ep_call *call, struct ep_block *block, int rc);

#endif
