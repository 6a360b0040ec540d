/* SPDX-License-Identifier: MIT
 *
 * The CUDA driver, found at run time: libcuda by dlopen, its functions by cuGetProcAddress.
 * Nothing here links against CUDA; a machine without a driver gets a reason instead. */
#ifndef DEEPEP_PTX_CUDA_DRIVER_H
#define DEEPEP_PTX_CUDA_DRIVER_H

#include <cuda.h>

#define CUDA_MIN_DRIVER 12040        /* CUDA 12.4: cuKernelGetParamInfo, cuFuncLoad */

/* Every function in use.  The names are those of cuda.h, whose macros choose the version. */
#define CUDA_FUNCTIONS(F)                                                                        \
    F(cuInit) F(cuDriverGetVersion) F(cuGetErrorName) F(cuGetErrorString)                        \
    F(cuDeviceGet) F(cuDeviceGetCount) F(cuDeviceGetName) F(cuDeviceGetAttribute)                \
    F(cuDeviceGetUuid) F(cuDeviceCanAccessPeer)                                                  \
    F(cuDeviceTotalMem) F(cuDeviceGetP2PAttribute)                                               \
    F(cuDevicePrimaryCtxRetain) F(cuDevicePrimaryCtxRelease)                                     \
    F(cuCtxGetCurrent) F(cuCtxSetCurrent) F(cuCtxEnablePeerAccess)                               \
    F(cuMemAlloc) F(cuMemFree) F(cuMemPoolCreate) F(cuMemPoolDestroy)                            \
    F(cuMemPoolSetAttribute)                                                                     \
    F(cuMemAllocFromPoolAsync) F(cuMemFreeAsync)                                                 \
    F(cuMemHostAlloc) F(cuMemFreeHost) F(cuMemHostGetDevicePointer)                              \
    F(cuMemcpyAsync) F(cuMemcpyHtoDAsync) F(cuMemcpyDtoHAsync) F(cuMemsetD8Async)                \
    F(cuMemGetAddressRange) F(cuPointerGetAttribute)                                             \
    F(cuIpcGetMemHandle) F(cuIpcOpenMemHandle) F(cuIpcCloseMemHandle)                            \
    F(cuStreamCreateWithPriority) F(cuStreamDestroy) F(cuStreamSynchronize) F(cuStreamQuery)     \
    F(cuCtxGetStreamPriorityRange) F(cuEventCreate) F(cuEventDestroy) F(cuEventRecord)           \
    F(cuEventSynchronize) F(cuEventQuery) F(cuEventElapsedTime) F(cuStreamWaitEvent)             \
    F(cuStreamGetCaptureInfo) F(cuThreadExchangeStreamCaptureMode)                               \
    F(cuUserObjectCreate) F(cuGraphRetainUserObject)                                             \
    F(cuLibraryLoadData) F(cuLibraryUnload) F(cuLibraryGetKernel) F(cuKernelGetFunction)         \
    F(cuKernelGetParamInfo) F(cuFuncLoad) F(cuFuncGetAttribute) F(cuFuncSetAttribute)            \
    F(cuLaunchKernelEx)                                                                          \
    F(cuOccupancyMaxActiveBlocksPerMultiprocessor)

struct cuda_driver {
#define F(name) __typeof__(&name) p_##name;
    CUDA_FUNCTIONS(F)
#undef F
    int version;                     /* 1000 * major + 10 * minor of the CUDA it supports */
};

/* The driver, loaded on first use; NULL where there is none, with the reason in `why`. */
const struct cuda_driver *cuda_driver(const char **why);

#endif
