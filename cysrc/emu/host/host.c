/* SPDX-License-Identifier: MIT
 *
 * Rank threads, waits and failures of one emulated world; see host.h. */
#include "emu/host/state.h"

#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define YIELD_NS 1000u

/* A rank's buffers may be used by several threads: an error is the thread's. */
static _Thread_local const char *error = "";
static _Thread_local char error_text[ERROR_BYTES];

/* Between two steps: lets in whoever waits for the lock. */
static void let_in(struct host_world *h)
{
    if (!__atomic_load_n(&h->wanted, __ATOMIC_RELAXED))
        return;
    pthread_mutex_unlock(&h->lock);
    while (__atomic_load_n(&h->wanted, __ATOMIC_RELAXED))
        sched_yield();
    pthread_mutex_lock(&h->lock);
}

/* -- errors ----------------------------------------------------------------------------------- */

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

static void describe(const struct host_world *h, char *buf, size_t size);

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
    const struct emu_fault *fault = emu_world_fault(h->world);
    int rank = fault->rank;

    if (rank < 0 || h->ranks[rank].state != RANK_WAITING) {
        for (uint32_t i = 0; i < h->num_ranks; i++)
            if (h->ranks[i].state == RANK_WAITING) {
                rank = (int)i;
                break;
            }
    }
    if (h->failure == HOST_OK)
        describe(h, h->report, sizeof h->report);
    host_fail(h, HOST_FAULT, rank);
}

