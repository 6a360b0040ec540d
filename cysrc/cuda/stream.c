/* SPDX-License-Identifier: MIT */
#include "cuda/stream.h"

#include <sched.h>
#include <stdlib.h>
#include <time.h>

#include "cuda/call.h"
#include "cuda/graph.h"

#define LOOK_NS 1000000                      /* between two looks at the device while waiting */
#define ASK_NS 50000000                      /* between two looks for Ctrl-C                  */

static _Thread_local uint64_t asked;         /* when a wait last looked for Ctrl-C         */

static uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int op_stream_create(void *self, void **out)
{
    EXECUTOR(self);
    CUstream stream = NULL;
    int least = 0, greatest = 0;

    ENTER();
    TRY(cuCtxGetStreamPriorityRange, &least, &greatest);
    TRY(cuStreamCreateWithPriority, &stream, CU_STREAM_NON_BLOCKING, greatest);
    *out = stream;
    return EP_OK;
}

static int destroy_stream(struct cuda_executor *e, void *stream)
{
    ENTER();
    TRY(cuStreamDestroy, stream);
    return EP_OK;
}

static int op_stream_destroy(void *self, void *stream)
{
    EXECUTOR(self);

    KEEPING_CONTEXT(destroy_stream(e, stream));
}

/* Whether stop() asks this wait to end.  It ends one wait: what cleans up afterwards may wait. */
static int is_stopped(struct cuda_executor *e)
{
    return __atomic_load_n(&e->stopped, __ATOMIC_RELAXED)
           && __atomic_exchange_n(&e->stopped, 0, __ATOMIC_RELAXED);
}

/* EP_OK while a host wait shall go on. */
static int asked_to_stop(struct cuda_executor *e)
{
    uint64_t now;

    if (is_stopped(e))
        return cuda_refuse(EP_ERR_ABORTED, "another rank failed");
    now = now_ns();
    if (e->table.interrupted == NULL || now - asked < ASK_NS)
        return EP_OK;
    asked = now;
    if (!e->table.interrupted())
        return EP_OK;
    return cuda_refuse(EP_ERR_INTERRUPTED, "interrupted");
}

/* A peer may never come, so this wait can be stopped, which cuStreamSynchronize cannot. */
static int synchronize(struct cuda_executor *e, void *stream)
{
    CUresult found;
    int refused = cuda_refuse_captured(e, stream);

    if (refused != EP_OK)
        return refused;
    while ((found = e->cu->p_cuStreamQuery(stream)) == CUDA_ERROR_NOT_READY) {
        int code = asked_to_stop(e);
        if (code != EP_OK)
            return code;
        cuda_call_touches();     /* what fails from here on may be a kernel that is waited for    */
        sched_yield();
    }
    return cuda_check(e, found, "cuStreamQuery");
}

static int op_stream_synchronize(void *self, void *stream)
{
    EXECUTOR(self);

    KEEPING_CONTEXT(synchronize(e, stream));
}

static int wait_word(struct cuda_executor *e, void *stream, const uint64_t *word, uint64_t want,
                     uint64_t timeout_ns)
{
    uint64_t start = now_ns(), looked = start, now;
    CUresult found;

    ENTER();
    while (__atomic_load_n(word, __ATOMIC_ACQUIRE) != want) {
        int code = asked_to_stop(e);
        if (code != EP_OK)
            return code;
        now = now_ns();
        if (now - start >= timeout_ns)
            return cuda_refuse(EP_ERR_TIMEOUT, "wait_word: the device has not written %llu within"
                               " %.3g s", (unsigned long long)want, (double)timeout_ns * 1e-9);
        if (now - looked < LOOK_NS)
            continue;
        looked = now;
        code = cuda_refuse_captured(e, stream);
        if (code != EP_OK)
            return code;
        found = e->cu->p_cuStreamQuery(stream);      /* a device that failed writes nothing     */
        if (found != CUDA_ERROR_NOT_READY && found != CUDA_SUCCESS)
            return cuda_check(e, found, "cuStreamQuery");
    }
    return EP_OK;
}

static int op_wait_word(void *self, void *stream, const uint64_t *word, uint64_t want,
                        uint64_t timeout_ns)
{
    EXECUTOR(self);

    IN_ANY_CAPTURE(wait_word(e, stream, word, want, timeout_ns));
}

/* One that nobody has any more, NULL: there is none. */
static CUevent take_idle(struct cuda_executor *e)
{
    CUevent event = NULL;

    pthread_mutex_lock(&e->lock);
    if (e->num_idle > 0)
        event = e->idle[--e->num_idle];
    pthread_mutex_unlock(&e->lock);
    return event;
}

static int create_event(struct cuda_executor *e, void **out)
{
    CUevent event = take_idle(e);

    if (event == NULL) {
        ENTER();
        TRY(cuEventCreate, &event, CU_EVENT_DISABLE_TIMING);
    }
    *out = event;
    return EP_OK;
}

