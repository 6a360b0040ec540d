/* SPDX-License-Identifier: MIT
 *
 * How operations call the driver: in the executor's context, with the reason of what fails kept for
 * last_error(), and with the caller's context and captures left as they were. */
#ifndef DEEPEP_PTX_CUDA_CALL_H
#define DEEPEP_PTX_CUDA_CALL_H

#include "cuda/state.h"

#define EXECUTOR(self) struct cuda_executor *e = (self)

/* Calls a driver function in this executor's context; returns from the caller on failure. */
#define TRY(call, ...)                                                                           \
    do {                                                                                         \
        int code_ = cuda_check(e, e->cu->p_##call(__VA_ARGS__), #call);                          \
        if (code_ != EP_OK)                                                                      \
            return code_;                                                                        \
    } while (0)

/* The executor's context is current from here on: mostly it is the thread's own. */
#define ENTER()                                                                                  \
    do {                                                                                         \
        if (cuda_current_context(e) != e->context)                                               \
            TRY(cuCtxSetCurrent, e->context);                                                    \
    } while (0)

/* Somebody else's capture shall not forbid what concerns none of its streams. */
#define IN_ANY_CAPTURE(call)                                                                     \
    do {                                                                                         \
        CUstreamCaptureMode mode_ = CU_STREAM_CAPTURE_MODE_RELAXED;                              \
        e->cu->p_cuThreadExchangeStreamCaptureMode(&mode_);                                      \
        int code_ = (call);                                                                      \
        e->cu->p_cuThreadExchangeStreamCaptureMode(&mode_);                                      \
        return code_;                                                                            \
    } while (0)

#define KEEPING_CONTEXT(call)                                                                    \
    do {                                                                                         \
        CUcontext before_ = cuda_current_context(e);                                             \
        IN_ANY_CAPTURE(cuda_keeping_context(e, before_, call));                                  \
    } while (0)

/* The one funnel: every driver call of an operation goes through here. */
int cuda_check(struct cuda_executor *e, CUresult code, const char *call);

/* `code`, with a reason that is not the driver's. */
__attribute__((format(printf, 2, 3)))
int cuda_refuse(int code, const char *format, ...);

/* Of this thread's newest error; valid until the next one. */
const char *cuda_reason(void);

CUcontext cuda_current_context(struct cuda_executor *e);

/* `code`.  Finalisers run in whatever thread drops the last reference: that thread's context,
 * `before`, stays its own. */
int cuda_keeping_context(struct cuda_executor *e, CUcontext before, int code);

/* A kernel that failed breaks the context for good, and shows at the next driver call.  Between
 * these two, from the begin of a call of this thread to its first launch, it was the caller's. */
void cuda_call_begins(const struct cuda_executor *e);
void cuda_call_touches(void);

void cuda_call_ops(struct ep_executor *table);

#endif
