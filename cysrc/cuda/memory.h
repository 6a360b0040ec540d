/* SPDX-License-Identifier: MIT
 *
 * Memory of an executor's GPU, pinned memory, and memory of peer processes. */
#ifndef DEEPEP_PTX_CUDA_MEMORY_H
#define DEEPEP_PTX_CUDA_MEMORY_H

#include "deepep_ptx/executor.h"

struct cuda_executor;

/* Stream-ordered memory of this rank alone: never waits for the device. */
int cuda_executor_alloc_async(struct cuda_executor *executor, uint64_t bytes, void *stream,
                              ep_dptr_t *out);
int cuda_executor_free_async(struct cuda_executor *executor, ep_dptr_t ptr, void *stream);

/* Within the memory of this GPU, in the order of `stream`. */
int cuda_executor_copy(struct cuda_executor *executor, ep_dptr_t dst, ep_dptr_t src, uint64_t bytes,
                       void *stream);

/* Of the executor's life, in its context. */
int cuda_memory_open(struct cuda_executor *e);
void cuda_memory_close(struct cuda_executor *e);

void cuda_memory_ops(struct ep_executor *table);

#endif
