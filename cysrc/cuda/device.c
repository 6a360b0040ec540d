/* SPDX-License-Identifier: MIT */
#include "cuda/device.h"

#include "cuda/driver.h"

/* Calls a driver function; returns from the caller on failure. */
#define TRY(call, ...)                                                                           \
    do {                                                                                         \
        CUresult code_ = cu->p_##call(__VA_ARGS__);                                              \
        if (code_ != CUDA_SUCCESS) {                                                             \
            *why = "unknown error";                                                              \
            cu->p_cuGetErrorName(code_, why);                                                    \
            return -1;                                                                           \
        }                                                                                        \
    } while (0)

int cuda_driver_version(const char **why)
{
    const struct cuda_driver *cu = cuda_driver(why);

    return cu == NULL ? 0 : cu->version;
}

int cuda_describe_device(int device, struct cuda_device_facts *out, const char **why)
{
    const struct cuda_driver *cu = cuda_driver(why);
    CUdevice handle;
    int major = 0, minor = 0;
    size_t bytes = 0;

    if (cu == NULL)
        return -1;
    TRY(cuDeviceGet, &handle, device);
    TRY(cuDeviceGetName, out->name, sizeof out->name, handle);
    TRY(cuDeviceGetAttribute, &major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, handle);
    TRY(cuDeviceGetAttribute, &minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, handle);
    TRY(cuDeviceTotalMem, &bytes, handle);
    out->arch = 10 * major + minor;
    out->memory = bytes;
    return 0;
}

int cuda_describe_link(int origin, int peer, struct cuda_link_facts *out, const char **why)
{
    const struct cuda_driver *cu = cuda_driver(why);
    CUdevice from, to;

    if (cu == NULL)
        return -1;
    TRY(cuDeviceGet, &from, origin);
    TRY(cuDeviceGet, &to, peer);
    TRY(cuDeviceCanAccessPeer, &out->access, from, to);
    TRY(cuDeviceGetP2PAttribute, &out->atomics, CU_DEVICE_P2P_ATTRIBUTE_NATIVE_ATOMIC_SUPPORTED,
        from, to);
    TRY(cuDeviceGetP2PAttribute, &out->rank, CU_DEVICE_P2P_ATTRIBUTE_PERFORMANCE_RANK, from, to);
    return 0;
}

int cuda_device_count(const char **why)
{
    const struct cuda_driver *cu = cuda_driver(why);
    int count = 0;

    if (cu == NULL)
        return -1;
    if (cu->p_cuDeviceGetCount(&count) != CUDA_SUCCESS) {
        *why = "cuDeviceGetCount failed";
        return -1;
    }
    return count;
}
