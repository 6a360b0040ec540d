/* SPDX-License-Identifier: MIT
 *
 * Streams, events and host waits of an executor. */
#ifndef DEEPEP_PTX_CUDA_STREAM_H
#define DEEPEP_PTX_CUDA_STREAM_H

#include "deepep_ptx/executor.h"

struct cuda_executor;

/* Ends host waits of this rank, now and later, with EP_ERR_ABORTED: another rank has failed. */
void cuda_executor_stop(struct cuda_executor *executor);

/* Host waits ask `interrupted` now and then whether to give up. */
void cuda_executor_ask(struct cuda_executor *executor, int (*interrupted)(void));

/* Of the executor's end, in its context: the events that it kept. */
void cuda_stream_close(struct cuda_executor *e);

void cuda_stream_ops(struct ep_executor *table);

#endif