int host_failure_code(struct host_world *h, uint32_t rank)
{
    if (h->failure == HOST_OK)
        return EP_OK;
    if (h->failed_rank == (int)rank) {
        if (h->failure == HOST_FAULT) {
            error = emu_world_fault(h->world)->text;
            return EP_ERR_EXECUTOR;
        }
        if (h->failure == HOST_LAUNCH_FAILED) {
            error = h->report;
            return EP_ERR_EXECUTOR;
        }
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
        if (h->failure == HOST_OK && emu_world_fault(h->world))
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
    fault = emu_world_fault(h->world);
    unlock(h);
    return fault;
}

static void describe(const struct host_world *h, char *buf, size_t size)
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

/* -- the baton -------------------------------------------------------------------------------- */

static int condition_holds(const struct host_world *h, const struct wait *w)
{
    switch (w->kind) {
    case WAIT_WORD:
        return __atomic_load_n(w->word, __ATOMIC_ACQUIRE) == w->want;
    case WAIT_MARK:
        return w->mark->passed;
    default:
        return h->round != w->round;
    }
}

static int wait_is_over(const struct host_world *h, const struct wait *w)
{
    return h->failure != HOST_OK || w->deadlocked || condition_holds(h, w) ||
           emu_now(h->world) >= w->deadline;
}

/* The first rank after `rank` that can go on, itself last; NOBODY if none can.  A rank that another
 * one gave the baton to because of this goes on: nothing has happened in between. */
static int next_runnable(const struct host_world *h, uint32_t rank)
{
    for (uint32_t i = 1; i <= h->num_ranks; i++) {
        uint32_t other = (rank + i) % h->num_ranks;
        const struct rank *r = &h->ranks[other];

        if (r->state == RANK_READY ||
            (r->state == RANK_WAITING && wait_is_over(h, r->wait)))
            return (int)other;
    }
    return NOBODY;
}

static void give_baton(struct host_world *h, int rank)
{
    h->holder = rank;
    if (rank != NOBODY)
        pthread_cond_signal(&h->ranks[rank].turn);
}

/* The world has nothing to do until something outside of it happens. */
static void jump(struct host_world *h, int stalled)
{
    uint64_t to = stalled ? emu_next_deadline(h->world) : EP_FOREVER;
    int yields = 0, waits = 0;

    for (uint32_t i = 0; i < h->num_ranks; i++) {
        const struct rank *r = &h->ranks[i];

        if (r->state != RANK_WAITING)
            continue;
        waits++;
        yields += r->wait->kind == WAIT_YIELD;
        if (r->wait->deadline < to)
            to = r->wait->deadline;
    }
    if (yields) {
        uint64_t soon = emu_now(h->world) + YIELD_NS;

        to = soon < to ? soon : to;
    }
    if (to != EP_FOREVER) {
        if (to > emu_now(h->world))
            emu_advance(h->world, to);
    } else if (stalled) {
        emu_stall(h->world);
        host_fail_by_fault(h);
    } else if (waits) {
        size_t used = (size_t)snprintf(h->report, sizeof h->report, "no rank can go on: ");

        describe(h, h->report + used, sizeof h->report - used);
        for (uint32_t i = 0; i < h->num_ranks; i++)
            if (h->ranks[i].state == RANK_WAITING)
                h->ranks[i].wait->deadlocked = 1;
    }
}

/* One step of the world and of the streams.  Returns what the world was found to be. */
static enum emu_progress progress(struct host_world *h)
{
    enum emu_progress found;

    h->round++;
    if (h->touched) {
        h->touched = 0;
        emu_touch(h->world);
    }
    found = emu_step(h->world);
    if (found == EMU_FAULTED) {
        host_fail_by_fault(h);
        return found;
    }
    return host_pump(h) ? EMU_RUNNING : found;
}

static int outcome(struct host_world *h, uint32_t rank, const struct wait *w, uint64_t since)
{
    int code = host_failure_code(h, rank), used;

    if (code != EP_OK || condition_holds(h, w))
        return code;
    if (w->deadlocked) {
        error = h->report;
        return EP_ERR_EXECUTOR;
    }
    used = snprintf(error_text, sizeof error_text,
                    "%s: not over after %.9g s of virtual time: ", w->what,
                    1e-9 * (double)(emu_now(h->world) - since));
    describe(h, error_text + used, sizeof error_text - (size_t)used);
    error = error_text;
    return EP_ERR_TIMEOUT;
}

/* Without started ranks (RANK_ABSENT, RANK_DONE) the caller takes a free baton while it waits. */
static int may_wait(const struct host_world *h, uint32_t rank)
{
    switch (h->ranks[rank].state) {
    case RANK_RUNNING:
        return h->holder == (int)rank;
    case RANK_ABSENT:
    case RANK_DONE:
        return h->holder == NOBODY;
    default:
        return 0;
    }
}

int host_wait(struct host_world *h, uint32_t rank, struct wait *w, uint64_t timeout_ns)
{
    struct rank *me = &h->ranks[rank];
    enum rank_state before;
    uint64_t since;
    int code;

    while (me->wait != NULL)                    /* of another thread of the rank */
        pthread_cond_wait(&me->waited, &h->lock);
    before = me->state;
    since = emu_now(h->world);
    code = host_failure_code(h, rank);
    if (code != EP_OK)
        return code;
    if (!may_wait(h, rank))
        return host_error(h, rank, EP_ERR_ARGUMENT,
                          "%s: rank %u waits in another thread, or another rank of its world runs",
                          w->what, rank);
    if (timeout_ns == EP_FOREVER)
        timeout_ns = h->wait_limit_ns;
    w->deadline = timeout_ns < EP_FOREVER - since ? since + timeout_ns : EP_FOREVER;
    w->round = h->round;
    h->holder = (int)rank;
    h->touched = 1;
    me->state = RANK_WAITING;
    me->wait = w;
    for (int stepped = 0;;) {
        enum emu_progress found;
        int next;

        /* After a step, ranks go on from rank 0; else this one, then those after it. */
        if (!stepped && wait_is_over(h, w))
            break;
        next = next_runnable(h, stepped ? h->num_ranks - 1 : rank);
        if (next == (int)rank)
            break;
        if (next != NOBODY) {
            give_baton(h, next);
            while (h->holder != (int)rank)
                pthread_cond_wait(&me->turn, &h->lock);
            stepped = 0;
            continue;
        }
        found = progress(h);
        if (found == EMU_IDLE || found == EMU_STALLED)
            jump(h, found == EMU_STALLED);
        let_in(h);
        stepped = 1;
    }
    code = outcome(h, rank, w, since);
    me->state = before;
    me->wait = NULL;
    pthread_cond_broadcast(&me->waited);
    if (before != RANK_RUNNING)
        h->holder = NOBODY;
    return code;
}

int host_wait_word(struct host_world *h, uint32_t rank, const uint64_t *word, uint64_t want,
                   uint64_t timeout_ns, const char *what)
{
    struct wait w = { .kind = WAIT_WORD, .what = what, .word = word, .want = want };
    int code;

    lock(h);
    code = host_wait(h, rank, &w, timeout_ns);
    unlock(h);
    return code;
}

int host_yield(struct host_world *h, uint32_t rank)
{
    struct wait w = { .kind = WAIT_YIELD, .what = "yield" };
    int code;

    lock(h);
    code = host_wait(h, rank, &w, EP_FOREVER);
    unlock(h);
    return code;
}

void host_start(struct host_world *h)
{
    lock(h);
    for (uint32_t i = 0; i < h->num_ranks; i++)
        h->ranks[i].state = RANK_READY;
    h->holder = 0;
    unlock(h);
}

int host_enter(struct host_world *h, uint32_t rank)
{
    int code;

    lock(h);
    while (h->holder != (int)rank)
        pthread_cond_wait(&h->ranks[rank].turn, &h->lock);
    h->ranks[rank].state = RANK_RUNNING;
    code = host_failure_code(h, rank);
    unlock(h);
    return code;
}

void host_leave(struct host_world *h, uint32_t rank, int failed)
{
    lock(h);
    h->ranks[rank].state = RANK_DONE;
    if (failed)
        host_fail(h, HOST_RANK_FAILED, (int)rank);
    if (h->holder == (int)rank) {
        int next = next_runnable(h, rank);

        /* Nobody can go on: somebody who waits has to step the world. */
        for (uint32_t i = 0; i < h->num_ranks && next == NOBODY; i++)
            if (h->ranks[i].state == RANK_WAITING)
                next = (int)i;
        give_baton(h, next);
    }
    unlock(h);
}

void host_abort(struct host_world *h)
{
    lock(h);
    host_fail(h, HOST_STOPPED, NOBODY);
    unlock(h);
}

int host_holder(struct host_world *h)
{
    int rank;

    lock(h);
    rank = h->holder;
    unlock(h);
    return rank;
}

static enum host_run run_round(struct host_world *h, uint64_t until)
{
    enum emu_progress found;
    uint64_t to;

    if (h->failure != HOST_OK)
        return HOST_RUN_FAILED;
    if (!h->active)
        return HOST_RUN_IDLE;
    if (emu_now(h->world) >= until)
        return HOST_RUN_LIMIT;
    found = progress(h);
    if (found == EMU_STALLED) {
        to = emu_next_deadline(h->world);
        to = to < until ? to : until;
        if (to == EP_FOREVER) {
            emu_stall(h->world);
            host_fail_by_fault(h);
        } else if (to > emu_now(h->world)) {
            emu_advance(h->world, to);
        }
    }
    return h->failure != HOST_OK ? HOST_RUN_FAILED : HOST_RUN_MORE;
}

enum host_run host_run(struct host_world *h, uint64_t until, uint32_t rounds, int touched)
{
    enum host_run result = HOST_RUN_MORE;

    lock(h);
    h->touched |= touched;
    for (uint32_t i = 0; i < rounds && result == HOST_RUN_MORE; i++)
        result = run_round(h, until);
    unlock(h);
    return result;
}

/* -- kernels, results, life ------------------------------------------------------------------- */

struct host_kernel *host_kernel_load(struct host_world *h, const struct emu_kernel_image *image)
{
    struct host_kernel *kernel = calloc(1, sizeof *kernel);

    if (!kernel)
        return NULL;
    lock(h);
    kernel->kernel = emu_kernel_load(h->world, image);
    if (kernel->kernel) {
        kernel->param_bytes = image->param_bytes;
        snprintf(kernel->symbol, sizeof kernel->symbol, "%s", image->symbol);
        kernel->next = h->kernels;
        h->kernels = kernel;
    } else {
        free(kernel);
        kernel = NULL;
    }
    unlock(h);
    return kernel;
}

void host_kernel_ran(struct host_world *h, const struct host_kernel *kernel, uint8_t *ran)
{
    uint32_t num_insns;
    const bool *from;

    lock(h);
    from = emu_kernel_ran(kernel->kernel, &num_insns);
    for (uint32_t i = 0; i < num_insns; i++)
        ran[i] = from[i];
    unlock(h);
}

int host_max_resident(struct host_world *h, uint32_t rank, const struct host_kernel *kernel,
                      uint32_t block, uint32_t smem, uint32_t *ctas)
{
    int code = EP_OK, result;

    lock(h);
    result = emu_max_resident(h->world, kernel->kernel, block, smem, ctas);
    if (result != EMU_OK)
        code = host_emu_error(h, rank, result, kernel->symbol);
    unlock(h);
    return code;
}

uint64_t host_world_id(const struct host_world *h)
{
    return h->id;
}

uint64_t host_now(struct host_world *h)
{
    uint64_t now;

    lock(h);
    now = emu_now(h->world);
    unlock(h);
    return now;
}

void host_counters(struct host_world *h, uint32_t rank, struct emu_counters *out)
{
    lock(h);
    emu_rank_counters(h->world, rank, out);
    unlock(h);
}

struct host_world *host_create(const struct emu_options *options, uint64_t wait_limit_ns)
{
    static uint32_t worlds;
    struct host_world *h = calloc(1, sizeof *h);

    if (!h)
        return NULL;
    h->id = (uint64_t)getpid() << 32 | __atomic_add_fetch(&worlds, 1, __ATOMIC_RELAXED);
    pthread_mutex_init(&h->lock, NULL);
    h->wait_limit_ns = wait_limit_ns;
    h->holder = NOBODY;
    h->failed_rank = NOBODY;
    h->ranks = calloc(options->num_ranks, sizeof *h->ranks);
    h->world = emu_world_create(options);
    if (!h->ranks || !h->world)
        goto failed;
    for (uint32_t i = 0; i < options->num_ranks; i++) {
        pthread_cond_init(&h->ranks[i].turn, NULL);
        pthread_cond_init(&h->ranks[i].waited, NULL);
        h->num_ranks++;
        h->ranks[i].stream0 = host_stream_new(h, i);
        if (!h->ranks[i].stream0)
            goto failed;
    }
    return h;
failed:
    host_destroy(h);
    return NULL;
}

void host_destroy(struct host_world *h)
{
    struct host_kernel *kernel = h->kernels;

    if (h->world)
        emu_world_destroy(h->world);         /* with the grids that still run, and the kernels */
    while (kernel) {
        struct host_kernel *next = kernel->next;

        free(kernel);
        kernel = next;
    }
    for (uint32_t i = 0; i < h->num_ranks; i++) {
        host_free_events(&h->ranks[i]);
        host_free_streams(h, &h->ranks[i]);
        host_free_graphs(h, &h->ranks[i]);
        host_free_segments(&h->ranks[i]);
        pthread_cond_destroy(&h->ranks[i].turn);
        pthread_cond_destroy(&h->ranks[i].waited);
    }
    host_release(h->gone);
    free(h->ranks);
    pthread_mutex_destroy(&h->lock);
    free(h);
}
