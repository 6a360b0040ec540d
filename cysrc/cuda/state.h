/* SPDX-License-Identifier: MIT
 *
 * What one executor has; for the files of this folder alone. */
#ifndef DEEPEP_PTX_CUDA_STATE_H
#define DEEPEP_PTX_CUDA_STATE_H

#include <pthread.h>

#include "deepep_ptx/executor.h"
#include "cuda/driver.h"

/* A peer process's allocation that is open here. */
struct cuda_opened {
    uint64_t address;        /* as import_memory gave it                                       */
    CUdeviceptr base;
};

struct cuda_timed_launch {
    void *kernel;
    CUevent begin, end;
};

struct cuda_executor {
    struct ep_executor table;
    const struct cuda_driver *cu;
    CUdevice device;
    CUcontext context;
    CUmemoryPool pool;       /* of its own: in a shared one a stream may wait for another rank's */
    int arch;
    int cta_smem;            /* bytes of shared memory that a CTA can have                     */
    int stopped;             /* atomic: the next host wait, or the one that runs, ends at once  */
    char name[128];
    pthread_mutex_t lock;    /* guards all below; no driver call is made with it held           */
    CUevent *idle;           /* events that are nobody's, to be given out again                  */
    uint32_t num_idle, max_idle;
    struct cuda_opened *opened;
    uint32_t num_opened;
    struct cuda_timed_launch *timed;     /* NULL: launches are not timed                       */
    uint32_t num_timed, max_timed;
};

#endif
