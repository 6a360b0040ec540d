/* SPDX-License-Identifier: MIT */
#include "cuda/context.h"

#include <string.h>

#include "cuda/call.h"

int cuda_context_open(struct cuda_executor *e, int device)
{
    int major = 0, minor = 0;

    TRY(cuDeviceGet, &e->device, device);
    TRY(cuDeviceGetName, e->name, sizeof e->name, e->device);
    TRY(cuDeviceGetAttribute, &major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, e->device);
    TRY(cuDeviceGetAttribute, &minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, e->device);
    e->arch = 10 * major + minor;
    TRY(cuDeviceGetAttribute, &e->cta_smem, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
        e->device);
    TRY(cuDevicePrimaryCtxRetain, &e->context, e->device);
    return EP_OK;
}

void cuda_context_close(struct cuda_executor *e)
{
    e->cu->p_cuDevicePrimaryCtxRelease(e->device);
}

int cuda_executor_arch(const struct cuda_executor *e)
{
    return e->arch;
}

uint32_t cuda_executor_cta_smem(const struct cuda_executor *e)
{
    return (uint32_t)e->cta_smem;
}

const char *cuda_executor_device_name(const struct cuda_executor *e)
{
    return e->name;
}

int cuda_executor_uuid(struct cuda_executor *e, void *uuid)
{
    CUuuid id;

    TRY(cuDeviceGetUuid, &id, e->device);
    memcpy(uuid, &id, sizeof id);
    return EP_OK;
}

int cuda_executor_device_of(struct cuda_executor *e, ep_dptr_t address)
{
    int type = 0, ordinal = -1;

    if (e->cu->p_cuCtxSetCurrent(e->context) != CUDA_SUCCESS)
        return -1;
    if (e->cu->p_cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, address)
            != CUDA_SUCCESS || type != CU_MEMORYTYPE_DEVICE)
        return -1;
    if (e->cu->p_cuPointerGetAttribute(&ordinal, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, address)
            != CUDA_SUCCESS)
        return -1;
    return ordinal;
}

int cuda_executor_enable_peer(struct cuda_executor *e, const struct cuda_executor *peer)
{
    CUresult code;
    int can = 0;

    if (e->device == peer->device)
        return EP_OK;
    ENTER();
    TRY(cuDeviceCanAccessPeer, &can, e->device, peer->device);
    if (!can)
        return cuda_refuse(EP_ERR_EXECUTOR, "GPU %d (%s) cannot access the memory of GPU %d (%s)",
                           e->device, e->name, peer->device, peer->name);
    code = e->cu->p_cuCtxEnablePeerAccess(peer->context, 0);
    if (code == CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED)
        return EP_OK;
    return cuda_check(e, code, "cuCtxEnablePeerAccess");
}
