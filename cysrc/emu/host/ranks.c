/* SPDX-License-Identifier: MIT
 *
 * Rank threads and waits of one emulated world; see host.h. */
#include "emu/host/ranks.h"
#include "emu/host/failure.h"
#include "emu/host/memory.h"
#include "emu/host/pump.h"

#include <sched.h>
#include <stdio.h>

#define YIELD_NS 1000u

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

        host_describe(h, h->report + used, sizeof h->report - used);
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

/* What the rank's host thread has waited for comes before what it does next.  A word that kernels
 * do not see is one of a collective: who waits there has given what it had come after. */
static void learn(struct host_world *h, uint32_t rank, const struct wait *w)
{
    struct race_order *order = host_order(h, rank);
    ep_dptr_t va;

    if (!h->races)
        return;
    if (w->kind == WAIT_MARK) {
        race_order_after(h->races, order, w->mark->after);
    } else if (w->kind == WAIT_WORD && host_pinned_address(h, rank, w->word, &va)) {
        race_act_for(h->races, order);
        emu_host_reads(h->world, rank, va, sizeof *w->word, true);
    } else if (w->kind == WAIT_WORD) {
        race_order_after(h->races, order, h->met);
    }
}

static int outcome(struct host_world *h, uint32_t rank, const struct wait *w, uint64_t since)
{
    int code = host_failure_code(h, rank);
    char ranks[ERROR_BYTES];

    if (code != EP_OK)
        return code;
    if (condition_holds(h, w)) {
        learn(h, rank, w);
        return EP_OK;
    }
    if (w->deadlocked)
        return host_report_error(h, EP_ERR_EXECUTOR);
    host_describe(h, ranks, sizeof ranks);
    return host_error(h, rank, EP_ERR_TIMEOUT, "%s: not over after %.9g s of virtual time: %s",
                      w->what, 1e-9 * (double)(emu_now(h->world) - since), ranks);
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
    if (w->kind == WAIT_WORD)
        race_order_give(h->races, host_order(h, rank), &h->met);
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
    for (uint32_t i = 1; i < h->num_ranks && !h->started; i++)
        race_order_follow(h->races, h->ranks[i].order, h->ranks[0].order);
    h->started = 1;
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

/* The host has seen that all streams are done. */
static void follow_streams(struct host_world *h)
{
    for (uint32_t i = 0; h->races && i < h->num_ranks; i++) {
        race_order_after(h->races, host_order(h, i), h->ranks[i].ended);
        for (struct owned *each = h->ranks[i].streams; each; each = each->next)
            race_order_follow(h->races, host_order(h, i), ((struct host_stream *)each)->order);
    }
}

enum host_run host_run(struct host_world *h, uint64_t until, uint32_t rounds, int touched)
{
    enum host_run result = HOST_RUN_MORE;

    lock(h);
    h->touched |= touched;
    for (uint32_t i = 0; i < rounds && result == HOST_RUN_MORE; i++)
        result = run_round(h, until);
    if (result == HOST_RUN_IDLE)
        follow_streams(h);
    unlock(h);
    return result;
}
