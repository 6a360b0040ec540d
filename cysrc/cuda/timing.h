/* SPDX-License-Identifier: MIT
 *
 * What a GPU takes: times of launches, of copies, and from event to event. */
#ifndef DEEPEP_PTX_CUDA_TIMING_H
#define DEEPEP_PTX_CUDA_TIMING_H

#include "deepep_ptx/executor.h"

struct cuda_executor;
struct cuda_timed_launch;

/* Times every launch from now on, `most` of them, with events around it; 0 stops and forgets.  No
 * other thread may be launching meanwhile. */
int cuda_executor_profile(struct cuda_executor *executor, uint32_t most);
/* Launch `index` since then: its kernel and how long it ran.  EP_ERR_ARGUMENT past the last one;
 * waits for the launch. */
int cuda_executor_launch_time(struct cuda_executor *executor, uint32_t index, void **kernel,
                              float *microseconds);

/* An event that keeps its time, for the table's functions of events but event_destroy, which gives
 * events out again where no time is needed. */
int cuda_executor_timed_event(struct cuda_executor *executor, void **event);
int cuda_executor_timed_event_destroy(struct cuda_executor *executor, void *event);
/* From one of them to another, both recorded; waits for the latter. */
int cuda_executor_elapsed(struct cuda_executor *executor, void *begin, void *end,
                          float *microseconds);

/* Copies between any two GPUs of this process with the copy engine, `times` times in a row on
 * `stream`; returns when done, with the time of one copy. */
int cuda_executor_time_copy(struct cuda_executor *executor, ep_dptr_t dst, ep_dptr_t src,
                            uint64_t bytes, uint32_t times, void *stream, float *microseconds);

/* Where the times of the next launch go, NULL: it is not timed. */
struct cuda_timed_launch *cuda_timing_take(struct cuda_executor *e, void *kernel);

/* Of the executor's end, in its context. */
void cuda_timing_close(struct cuda_executor *e);

#endif
