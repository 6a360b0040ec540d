/* SPDX-License-Identifier: MIT
 *
 * Kernels: loaded, launched, and how many of their CTAs a GPU runs at a time. */
#ifndef DEEPEP_PTX_CUDA_MODULE_H
#define DEEPEP_PTX_CUDA_MODULE_H

#include "deepep_ptx/executor.h"

struct cuda_executor;

/* Loads `symbol` from NUL-terminated PTX and checks that it takes `param_bytes` of parameters. */
int cuda_executor_load(struct cuda_executor *executor, const char *ptx, const char *symbol,
                       uint32_t param_bytes, void **kernel);
void cuda_executor_unload(struct cuda_executor *executor, void *kernel);

void cuda_module_ops(struct ep_executor *table);

#endif
