/* SPDX-License-Identifier: MIT */
#include "cuda/executor.h"

#include <stdlib.h>

#include "cuda/call.h"
#include "cuda/graph.h"

static void close_device(struct cuda_executor *e)
{
    CUcontext before = cuda_current_context(e);

    if (e->cu->p_cuCtxSetCurrent(e->context) == CUDA_SUCCESS) {
        cuda_timing_close(e);
        cuda_stream_close(e);
    }
    e->cu->p_cuCtxSetCurrent(before);
    cuda_memory_close(e);
    cuda_context_close(e);
    free(e->idle);
}

static int open_device(struct cuda_executor *e, int device)
{
    int code = cuda_context_open(e, device);

    if (code != EP_OK)
        return code;
    code = cuda_memory_open(e);
    if (code != EP_OK)
        close_device(e);
    return code;
}

struct cuda_executor *cuda_executor_create(int device, const char **why)
{
    const struct cuda_driver *cu = cuda_driver(why);
    struct cuda_executor *e;

    if (cu == NULL)
        return NULL;
    *why = cuda_reason();
    e = calloc(1, sizeof *e);
    if (e == NULL) {
        cuda_refuse(EP_ERR_MEMORY, "no memory");
        return NULL;
    }
    e->cu = cu;
    pthread_mutex_init(&e->lock, NULL);
    if (open_device(e, device) != EP_OK) {
        pthread_mutex_destroy(&e->lock);
        free(e);
        return NULL;
    }
    e->table.self = e;
    e->table.device = (uint64_t)device;
    cuda_call_ops(&e->table);
    cuda_memory_ops(&e->table);
    cuda_stream_ops(&e->table);
    cuda_graph_ops(&e->table);
    cuda_module_ops(&e->table);
    return e;
}

void cuda_executor_destroy(struct cuda_executor *e)
{
    close_device(e);
    pthread_mutex_destroy(&e->lock);
    free(e);
}

const struct ep_executor *cuda_executor_table(struct cuda_executor *e)
{
    return &e->table;
}
