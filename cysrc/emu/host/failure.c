/* SPDX-License-Identifier: MIT */
#include "emu/host/failure.h"

#include <stdarg.h>
#include <stdio.h>

/* A rank's buffers may be used by several threads: an error is the thread's. */
static _Thread_local const char *error = "";
static _Thread_local char error_text[ERROR_BYTES];

__attribute__((format(printf, 4, 5)))
int host_error(struct host_world *h, uint32_t rank, int code, const char *format, ...)
{
    va_list args;

    (void)h, (void)rank;
    va_start(args, format);
    vsnprintf(error_text, sizeof error_text, format, args);
    va_end(args);
    error = error_text;
    return code;
}

int host_report_error(struct host_world *h, int code)
{
    error = h->report;
    return code;
}

void host_hear(void *self, const struct emu_finding *finding)
{
    struct host_world *h = self;

    emu_report(&h->fault, finding);
}

void host_fail(struct host_world *h, enum host_failure failure, int rank)
{
    if (h->failure != HOST_OK)
        return;
    h->failure = failure;
    h->failed_rank = rank;
}

/* A fault is charged to its own rank while that one can still hear of it, else to the first that
 * waits. */
void host_fail_by_fault(struct host_world *h)
{
    int rank = h->fault.rank;

    if (rank < 0 || h->ranks[rank].state != RANK_WAITING) {
        for (uint32_t i = 0; i < h->num_ranks; i++)
            if (h->ranks[i].state == RANK_WAITING) {
                rank = (int)i;
                break;
            }
    }
    if (h->failure == HOST_OK)
        host_describe(h, h->report, sizeof h->report);
    host_fail(h, HOST_FAULT, rank);
}

int host_failure_code(struct host_world *h, uint32_t rank)
{
    if (h->failure == HOST_OK)
        return EP_OK;
    if (h->failed_rank == (int)rank) {
        if (h->failure == HOST_FAULT) {
            error = h->fault.text;
            return EP_ERR_EXECUTOR;
        }
        if (h->failure == HOST_LAUNCH_FAILED)
            return host_report_error(h, EP_ERR_EXECUTOR);
    }
    if (h->failed_rank == NOBODY)
        return host_error(h, rank, EP_ERR_ABORTED, "the run was stopped");
    return host_error(h, rank, EP_ERR_ABORTED, "rank %d failed and this rank was stopped",
                      h->failed_rank);
}

int host_emu_error(struct host_world *h, uint32_t rank, int result, const char *what)
{
    switch (result) {
    case EMU_ERR_MEMORY:
        return host_error(h, rank, EP_ERR_MEMORY, "%s: no memory", what);
    case EMU_ERR_ADDRESS:
        return host_error(h, rank, EP_ERR_ARGUMENT, "%s: not an address range mapped on rank %u",
                          what, rank);
    case EMU_ERR_ARGUMENT:
        return host_error(h, rank, EP_ERR_ARGUMENT, "%s: does not fit the kernel or the device",
                          what);
    default:
        if (h->failure == HOST_OK && emu_faulted(h->world))
            host_fail_by_fault(h);
        return h->failure != HOST_OK ? host_failure_code(h, rank)
                                     : host_error(h, rank, EP_ERR_EXECUTOR, "%s: failed", what);
    }
}

int host_refuse(struct host_world *h, uint32_t rank, const char *text)
{
    int code;

    lock(h);
    code = host_error(h, rank, EP_ERR_ARGUMENT, "%s", text);
    unlock(h);
    return code;
}

const char *host_last_error(void)
{
    return error;
}

enum host_failure host_failure(struct host_world *h, int *rank)
{
    enum host_failure failure;

    lock(h);
    failure = h->failure;
    *rank = h->failed_rank;
    unlock(h);
    return failure;
}

const struct emu_fault *host_fault(struct host_world *h)
{
    const struct emu_fault *fault;

    lock(h);
    fault = emu_faulted(h->world) ? &h->fault : NULL;
    unlock(h);
    return fault;
}

void host_describe(const struct host_world *h, char *buf, size_t size)
{
    size_t used = 0;

    if (size > 0)
        buf[0] = '\0';
    for (uint32_t i = 0; i < h->num_ranks && used < size; i++) {
        const struct rank *r = &h->ranks[i];
        const char *join = i ? "; " : "";
        int n;

        switch (r->state) {
        case RANK_WAITING:
            n = snprintf(buf + used, size - used, "%srank %u waits in %s", join, i, r->wait->what);
            break;
        case RANK_DONE:
            n = snprintf(buf + used, size - used, "%srank %u has returned", join, i);
            break;
        case RANK_RUNNING:
            n = snprintf(buf + used, size - used, "%srank %u runs", join, i);
            break;
        case RANK_READY:
            n = snprintf(buf + used, size - used, "%srank %u has not started", join, i);
            break;
        default:
            n = snprintf(buf + used, size - used, "%srank %u has no thread", join, i);
            break;
        }
        used += (size_t)n;
    }
}

const char *host_report(struct host_world *h)
{
    return h->report;
}

