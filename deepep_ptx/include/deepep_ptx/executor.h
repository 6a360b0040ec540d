/* SPDX-License-Identifier: MIT
 *
 * What the core needs of a machine: one table of functions, filled by the CPU executor
 * (cysrc/emu) and by the CUDA driver.  One table serves one rank, whose buffers may be used by
 * several threads.  Every function returns EP_OK or an EP_ERR_* code and leaves the reason in
 * last_error(), the thread's own. */
#ifndef DEEPEP_PTX_EXECUTOR_H
#define DEEPEP_PTX_EXECUTOR_H

#include <stdint.h>
#include "deepep_ptx/params.h"

#define EP_HANDLE_BYTES 128

enum ep_result {
    EP_OK = 0,
    EP_ERR_ARGUMENT,         /* the caller's fault; nothing was launched                       */
    EP_ERR_MEMORY,           /* no memory                                                      */
    EP_ERR_EXECUTOR,         /* the driver or the CPU executor failed; see last_error()         */
    EP_ERR_ABORTED,          /* another rank of this process failed: this one is told to stop  */
    EP_ERR_TIMEOUT,          /* a host wait reached its limit                                  */
    EP_ERR_STATUS,           /* the device wrote a status record: see ep_buffer_status()        */
    EP_ERR_CAPACITY,         /* the arena has no free extent of that size                      */
    EP_ERR_DESTROYED,
    EP_ERR_INTERRUPTED,      /* the user ended a host wait; see interrupted()                   */
    EP_ERR_CAPTURED,         /* a stream that has to be waited for is being captured           */
    EP_ERR_CALLER,           /* a function that the caller gave has failed, or lied             */
    EP_ERR_PEER              /* another rank has failed, or does something else: see symmetric.h */
};

struct ep_launch {
    void       *kernel;      /* handle the executor gave for the loaded symbol                 */
    const void *params;      /* parameter block, copied before launch() returns                */
    uint32_t    param_bytes;
    uint32_t    grid;        /* CTAs                                                           */
    uint32_t    block;       /* threads of a CTA                                               */
    uint32_t    smem;        /* bytes of dynamic shared memory                                 */
    uint32_t    cooperative; /* 1: no CTA starts before there is room for all                  */
    void       *stream;
    void       *started;     /* NULL, or an event that it records: when all CTAs have begun, or later */
};

struct ep_executor {
    void *self;
    uint64_t device;         /* of those that this process uses                                */

    /* Device memory of this rank.  `name` appears in error reports.  free() is stream-ordered. */
    int (*alloc)(void *self, uint64_t bytes, const char *name, ep_dptr_t *out);
    int (*free)(void *self, ep_dptr_t ptr, void *stream);

    /* Host memory that the device can read and write. */
    int (*host_alloc)(void *self, uint64_t bytes, const char *name, void **host, ep_dptr_t *out);
    int (*host_free)(void *self, void *host);

    /* copy_in: src may be reused on return.  copy_out: dst is complete on return. */
    int (*copy_in)(void *self, ep_dptr_t dst, const void *src, uint64_t bytes, void *stream);
    int (*copy_out)(void *self, void *dst, ep_dptr_t src, uint64_t bytes, void *stream);
    int (*fill)(void *self, ep_dptr_t dst, uint8_t value, uint64_t bytes, void *stream);

    /* Peers: a handle of EP_HANDLE_BYTES travels through the group.  Importing one's own
     * handle gives one's own address. */
    int (*export_memory)(void *self, ep_dptr_t ptr, void *handle);
    int (*import_memory)(void *self, const void *handle, ep_dptr_t *out);
    int (*release_memory)(void *self, ep_dptr_t imported);

    int (*stream_create)(void *self, void **out);
    int (*stream_destroy)(void *self, void *stream);
    /* EP_ERR_CAPTURED, and nothing is broken, while the stream is captured. */
    int (*stream_synchronize)(void *self, void *stream);
    /* What is queued on `waiter` from now on runs after all that is queued on `waited` now.  NULL
     * is the default stream; either may be a stream of the caller's, or both the same. */
    int (*stream_wait)(void *self, void *waiter, void *waited);

    /* Events: points in the work of streams.  Any thread may destroy one, also while streams still
     * wait for it: they wait for what had been recorded when they were told to. */
    int (*event_create)(void *self, void **out);
    int (*event_destroy)(void *self, void *event);
    int (*event_record)(void *self, void *event, void *stream);
    int (*event_wait)(void *self, void *stream, void *event);
    int (*event_synchronize)(void *self, void *event);
    int (*event_query)(void *self, void *event, int *done);

    /* Graphs.  *graph: what is being captured on `stream`, NULL where nothing is.  While a stream is
     * captured nothing that is queued on it runs, and waits for it are errors. */
    int (*capture)(void *self, void *stream, void **graph);
    /* The same of a caller's stream, where a call begins: until its first launch a device that fails
     * is the caller's doing, and shall not look like ours. */
    int (*look)(void *self, void *stream, void **graph);
    /* release(what), from any thread and without a call of the executor, once `graph` and all that
     * was made of it are gone. */
    int (*graph_keep)(void *self, void *graph, void *what, void (*release)(void *what));

    int (*launch)(void *self, const struct ep_launch *launch);

    /* Wait until *word == want, which a kernel on `stream` writes, without the GIL; EP_ERR_TIMEOUT
     * after timeout_ns of the executor's time. */
    int (*wait_word)(void *self, void *stream, const uint64_t *word, uint64_t want,
                     uint64_t timeout_ns);

    /* NULL = nobody: told of pinned memory that kernels have written and the host is about to read,
     * behind the wait that orders the two. */
    void (*will_read)(void *self, const void *host, uint64_t bytes);

    /* NULL = nobody: asked now and then by host waits, whether to give up
     * with EP_ERR_INTERRUPTED. */
    int (*interrupted)(void);

    /* CTAs of `kernel` that one device runs at the same time. */
    int (*max_resident)(void *self, void *kernel, uint32_t block, uint32_t smem, uint32_t *ctas);

    const char *(*last_error)(void *self);
};

#endif
