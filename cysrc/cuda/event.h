/* SPDX-License-Identifier: MIT
 *
 * Events of the driver's current context, without an executor.  Each function returns NULL, or the
 * name of what went wrong. */
#ifndef DEEPEP_PTX_CUDA_EVENT_H
#define DEEPEP_PTX_CUDA_EVENT_H

const char *cuda_event_create(void **event);
const char *cuda_event_destroy(void *event);
const char *cuda_event_record(void *event, void *stream);
const char *cuda_event_wait(void *event, void *stream);
const char *cuda_event_synchronize(void *event);
const char *cuda_event_query(void *event, int *done);

/* Whether this thread has a current context. */
int cuda_has_context(void);

#endif
