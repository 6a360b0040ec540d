/* SPDX-License-Identifier: MIT
 *
 * What the driver says of its GPUs; no context is made on any of them. */
#ifndef DEEPEP_PTX_CUDA_DEVICE_H
#define DEEPEP_PTX_CUDA_DEVICE_H

#include <stdint.h>

struct cuda_device_facts {
    char name[128];
    int arch;                /* compute capability, 10 * major + minor */
    uint64_t memory;         /* bytes                                  */
};

/* From the kernels of one GPU to the memory of another. */
struct cuda_link_facts {
    int access;              /* whether they can be allowed to use it                  */
    int atomics;             /* whether atomics work there: over NVLink, not over PCIe */
    int rank;                /* the driver's figure for the link's speed               */
};

/* 1000 * major + 10 * minor of the CUDA that the driver supports; 0 without a usable driver. */
int cuda_driver_version(const char **why);

/* GPUs that the driver shows; -1 without a usable driver, with the reason in `why`. */
int cuda_device_count(const char **why);

/* 0, or -1 with the reason in `why` (the name of the driver's error). */
int cuda_describe_device(int device, struct cuda_device_facts *out, const char **why);
int cuda_describe_link(int origin, int peer, struct cuda_link_facts *out, const char **why);

#endif
