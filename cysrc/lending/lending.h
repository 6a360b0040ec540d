/* SPDX-License-Identifier: MIT
 *
 * Arena memory lent to torch's caching allocator, as the one segment of a pool of its own.
 *
 * torch asks a pool's allocator for a segment when a pool has no block of the wanted size, and gives
 * the segment back when the pool goes, which may be in any thread, under torch's lock and without the
 * GIL: so nothing here calls Python or the driver. */
#ifndef DEEPEP_PTX_LENDING_H
#define DEEPEP_PTX_LENDING_H

#include <stdint.h>
#include <sys/types.h>

/* What this thread's next segment shall be; address 0: nothing is offered. */
void ep_lend_offer(uint64_t address, uint64_t bytes);
/* The same with an address where no memory is, of any size; nobody asks whether it came back. */
void ep_lend_offer_nothing(uint64_t address);
/* Whether the segment that was lent at `address` has come back; once it has it is forgotten. */
int ep_lend_returned(uint64_t address);

/* The pool's allocator, as torch.cuda.memory.CUDAPluggableAllocator wants it.  Without an offer that
 * is large enough there is no memory here. */
void *ep_lend_alloc(ssize_t bytes, int device, void *stream);
void ep_lend_free(void *address, ssize_t bytes, int device, void *stream);

#endif
