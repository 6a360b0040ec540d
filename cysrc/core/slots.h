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
void ep_slots_trim(struct ep_buffer *b, struct ep_block *block, uint64_t bytes);
void ep_slots_release(struct ep_buffer *b, struct ep_block *block);
/* One more reference. */
void ep_slots_hold(struct ep_buffer *b, struct ep_block *block);

/* Makes landing at least that large, if there is room; what it was stays if there is not. */
int  ep_slots_make_landing(struct ep_buffer *b, uint64_t bytes);
void ep_slots_drop_landing(struct ep_buffer *b);

/* The running call's graph holds `block` from now on; nothing where the call is not captured. */
int  ep_slots_keep(struct ep_buffer *b, struct ep_block *block);
/* The same for what lies at `offset` of a segment. */
int  ep_slots_keep_at(struct ep_buffer *b, uint32_t segment, uint64_t offset);
/* Until reset: a peer may still write to it. */
void ep_slots_quarantine(struct ep_buffer *b, struct ep_block *block);
/* With the lock held: quarantined slots are free again. */
void ep_slots_release_quarantine(struct ep_buffer *b);
/* The buffer has closed: frees segments without slots in use. */
void ep_slots_close(struct ep_buffer *b);
/* What died during captures, now that nothing is captured. */
void ep_slots_release_retired(struct ep_buffer *b);
/* With `order` held: the buffer's stream comes after the last use of what died between calls.
 * EP_ERR_CAPTURED where that cannot be now. */
int  ep_slots_await_last_use(struct ep_buffer *b);
/* The same without `order`. */
int  ep_slots_settle(struct ep_buffer *b);

#endif
