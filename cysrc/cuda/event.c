/* SPDX-License-Identifier: MIT */
#include "cuda/event.h"

#include "cuda/driver.h"

static const char *name_of(const struct cuda_driver *cu, CUresult code)
{
    const char *name = "unknown error";

    if (code == CUDA_SUCCESS)
        return NULL;
    cu->p_cuGetErrorName(code, &name);
    return name;
}

/* Calls a driver function and returns its error. */
#define RETURN(call, ...)                                                                        \
    do {                                                                                         \
        const char *why_;                                                                        \
        const struct cuda_driver *cu_ = cuda_driver(&why_);                                      \
        return cu_ ? name_of(cu_, cu_->p_##call(__VA_ARGS__)) : why_;                            \
    } while (0)

const char *cuda_event_create(void **event)
{
    RETURN(cuEventCreate, (CUevent *)event, CU_EVENT_DISABLE_TIMING);
}

const char *cuda_event_destroy(void *event)
{
    RETURN(cuEventDestroy, event);
}

const char *cuda_event_record(void *event, void *stream)
{
    RETURN(cuEventRecord, event, stream);
}

const char *cuda_event_wait(void *event, void *stream)
{
    RETURN(cuStreamWaitEvent, stream, event, 0);
}

const char *cuda_event_synchronize(void *event)
{
    RETURN(cuEventSynchronize, event);
}

const char *cuda_event_query(void *event, int *done)
{
    const char *why;
    const struct cuda_driver *cu = cuda_driver(&why);
    CUresult code;

    if (cu == NULL)
        return why;
    code = cu->p_cuEventQuery(event);
    *done = code == CUDA_SUCCESS;
    return code == CUDA_ERROR_NOT_READY ? NULL : name_of(cu, code);
}

int cuda_has_context(void)
{
    const char *why;
    const struct cuda_driver *cu = cuda_driver(&why);
    CUcontext context = NULL;

    return cu != NULL && cu->p_cuCtxGetCurrent(&context) == CUDA_SUCCESS && context != NULL;
}
