/* SPDX-License-Identifier: MIT
 *
 * Memory of the ranks as the host sees it. */
#ifndef DEEPEP_PTX_EMU_HOST_MEMORY_H
#define DEEPEP_PTX_EMU_HOST_MEMORY_H

#include "emu/host/state.h"

/* NULL: none starts at va. */
/* Where the rank's kernels see a word of pinned memory.  0: they do not. */
int host_pinned_address(struct host_world *h, uint32_t rank, const void *word, ep_dptr_t *va);
struct segment *host_find_segment(struct host_world *h, uint32_t rank, ep_dptr_t va);
/* Unmaps now, or with the last pin. */
void host_release_segment(struct host_world *h, uint32_t rank, struct segment *s);
/* Frees what the world's end does not. */
void host_free_segments(struct rank *r);

#endif
