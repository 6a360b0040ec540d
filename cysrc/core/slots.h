/* SPDX-License-Identifier: MIT
 *
 * Extents of a buffer's arena during its calls. */
#ifndef DEEPEP_PTX_SLOTS_H
#define DEEPEP_PTX_SLOTS_H

#include "core/buffer.h"

/* The largest free extent, whole; NULL when nothing is free. */
struct ep_block *ep_slots_largest(struct ep_buffer *b);
/* First fit; *out is NULL when no free extent has that many bytes. */
int  ep_slots_exact(struct ep_buffer *b, uint64_t bytes, struct ep_block **out);
/* Bytes of the largest free extent. */
uint64_t ep_slots_room(struct ep_buffer *b);
/* Bytes in use, landing and quarantined slots included. */
uint64_t ep_slots_used(struct ep_buffer *b);
void ep_slots_trim(struct ep_buffer *b, struct ep_block *block, uint64_t bytes);
void ep_slots_release(struct ep_buffer *b, struct ep_block *block);
/* One more reference. */
void ep_slots_hold(struct ep_buffer *b, struct ep_block *block);

/* Makes landing at least that large, if there is room; what it was stays if there is not. */
int  ep_slots_make_landing(struct ep_buffer *b, uint64_t bytes);
void ep_slots_drop_landing(struct ep_buffer *b);

/* Until reset: a peer may still write to it. */
void ep_slots_quarantine(struct ep_buffer *b, struct ep_block *block);
/* With the lock held: quarantined slots are free again. */
void ep_slots_release_quarantine(struct ep_buffer *b);
/* The buffer has closed: frees segments without slots in use. */
void ep_slots_close(struct ep_buffer *b);

#endif