static int op_event_create(void *self, void **out)
{
    EXECUTOR(self);

    KEEPING_CONTEXT(create_event(e, out));
}

/* Whether `event` is kept for the next who asks for one.  Streams may still wait for it: for what
 * was recorded when they were told to. */
static int keep_idle(struct cuda_executor *e, CUevent event)
{
    uint32_t room = e->max_idle == 0 ? 16 : 2 * e->max_idle;
    CUevent *larger;
    int kept;

    pthread_mutex_lock(&e->lock);
    if (e->num_idle == e->max_idle) {
        larger = realloc(e->idle, room * sizeof *larger);
        if (larger != NULL) {
            e->idle = larger;
            e->max_idle = room;
        }
    }
    kept = e->num_idle < e->max_idle;
    if (kept)
        e->idle[e->num_idle++] = event;
    pthread_mutex_unlock(&e->lock);
    return kept;
}

static int destroy_event(struct cuda_executor *e, CUevent event)
{
    if (!keep_idle(e, event))
        TRY(cuEventDestroy, event);
    return EP_OK;
}

static int op_event_destroy(void *self, void *event)
{
    EXECUTOR(self);

    return destroy_event(e, event);
}

/* By an event of which nobody needs more: a wait is for what was recorded before it. */
static int wait_stream(struct cuda_executor *e, void *waiter, void *waited)
{
    void *edge;
    int code, kept;

    if (waiter == waited)
        return EP_OK;
    code = create_event(e, &edge);
    if (code != EP_OK)
        return code;
    ENTER();
    code = cuda_check(e, e->cu->p_cuEventRecord(edge, waited), "cuEventRecord");
    if (code == EP_OK)
        code = cuda_check(e, e->cu->p_cuStreamWaitEvent(waiter, edge, 0), "cuStreamWaitEvent");
    kept = destroy_event(e, edge);
    return code != EP_OK ? code : kept;
}

static int op_stream_wait(void *self, void *waiter, void *waited)
{
    EXECUTOR(self);

    KEEPING_CONTEXT(wait_stream(e, waiter, waited));
}

static int record_event(struct cuda_executor *e, void *event, void *stream)
{
    ENTER();
    TRY(cuEventRecord, event, stream);
    return EP_OK;
}

static int op_event_record(void *self, void *event, void *stream)
{
    EXECUTOR(self);
    CUcontext before = cuda_current_context(e);

    return cuda_keeping_context(e, before, record_event(e, event, stream));
}

static int op_event_wait(void *self, void *stream, void *event)
{
    EXECUTOR(self);

    ENTER();
    TRY(cuStreamWaitEvent, stream, event, 0);
    return EP_OK;
}

/* As synchronize(): it can be ended. */
static int wait_event(struct cuda_executor *e, void *event)
{
    CUresult found;

    ENTER();
    while ((found = e->cu->p_cuEventQuery(event)) == CUDA_ERROR_NOT_READY) {
        int code = asked_to_stop(e);
        if (code != EP_OK)
            return code;
        sched_yield();
    }
    return cuda_check(e, found, "cuEventQuery");
}

static int op_event_synchronize(void *self, void *event)
{
    EXECUTOR(self);

    IN_ANY_CAPTURE(wait_event(e, event));
}

static int query_event(struct cuda_executor *e, void *event, int *done)
{
    CUresult found;

    ENTER();
    found = e->cu->p_cuEventQuery(event);
    *done = found == CUDA_SUCCESS;
    return found == CUDA_ERROR_NOT_READY ? EP_OK : cuda_check(e, found, "cuEventQuery");
}

static int op_event_query(void *self, void *event, int *done)
{
    EXECUTOR(self);

    KEEPING_CONTEXT(query_event(e, event, done));
}

void cuda_executor_stop(struct cuda_executor *e)
{
    __atomic_store_n(&e->stopped, 1, __ATOMIC_RELAXED);
}

void cuda_executor_ask(struct cuda_executor *e, int (*interrupted)(void))
{
    e->table.interrupted = interrupted;
}

void cuda_stream_close(struct cuda_executor *e)
{
    while (e->num_idle > 0)
        e->cu->p_cuEventDestroy(e->idle[--e->num_idle]);
}

void cuda_stream_ops(struct ep_executor *table)
{
    table->stream_create = op_stream_create;
    table->stream_destroy = op_stream_destroy;
    table->stream_synchronize = op_stream_synchronize;
    table->stream_wait = op_stream_wait;
    table->event_create = op_event_create;
    table->event_destroy = op_event_destroy;
    table->event_record = op_event_record;
    table->event_wait = op_event_wait;
    table->event_synchronize = op_event_synchronize;
    table->event_query = op_event_query;
    table->wait_word = op_wait_word;
}
