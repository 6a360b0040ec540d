/* SPDX-License-Identifier: MIT
 *
 * struct ep_executor over one GPU of the CUDA driver, with all that is offered besides. */
#ifndef DEEPEP_PTX_CUDA_EXECUTOR_H
#define DEEPEP_PTX_CUDA_EXECUTOR_H

#include "deepep_ptx/executor.h"
#include "cuda/context.h"
#include "cuda/memory.h"
#include "cuda/module.h"
#include "cuda/stream.h"
#include "cuda/timing.h"

/* An executor for one rank on GPU `device`, with streams of its own in the device's primary
 * context.  NULL on failure, with the reason in `why` until the next call of this thread. */
struct cuda_executor *cuda_executor_create(int device, const char **why);
void cuda_executor_destroy(struct cuda_executor *executor);
const struct ep_executor *cuda_executor_table(struct cuda_executor *executor);

#endif
