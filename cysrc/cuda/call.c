/* SPDX-License-Identifier: MIT */
#include "cuda/call.h"

#include <stdarg.h>
#include <stdio.h>

/* Buffers of several threads may have one executor: what belongs to a call is the thread's. */
static _Thread_local char reason[512];           /* of the newest error                        */
static _Thread_local const struct cuda_executor *untouched;  /* whose call has begun here and
                                                  * launched nothing yet                       */

/* Whether it leaves the context of no use: whatever is called next, that is what it returns. */
static int breaks_context(CUresult code)
{
    switch (code) {
    case CUDA_ERROR_ECC_UNCORRECTABLE:
    case CUDA_ERROR_NVLINK_UNCORRECTABLE:
    case CUDA_ERROR_CONTAINED:
    case CUDA_ERROR_ILLEGAL_ADDRESS:
    case CUDA_ERROR_LAUNCH_TIMEOUT:
    case CUDA_ERROR_ASSERT:
    case CUDA_ERROR_HARDWARE_STACK_ERROR:
    case CUDA_ERROR_ILLEGAL_INSTRUCTION:
    case CUDA_ERROR_MISALIGNED_ADDRESS:
    case CUDA_ERROR_INVALID_ADDRESS_SPACE:
    case CUDA_ERROR_INVALID_PC:
    case CUDA_ERROR_LAUNCH_FAILED:
    case CUDA_ERROR_TENSOR_MEMORY_LEAK:
        return 1;
    default:
        return 0;
    }
}

int cuda_check(struct cuda_executor *e, CUresult code, const char *call)
{
    const char *name = "unknown error", *text = "";

    if (code == CUDA_SUCCESS)
        return EP_OK;
    e->cu->p_cuGetErrorName(code, &name);
    e->cu->p_cuGetErrorString(code, &text);
    if (untouched == e && breaks_context(code))
        snprintf(reason, sizeof reason, "an earlier kernel or copy of the caller on GPU %d"
                 " failed: %s; nothing was launched", e->device, name);
    else
        snprintf(reason, sizeof reason, "%s: %s (%s)", call, name, text);
    return code == CUDA_ERROR_OUT_OF_MEMORY ? EP_ERR_MEMORY : EP_ERR_EXECUTOR;
}

int cuda_refuse(int code, const char *format, ...)
{
    va_list values;

    va_start(values, format);
    vsnprintf(reason, sizeof reason, format, values);
    va_end(values);
    return code;
}

const char *cuda_reason(void)
{
    return reason;
}

CUcontext cuda_current_context(struct cuda_executor *e)
{
    CUcontext context = NULL;

    e->cu->p_cuCtxGetCurrent(&context);
    return context;
}

int cuda_keeping_context(struct cuda_executor *e, CUcontext before, int code)
{
    if (before != e->context)
        e->cu->p_cuCtxSetCurrent(before);
    return code;
}

void cuda_call_begins(const struct cuda_executor *e)
{
    untouched = e;
}

void cuda_call_touches(void)
{
    untouched = NULL;
}

static const char *op_last_error(void *self)
{
    (void)self;
    return reason;
}

void cuda_call_ops(struct ep_executor *table)
{
    table->last_error = op_last_error;
}
