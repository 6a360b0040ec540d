/* SPDX-License-Identifier: MIT
 *
 * The order of a buffer's calls.  They come one after the other, whichever stream each is on: the
 * buffer's own, or the caller's where nothing asks for more.  What later calls must come after is
 * on the buffer's stream, or, behind the newest call, on the stream that this call was on. */
#ifndef DEEPEP_PTX_TIMELINE_H
#define DEEPEP_PTX_TIMELINE_H

#include "core/buffer.h"

/* With `order` held, the first three. */
/* What is queued on `stream` from now on comes after all calls. */
int  ep_timeline_join(struct ep_buffer *b, void *stream);
/* What `stream`, which has joined, has queued by now comes before all later calls. */
int  ep_timeline_mark(struct ep_buffer *b, void *stream);
/* What is queued on the buffer's stream from now on comes after all calls, and before later ones. */
int  ep_timeline_take(struct ep_buffer *b);

/* Waits for all calls. */
int  ep_timeline_settle(struct ep_buffer *b);

#endif
