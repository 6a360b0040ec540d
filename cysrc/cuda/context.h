/* SPDX-License-Identifier: MIT
 *
 * The primary context of an executor's GPU, and what is said of that GPU and its peers. */
#ifndef DEEPEP_PTX_CUDA_CONTEXT_H
#define DEEPEP_PTX_CUDA_CONTEXT_H

#include "deepep_ptx/executor.h"

struct cuda_executor;

/* Compute capability, 10 * major + minor. */
int cuda_executor_arch(const struct cuda_executor *executor);
/* Bytes of shared memory that a CTA can have, static ones among them. */
uint32_t cuda_executor_cta_smem(const struct cuda_executor *executor);
const char *cuda_executor_device_name(const struct cuda_executor *executor);

/* 16 bytes that no other GPU of any host has. */
int cuda_executor_uuid(struct cuda_executor *executor, void *uuid);

/* Ordinal of the GPU whose memory `address` is, -1 for any other address. */
int cuda_executor_device_of(struct cuda_executor *executor, ep_dptr_t address);

/* Makes `peer`'s memory, of the same process, accessible from here: the same addresses. */
int cuda_executor_enable_peer(struct cuda_executor *executor, const struct cuda_executor *peer);

/* Of the executor's life: GPU `device` is its own from the one to the other. */
int cuda_context_open(struct cuda_executor *e, int device);
void cuda_context_close(struct cuda_executor *e);

#endif
