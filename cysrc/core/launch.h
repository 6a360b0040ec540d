/* SPDX-License-Identifier: MIT
 *
 * Launches of a call's kernels, and the shared memory that they take. */
#ifndef DEEPEP_PTX_LAUNCH_H
#define DEEPEP_PTX_LAUNCH_H

#include "core/buffer.h"

/* CTAs of a call that the device runs at the same time, whatever stages the call wants. */
int ep_launch_max_ctas(const struct ep_buffer *b, uint32_t *ctas);
/* With EP_MIN_STAGES of them there is room; 0: a kernel without rings. */
uint32_t ep_launch_most_stage_bytes(const struct ep_buffer *b, const struct ep_loaded *kernel);
/* Gives up stages of its rings that there is no room for. */
void ep_launch_fit(const struct ep_buffer *b, struct ep_loaded *kernel);
/* The kernel as a call wants it: EP_ERR_ARGUMENT for stages that it cannot have. */
int  ep_launch_choose(const struct ep_buffer *b, uint32_t kernel, const struct ep_call *call,
                      struct ep_loaded *out);

/* The kernel of a call whose CTAs wait for each other, on the buffer's stream. */
int  ep_launch_call(struct ep_buffer *b, const struct ep_call *call, uint32_t kernel,
                    const struct ep_loaded *loaded, const void *params, uint32_t param_bytes);
/* Any other kernel. */
int  ep_launch_on(struct ep_buffer *b, void *stream, uint32_t kernel,
                  const struct ep_loaded *loaded, const void *params, uint32_t param_bytes,
                  uint32_t grid);
/* Ends this rank's waits, and tells the peers. */
int  ep_launch_abort(struct ep_buffer *b);

#endif
