/* SPDX-License-Identifier: MIT */
#include "cuda/module.h"

#include <stdlib.h>

#include "cuda/call.h"
#include "cuda/timing.h"

#define MAX_ATTRIBUTES 2                     /* of a launch */

struct cuda_kernel {
    CUlibrary library;
    CUkernel kernel;
    CUfunction function;
};

static int load_kernel(struct cuda_executor *e, struct cuda_kernel *k, const char *ptx,
                       const char *symbol, uint32_t param_bytes)
{
    size_t offset = 0, bytes = 0;
    int fixed = 0;

    ENTER();
    TRY(cuLibraryLoadData, &k->library, ptx, NULL, NULL, 0, NULL, NULL, 0);
    TRY(cuLibraryGetKernel, &k->kernel, k->library, symbol);
    TRY(cuKernelGetParamInfo, k->kernel, 0, &offset, &bytes);
    if (bytes != param_bytes)
        return cuda_refuse(EP_ERR_EXECUTOR, "%s: the image takes %zu bytes of parameters, params.h"
                           " says %u", symbol, bytes, param_bytes);
    TRY(cuKernelGetFunction, &k->function, k->kernel);
    TRY(cuFuncGetAttribute, &fixed, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, k->function);
    TRY(cuFuncSetAttribute, k->function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
        e->cta_smem - fixed);
    TRY(cuFuncLoad, k->function);    /* a lazy load could wait for a device that spins */
    return EP_OK;
}

int cuda_executor_load(struct cuda_executor *e, const char *ptx, const char *symbol,
                       uint32_t param_bytes, void **kernel)
{
    struct cuda_kernel *k = calloc(1, sizeof *k);
    int code;

    if (k == NULL)
        return cuda_refuse(EP_ERR_MEMORY, "no memory");
    code = load_kernel(e, k, ptx, symbol, param_bytes);
    if (code != EP_OK) {
        cuda_executor_unload(e, k);
        return code;
    }
    *kernel = k;
    return EP_OK;
}

void cuda_executor_unload(struct cuda_executor *e, void *kernel)
{
    struct cuda_kernel *k = kernel;

    if (k->library != NULL)
        e->cu->p_cuLibraryUnload(k->library);
    free(k);
}

/* Returns how many. */
static unsigned attributes_of(const struct ep_launch *launch, CUlaunchAttribute out[MAX_ATTRIBUTES])
{
    unsigned count = 0;

    if (launch->cooperative)
        out[count++] = (CUlaunchAttribute){ .id = CU_LAUNCH_ATTRIBUTE_COOPERATIVE,
                                            .value.cooperative = 1 };
    if (launch->started != NULL)
        out[count++] = (CUlaunchAttribute){ .id = CU_LAUNCH_ATTRIBUTE_LAUNCH_COMPLETION_EVENT,
                                            .value.launchCompletionEvent.event = launch->started };
    return count;
}

static int launch_kernel(struct cuda_executor *e, const struct ep_launch *launch)
{
    const struct cuda_kernel *kernel = launch->kernel;
    void *params[1] = { (void *)(uintptr_t)launch->params };
    CUlaunchAttribute attributes[MAX_ATTRIBUTES];
    CUlaunchConfig config = {
        .gridDimX = launch->grid, .gridDimY = 1, .gridDimZ = 1,
        .blockDimX = launch->block, .blockDimY = 1, .blockDimZ = 1,
        .sharedMemBytes = launch->smem, .hStream = launch->stream,
        .attrs = attributes, .numAttrs = attributes_of(launch, attributes),
    };

    struct cuda_timed_launch *timed = cuda_timing_take(e, launch->kernel);

    ENTER();
    if (timed != NULL)
        TRY(cuEventRecord, timed->begin, launch->stream);
    TRY(cuLaunchKernelEx, &config, kernel->function, params, NULL);
    cuda_call_touches();
    if (timed != NULL)
        TRY(cuEventRecord, timed->end, launch->stream);
    return EP_OK;
}

static int op_launch(void *self, const struct ep_launch *launch)
{
    EXECUTOR(self);
    CUcontext before = cuda_current_context(e);

    return cuda_keeping_context(e, before, launch_kernel(e, launch));
}

static int op_max_resident(void *self, void *handle, uint32_t block, uint32_t smem, uint32_t *ctas)
{
    EXECUTOR(self);
    const struct cuda_kernel *kernel = handle;
    int per_sm = 0, sms = 0;

    ENTER();
    TRY(cuOccupancyMaxActiveBlocksPerMultiprocessor, &per_sm, kernel->function, (int)block, smem);
    TRY(cuDeviceGetAttribute, &sms, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, e->device);
    *ctas = (uint32_t)(per_sm * sms);
    return EP_OK;
}

void cuda_module_ops(struct ep_executor *table)
{
    table->launch = op_launch;
    table->max_resident = op_max_resident;
}
