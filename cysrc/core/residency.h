/* SPDX-License-Identifier: MIT
 *
 * CTAs of a call wait for each other and for those of its peers, so all of them must run at the same
 * time.  One call's are few enough (ep_buffer_max_ctas); those of several buffers, called on several
 * streams, may not be. */
#ifndef DEEPEP_PTX_RESIDENCY_H
#define DEEPEP_PTX_RESIDENCY_H

#include "core/buffer.h"

/* `resident`: CTAs of this buffer's calls that its device runs at the same time. */
void ep_residency_join(struct ep_buffer *b, uint32_t resident);
void ep_residency_leave(struct ep_buffer *b);
/* Where a call with so many CTAs is made: whether the device may not hold the largest calls that this
 * process's buffers on it have made so far, all at the same time; also in b->crowded. */
int ep_residency_is_crowded(struct ep_buffer *b, uint32_t ctas);

#endif
