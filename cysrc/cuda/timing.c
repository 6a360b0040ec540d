/* SPDX-License-Identifier: MIT */
#include "cuda/timing.h"

#include <stdlib.h>

#include "cuda/call.h"

struct cuda_timed_launch *cuda_timing_take(struct cuda_executor *e, void *kernel)
{
    struct cuda_timed_launch *timed = NULL;

    pthread_mutex_lock(&e->lock);
    if (e->num_timed < e->max_timed) {
        timed = &e->timed[e->num_timed++];
        timed->kernel = kernel;
    }
    pthread_mutex_unlock(&e->lock);
    return timed;
}

static void destroy_times(struct cuda_executor *e, struct cuda_timed_launch *timed, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        if (timed[i].begin != NULL)
            e->cu->p_cuEventDestroy(timed[i].begin);
        if (timed[i].end != NULL)
            e->cu->p_cuEventDestroy(timed[i].end);
    }
    free(timed);
}

/* These are the executor's from now on, in place of what it had. */
static void set_times(struct cuda_executor *e, struct cuda_timed_launch *timed, uint32_t count)
{
    struct cuda_timed_launch *before;
    uint32_t count_before;

    pthread_mutex_lock(&e->lock);
    before = e->timed;
    count_before = e->max_timed;
    e->timed = timed;
    e->max_timed = count;
    e->num_timed = 0;
    pthread_mutex_unlock(&e->lock);
    destroy_times(e, before, count_before);
}

static int make_times(struct cuda_executor *e, struct cuda_timed_launch *timed, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        TRY(cuEventCreate, &timed[i].begin, CU_EVENT_DEFAULT);
        TRY(cuEventCreate, &timed[i].end, CU_EVENT_DEFAULT);
    }
    return EP_OK;
}

int cuda_executor_profile(struct cuda_executor *e, uint32_t most)
{
    struct cuda_timed_launch *timed = NULL;
    int code;

    ENTER();
    set_times(e, NULL, 0);
    if (most == 0)
        return EP_OK;
    timed = calloc(most, sizeof *timed);
    if (timed == NULL)
        return cuda_refuse(EP_ERR_MEMORY, "no memory for the times of %u launches", most);
    code = make_times(e, timed, most);
    if (code == EP_OK)
        set_times(e, timed, most);
    else
        destroy_times(e, timed, most);
    return code;
}

int cuda_executor_launch_time(struct cuda_executor *e, uint32_t index, void **kernel,
                              float *microseconds)
{
    struct cuda_timed_launch timed = { 0 };
    uint32_t count;

    pthread_mutex_lock(&e->lock);
    count = e->num_timed;
    if (index < count)
        timed = e->timed[index];
    pthread_mutex_unlock(&e->lock);
    if (index >= count)
        return cuda_refuse(EP_ERR_ARGUMENT, "%u launches were timed", count);
    *kernel = timed.kernel;
    return cuda_executor_elapsed(e, timed.begin, timed.end, microseconds);
}

int cuda_executor_timed_event(struct cuda_executor *e, void **event)
{
    ENTER();
    TRY(cuEventCreate, (CUevent *)event, CU_EVENT_DEFAULT);
    return EP_OK;
}

int cuda_executor_timed_event_destroy(struct cuda_executor *e, void *event)
{
    TRY(cuEventDestroy, event);
    return EP_OK;
}

int cuda_executor_elapsed(struct cuda_executor *e, void *begin, void *end, float *microseconds)
{
    float milliseconds = 0;

    ENTER();
    TRY(cuEventSynchronize, end);
    TRY(cuEventElapsedTime, &milliseconds, begin, end);
    *microseconds = milliseconds * 1000;
    return EP_OK;
}

static int time_copies(struct cuda_executor *e, CUevent begin, CUevent end, ep_dptr_t dst,
                       ep_dptr_t src, uint64_t bytes, uint32_t times, void *stream,
                       float *milliseconds)
{
    TRY(cuEventRecord, begin, stream);
    for (uint32_t i = 0; i < times; i++)
        TRY(cuMemcpyAsync, dst, src, bytes, stream);
    TRY(cuEventRecord, end, stream);
    TRY(cuEventSynchronize, end);
    TRY(cuEventElapsedTime, milliseconds, begin, end);
    return EP_OK;
}

int cuda_executor_time_copy(struct cuda_executor *e, ep_dptr_t dst, ep_dptr_t src, uint64_t bytes,
                            uint32_t times, void *stream, float *microseconds)
{
    CUevent begin = NULL, end = NULL;
    float milliseconds = 0;
    int code;

    ENTER();
    TRY(cuEventCreate, &begin, CU_EVENT_DEFAULT);
    code = cuda_check(e, e->cu->p_cuEventCreate(&end, CU_EVENT_DEFAULT), "cuEventCreate");
    if (code == EP_OK) {
        code = time_copies(e, begin, end, dst, src, bytes, times, stream, &milliseconds);
        e->cu->p_cuEventDestroy(end);
    }
    e->cu->p_cuEventDestroy(begin);
    *microseconds = milliseconds * 1000 / (float)times;
    return code;
}

void cuda_timing_close(struct cuda_executor *e)
{
    set_times(e, NULL, 0);
}
