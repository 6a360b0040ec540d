/* SPDX-License-Identifier: MIT
 *
 * struct ep_executor over one GPU of the CUDA driver. */
#ifndef DEEPEP_PTX_CUDA_EXECUTOR_H
#define DEEPEP_PTX_CUDA_EXECUTOR_H

#include "core/executor.h"

struct cuda_executor;

/* An executor for one rank on GPU `device`, with streams of its own in the device's primary
 * context.  NULL on failure, with the reason in `why` (valid until the next call of this thread). */
struct cuda_executor *cuda_executor_create(int device, const char **why);
void cuda_executor_destroy(struct cuda_executor *executor);
const struct ep_executor *cuda_executor_table(struct cuda_executor *executor);

/* GPUs that the driver shows; -1 without a usable driver, with the reason in `why`. */
int cuda_device_count(const char **why);

/* Ends host waits of this rank, now and later, with EP_ERR_ABORTED: another rank has failed. */
void cuda_executor_stop(struct cuda_executor *executor);

/* Compute capability, 10 * major + minor. */
int cuda_executor_arch(const struct cuda_executor *executor);
/* Bytes of shared memory that a CTA can have, static ones among them. */
uint32_t cuda_executor_cta_smem(const struct cuda_executor *executor);
const char *cuda_executor_device_name(const struct cuda_executor *executor);

/* Loads `symbol` from NUL-terminated PTX and checks that it takes `param_bytes` of parameters. */
int cuda_executor_load(struct cuda_executor *executor, const char *ptx, const char *symbol,
                       uint32_t param_bytes, void **kernel);
void cuda_executor_unload(struct cuda_executor *executor, void *kernel);

/* Stream-ordered memory of this rank alone: never waits for the device. */
int cuda_executor_alloc_async(struct cuda_executor *executor, uint64_t bytes, void *stream,
                              ep_dptr_t *out);
int cuda_executor_free_async(struct cuda_executor *executor, ep_dptr_t ptr, void *stream);

/* Within the memory of this GPU, in the order of `stream`. */
int cuda_executor_copy(struct cuda_executor *executor, ep_dptr_t dst, ep_dptr_t src, uint64_t bytes,
                       void *stream);

/* Host waits ask `interrupted` now and then whether to give up. */
void cuda_executor_ask(struct cuda_executor *executor, int (*interrupted)(void));

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

/* Ordinal of the GPU whose memory `address` is, -1 for any other address. */
int cuda_executor_device_of(struct cuda_executor *executor, ep_dptr_t address);

/* 16 bytes that no other GPU of any host has. */
int cuda_executor_uuid(struct cuda_executor *executor, void *uuid);

/* Makes `peer`'s memory, of the same process, accessible from here: the same addresses. */
int cuda_executor_enable_peer(struct cuda_executor *executor, const struct cuda_executor *peer);

#endif
