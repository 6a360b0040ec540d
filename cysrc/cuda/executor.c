/* SPDX-License-Identifier: MIT */
#include "cuda/executor.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "cuda/driver.h"

#define LOOK_NS 1000000                      /* between two looks at the device while waiting */
#define ASK_NS 50000000                      /* between two looks for Ctrl-C                  */
#define HANDLE_MAGIC 0x656c646e61686463u     /* "cdhandle" */

/* A peer process's allocation that is open here. */
struct opened {
    uint64_t address;        /* as import_memory gave it                                       */
    CUdeviceptr base;
};

#define MAX_OPENED (EP_MAX_RANKS * (EP_MAX_SEGMENTS + 1) * 4)     /* four buffers */

struct timed_launch {
    void *kernel;
    CUevent begin, end;
};

struct cuda_executor {
    struct ep_executor table;
    const struct cuda_driver *cu;
    CUdevice device;
    CUcontext context;
    CUmemoryPool pool;       /* of its own: a shared one may make a stream wait for another rank's */
    int arch;
    int cta_smem;            /* bytes of shared memory that a CTA can have                     */
    int stopped;             /* atomic: the next host wait, or the one that runs, ends at once  */
    char name[128];
    pthread_mutex_t lock;    /* guards all below; no driver call is made with it held           */
    CUevent *idle;           /* events that are nobody's, to be given out again                  */
    uint32_t num_idle, max_idle;
    struct opened *opened;
    uint32_t num_opened;
    struct timed_launch *timed;          /* NULL: launches are not timed                       */
    uint32_t num_timed, max_timed;
};

/* Buffers of several threads may have one executor: what belongs to a call is the thread's. */
static _Thread_local char reason[512];           /* of the newest error                        */
static _Thread_local const struct cuda_executor *untouched;  /* whose call has begun here and
                                                  * launched nothing yet                       */
static _Thread_local uint64_t asked;             /* when a wait last looked for Ctrl-C         */

struct cuda_kernel {
    CUlibrary library;
    CUkernel kernel;
    CUfunction function;
};

/* What an exported handle holds; zero-filled to EP_HANDLE_BYTES.  Another process opens `ipc`; the
 * process that made it takes `address`, since an IPC handle cannot be opened where it was made. */
struct handle {
    uint64_t magic;
    uint64_t address;
    uint64_t offset;         /* of the address in its allocation: IPC opens whole allocations */
    int64_t process;
    uint8_t nonce[16];       /* of the process: containers of one host may share process ids    */
    CUipcMemHandle ipc;
};
_Static_assert(sizeof(struct handle) <= EP_HANDLE_BYTES, "a handle fits");

static uint8_t process_nonce[16];
static pthread_once_t nonce_once = PTHREAD_ONCE_INIT;

static void make_nonce(void)
{
    if (getrandom(process_nonce, sizeof process_nonce, 0) != (ssize_t)sizeof process_nonce)
        memset(process_nonce, 0, sizeof process_nonce);      /* the process id is left then */
}

static uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

#define EXECUTOR(self) struct cuda_executor *e = (self)

/* Whether it leaves the context of no use: whatever is called next, that is what it returns. */
static int breaks_context(CUresult code)
{
    switch (code) {
    case CUDA_ERROR_ECC_UNCORRECTABLE:
    case CUDA_ERROR_NVLINK_UNCORRECTABLE:
    case CUDA_ERROR_CONTAINED:
    case CUDA_ERROR_ILLEGAL_ADDRESS:
    case CUDA_ERROR_LAUNCH_TIMEOUT:
    case CUDA_ERROR_ASSERT:
    case CUDA_ERROR_HARDWARE_STACK_ERROR:
    case CUDA_ERROR_ILLEGAL_INSTRUCTION:
    case CUDA_ERROR_MISALIGNED_ADDRESS:
    case CUDA_ERROR_INVALID_ADDRESS_SPACE:
    case CUDA_ERROR_INVALID_PC:
    case CUDA_ERROR_LAUNCH_FAILED:
    case CUDA_ERROR_TENSOR_MEMORY_LEAK:
        return 1;
    default:
        return 0;
    }
}

/* The one funnel: every driver call of an operation goes through here. */
static int check(struct cuda_executor *e, CUresult code, const char *call)
{
    const char *name = "unknown error", *text = "";

    if (code == CUDA_SUCCESS)
        return EP_OK;
    e->cu->p_cuGetErrorName(code, &name);
    e->cu->p_cuGetErrorString(code, &text);
    if (untouched == e && breaks_context(code))
        snprintf(reason, sizeof reason, "an earlier kernel or copy of the caller on GPU %d"
                 " failed: %s; nothing was launched", e->device, name);
    else
        snprintf(reason, sizeof reason, "%s: %s (%s)", call, name, text);
    return code == CUDA_ERROR_OUT_OF_MEMORY ? EP_ERR_MEMORY : EP_ERR_EXECUTOR;
}

/* Calls a driver function in this executor's context; returns from the caller on failure. */
#define TRY(call, ...)                                                                           \
    do {                                                                                         \
        int code_ = check(e, e->cu->p_##call(__VA_ARGS__), #call);                               \
        if (code_ != EP_OK)                                                                      \
            return code_;                                                                        \
    } while (0)

static CUcontext current_context(struct cuda_executor *e)
{
    CUcontext context = NULL;

    e->cu->p_cuCtxGetCurrent(&context);
    return context;
}

/* The executor's context is current from here on: mostly it is the thread's own. */
#define ENTER()                                                                                  \
    do {                                                                                         \
        if (current_context(e) != e->context)                                                    \
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

/* Finalisers run in whatever thread drops the last reference: that thread's context stays its own. */
static int keeping_context(struct cuda_executor *e, CUcontext before, int code)
{
    if (before != e->context)
        e->cu->p_cuCtxSetCurrent(before);
    return code;
}

#define KEEPING_CONTEXT(call)                                                                    \
    do {                                                                                         \
        CUcontext before_ = current_context(e);                                                  \
        IN_ANY_CAPTURE(keeping_context(e, before_, call));                                       \
    } while (0)

static int op_alloc(void *self, uint64_t bytes, const char *name, ep_dptr_t *out)
{
    EXECUTOR(self);
    CUdeviceptr ptr = 0;

    (void)name;
    ENTER();
    TRY(cuMemAlloc, &ptr, bytes);
    *out = ptr;
    return EP_OK;
}

/* cuMemAlloc and cuMemFree may wait for the whole device, where a peer's kernel may spin for this
 * rank: the core calls them where all ranks are idle.  IPC takes no other memory. */
static int free_now(struct cuda_executor *e, ep_dptr_t ptr, void *stream)
{
    ENTER();
    if (stream != NULL)
        TRY(cuStreamSynchronize, stream);
    TRY(cuMemFree, ptr);
    return EP_OK;
}

static int op_free(void *self, ep_dptr_t ptr, void *stream)
{
    EXECUTOR(self);

    KEEPING_CONTEXT(free_now(e, ptr, stream));
}

static int op_host_alloc(void *self, uint64_t bytes, const char *name, void **host, ep_dptr_t *out)
{
    EXECUTOR(self);
    CUdeviceptr ptr = 0;
    int code;

    (void)name;
    ENTER();
    TRY(cuMemHostAlloc, host, bytes, CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP);
    code = check(e, e->cu->p_cuMemHostGetDevicePointer(&ptr, *host, 0), "cuMemHostGetDevicePointer");
    if (code != EP_OK) {
        e->cu->p_cuMemFreeHost(*host);
        return code;
    }
    memset(*host, 0, bytes);
    *out = ptr;
    return EP_OK;
}

static int host_free_now(struct cuda_executor *e, void *host)
{
    ENTER();
    TRY(cuMemFreeHost, host);
    return EP_OK;
}

static int op_host_free(void *self, void *host)
{
    EXECUTOR(self);

    KEEPING_CONTEXT(host_free_now(e, host));
}

/* Pageable source memory is staged by the driver before the call returns. */
static int copy_in(struct cuda_executor *e, ep_dptr_t dst, const void *src, uint64_t bytes,
                   void *stream)
{
    ENTER();
    TRY(cuMemcpyHtoDAsync, dst, src, bytes, stream);
    return EP_OK;
}

static int op_copy_in(void *self, ep_dptr_t dst, const void *src, uint64_t bytes, void *stream)
{
    EXECUTOR(self);

    KEEPING_CONTEXT(copy_in(e, dst, src, bytes, stream));
}

static int copy_out(struct cuda_executor *e, void *dst, ep_dptr_t src, uint64_t bytes, void *stream)
{
    ENTER();
    TRY(cuMemcpyDtoHAsync, dst, src, bytes, stream);
    TRY(cuStreamSynchronize, stream);
    return EP_OK;
}

static int op_copy_out(void *self, void *dst, ep_dptr_t src, uint64_t bytes, void *stream)
{
    EXECUTOR(self);

    KEEPING_CONTEXT(copy_out(e, dst, src, bytes, stream));
}

static int op_fill(void *self, ep_dptr_t dst, uint8_t value, uint64_t bytes, void *stream)
{
    EXECUTOR(self);

    ENTER();
    TRY(cuMemsetD8Async, dst, value, bytes, stream);
    return EP_OK;
}

static int op_export_memory(void *self, ep_dptr_t ptr, void *handle)
{
    EXECUTOR(self);
    struct handle h = { .magic = HANDLE_MAGIC, .address = ptr, .process = getpid() };
    CUdeviceptr base = 0;

    pthread_once(&nonce_once, make_nonce);
    memcpy(h.nonce, process_nonce, sizeof h.nonce);
    ENTER();
    TRY(cuMemGetAddressRange, &base, NULL, ptr);
    TRY(cuIpcGetMemHandle, &h.ipc, base);
    h.offset = ptr - base;
    memset(handle, 0, EP_HANDLE_BYTES);
    memcpy(handle, &h, sizeof h);
    return EP_OK;
}

/* Whether there was room for it. */
static int note_opened(struct cuda_executor *e, uint64_t address, CUdeviceptr base)
{
    int has_room;

    pthread_mutex_lock(&e->lock);
    has_room = e->num_opened < MAX_OPENED;
    if (has_room)
        e->opened[e->num_opened++] = (struct opened){ .address = address, .base = base };
    pthread_mutex_unlock(&e->lock);
    return has_room;
}

static int op_import_memory(void *self, const void *handle, ep_dptr_t *out)
{
    EXECUTOR(self);
    struct handle h;
    CUdeviceptr base = 0;

    memcpy(&h, handle, sizeof h);
    if (h.magic != HANDLE_MAGIC) {
        snprintf(reason, sizeof reason, "handle: not a handle of the cuda executor");
        return EP_ERR_ARGUMENT;
    }
    pthread_once(&nonce_once, make_nonce);
    if (h.process == getpid() && memcmp(h.nonce, process_nonce, sizeof h.nonce) == 0) {
        *out = h.address;
        return EP_OK;
    }
    ENTER();
    TRY(cuIpcOpenMemHandle, &base, h.ipc, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS);
    *out = base + h.offset;
    if (note_opened(e, *out, base))
        return EP_OK;
    e->cu->p_cuIpcCloseMemHandle(base);
    snprintf(reason, sizeof reason, "more than %d peer allocations are open", MAX_OPENED);
    return EP_ERR_MEMORY;
}

/* What import_memory opened at that address, 0: nothing; it is forgotten. */
static CUdeviceptr take_opened(struct cuda_executor *e, ep_dptr_t imported)
{
    CUdeviceptr base = 0;

    pthread_mutex_lock(&e->lock);
    for (uint32_t i = 0; i < e->num_opened && base == 0; i++) {
        if (e->opened[i].address == imported) {
            base = e->opened[i].base;
            e->opened[i] = e->opened[--e->num_opened];
        }
    }
    pthread_mutex_unlock(&e->lock);
    return base;
}

/* Memory of this process was never opened, and an owner may have freed it by now: only what was
 * opened is closed. */
static int close_memory(struct cuda_executor *e, ep_dptr_t imported)
{
    CUdeviceptr base = take_opened(e, imported);

    if (base == 0)
        return EP_OK;
    ENTER();
    TRY(cuIpcCloseMemHandle, base);
    return EP_OK;
}

static int op_release_memory(void *self, ep_dptr_t imported)
{
    EXECUTOR(self);

    KEEPING_CONTEXT(close_memory(e, imported));
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
    if (!__atomic_load_n(&e->stopped, __ATOMIC_RELAXED)
        || !__atomic_exchange_n(&e->stopped, 0, __ATOMIC_RELAXED))
        return 0;
    snprintf(reason, sizeof reason, "another rank failed");
    return 1;
}

/* EP_OK while a host wait shall go on. */
static int asked_to_stop(struct cuda_executor *e)
{
    uint64_t now;

    if (is_stopped(e))
        return EP_ERR_ABORTED;
    now = now_ns();
    if (e->table.interrupted == NULL || now - asked < ASK_NS)
        return EP_OK;
    asked = now;
    if (!e->table.interrupted())
        return EP_OK;
    snprintf(reason, sizeof reason, "interrupted");
    return EP_ERR_INTERRUPTED;
}

static int find_capture(struct cuda_executor *e, void *stream, void **graph)
{
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    CUgraph captured = NULL;

    *graph = NULL;
    ENTER();
    /* The legacy stream cannot be captured, and must not be asked while another one is.  Older
     * drivers' function takes one argument less; all of the last three are NULL. */
    if (stream == NULL || stream == CU_STREAM_LEGACY)
        return EP_OK;
    TRY(cuStreamGetCaptureInfo, stream, &status, NULL, &captured, NULL, NULL, NULL);
    if (status == CU_STREAM_CAPTURE_STATUS_ACTIVE)
        *graph = captured;
    return EP_OK;
}

/* To ask a captured stream whether it is done would break the capture, whosever it is. */
static int refuse_captured(struct cuda_executor *e, void *stream)
{
    void *graph;
    int code = find_capture(e, stream, &graph);

    if (code != EP_OK || graph == NULL)
        return code;
    snprintf(reason, sizeof reason, "stream: is being captured, the host cannot wait for it now");
    return EP_ERR_CAPTURED;
}

/* A peer may never come, so this wait can be stopped, which cuStreamSynchronize cannot. */
static int synchronize(struct cuda_executor *e, void *stream)
{
    CUresult found;
    int refused = refuse_captured(e, stream);

    if (refused != EP_OK)
        return refused;
    while ((found = e->cu->p_cuStreamQuery(stream)) == CUDA_ERROR_NOT_READY) {
        int code = asked_to_stop(e);
        if (code != EP_OK)
            return code;
        untouched = NULL;        /* what fails from here on may be a kernel that is waited for    */
        sched_yield();
    }
    return check(e, found, "cuStreamQuery");
}

static int op_stream_synchronize(void *self, void *stream)
{
    EXECUTOR(self);

    KEEPING_CONTEXT(synchronize(e, stream));
}

/* Where the times of the next launch go, NULL: it is not timed. */
static struct timed_launch *take_timed(struct cuda_executor *e, void *kernel)
{
    struct timed_launch *timed = NULL;

    pthread_mutex_lock(&e->lock);
    if (e->num_timed < e->max_timed) {
        timed = &e->timed[e->num_timed++];
        timed->kernel = kernel;
    }
    pthread_mutex_unlock(&e->lock);
    return timed;
}

static int launch_kernel(struct cuda_executor *e, const struct ep_launch *launch)
{
    const struct cuda_kernel *kernel = launch->kernel;
    void *params[1] = { (void *)(uintptr_t)launch->params };
    CUlaunchAttribute cooperative = {
        .id = CU_LAUNCH_ATTRIBUTE_COOPERATIVE, .value.cooperative = 1,
    };
    CUlaunchConfig config = {
        .gridDimX = launch->grid, .gridDimY = 1, .gridDimZ = 1,
        .blockDimX = launch->block, .blockDimY = 1, .blockDimZ = 1,
        .sharedMemBytes = launch->smem, .hStream = launch->stream,
        .attrs = &cooperative, .numAttrs = launch->cooperative,
    };

    struct timed_launch *timed = take_timed(e, launch->kernel);

    ENTER();
    if (timed != NULL)
        TRY(cuEventRecord, timed->begin, launch->stream);
    TRY(cuLaunchKernelEx, &config, kernel->function, params, NULL);
    untouched = NULL;
    if (timed != NULL)
        TRY(cuEventRecord, timed->end, launch->stream);
    return EP_OK;
}

static int op_launch(void *self, const struct ep_launch *launch)
{
    EXECUTOR(self);
    CUcontext before = current_context(e);

    return keeping_context(e, before, launch_kernel(e, launch));
}

static void destroy_times(struct cuda_executor *e, struct timed_launch *timed, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        if (timed[i].begin != NULL)
            e->cu->p_cuEventDestroy(timed[i].begin);
        if (timed[i].end != NULL)
            e->cu->p_cuEventDestroy(timed[i].end);
    }
    free(timed);
}

/* These are the executor's from now on, in place of what it had. */
static void set_times(struct cuda_executor *e, struct timed_launch *timed, uint32_t count)
{
    struct timed_launch *before;
    uint32_t count_before;

    pthread_mutex_lock(&e->lock);
    before = e->timed;
    count_before = e->max_timed;
    e->timed = timed;
    e->max_timed = count;
    e->num_timed = 0;
    pthread_mutex_unlock(&e->lock);
    destroy_times(e, before, count_before);
}

static int make_times(struct cuda_executor *e, struct timed_launch *timed, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        TRY(cuEventCreate, &timed[i].begin, CU_EVENT_DEFAULT);
        TRY(cuEventCreate, &timed[i].end, CU_EVENT_DEFAULT);
    }
    return EP_OK;
}

int cuda_executor_profile(struct cuda_executor *e, uint32_t most)
{
    struct timed_launch *timed = NULL;
    int code;

    ENTER();
    set_times(e, NULL, 0);
    if (most == 0)
        return EP_OK;
    timed = calloc(most, sizeof *timed);
    if (timed == NULL) {
        snprintf(reason, sizeof reason, "no memory for the times of %u launches", most);
        return EP_ERR_MEMORY;
    }
    code = make_times(e, timed, most);
    if (code == EP_OK)
        set_times(e, timed, most);
    else
        destroy_times(e, timed, most);
    return code;
}

int cuda_executor_launch_time(struct cuda_executor *e, uint32_t index, void **kernel,
                              float *microseconds)
{
    struct timed_launch timed = { 0 };
    uint32_t count;

    pthread_mutex_lock(&e->lock);
    count = e->num_timed;
    if (index < count)
        timed = e->timed[index];
    pthread_mutex_unlock(&e->lock);
    if (index >= count) {
        snprintf(reason, sizeof reason, "%u launches were timed", count);
        return EP_ERR_ARGUMENT;
    }
    *kernel = timed.kernel;
    return cuda_executor_elapsed(e, timed.begin, timed.end, microseconds);
}

int cuda_executor_timed_event(struct cuda_executor *e, void **event)
{
    ENTER();
    TRY(cuEventCreate, (CUevent *)event, CU_EVENT_DEFAULT);
    return EP_OK;
}

int cuda_executor_timed_event_destroy(struct cuda_executor *e, void *event)
{
    TRY(cuEventDestroy, event);
    return EP_OK;
}

int cuda_executor_elapsed(struct cuda_executor *e, void *begin, void *end, float *microseconds)
{
    float milliseconds = 0;

    ENTER();
    TRY(cuEventSynchronize, end);
    TRY(cuEventElapsedTime, &milliseconds, begin, end);
    *microseconds = milliseconds * 1000;
    return EP_OK;
}

static int time_copies(struct cuda_executor *e, CUevent begin, CUevent end, ep_dptr_t dst,
                       ep_dptr_t src, uint64_t bytes, uint32_t times, void *stream,
                       float *milliseconds)
{
    TRY(cuEventRecord, begin, stream);
    for (uint32_t i = 0; i < times; i++)
        TRY(cuMemcpyAsync, dst, src, bytes, stream);
    TRY(cuEventRecord, end, stream);
    TRY(cuEventSynchronize, end);
    TRY(cuEventElapsedTime, milliseconds, begin, end);
    return EP_OK;
}

int cuda_executor_time_copy(struct cuda_executor *e, ep_dptr_t dst, ep_dptr_t src, uint64_t bytes,
                            uint32_t times, void *stream, float *microseconds)
{
    CUevent begin = NULL, end = NULL;
    float milliseconds = 0;
    int code;

    ENTER();
    TRY(cuEventCreate, &begin, CU_EVENT_DEFAULT);
    code = check(e, e->cu->p_cuEventCreate(&end, CU_EVENT_DEFAULT), "cuEventCreate");
    if (code == EP_OK) {
        code = time_copies(e, begin, end, dst, src, bytes, times, stream, &milliseconds);
        e->cu->p_cuEventDestroy(end);
    }
    e->cu->p_cuEventDestroy(begin);
    *microseconds = milliseconds * 1000 / (float)times;
    return code;
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
        if (now - start >= timeout_ns) {
            snprintf(reason, sizeof reason, "wait_word: the device has not written %llu within"
                     " %.3g s", (unsigned long long)want, (double)timeout_ns * 1e-9);
            return EP_ERR_TIMEOUT;
        }
        if (now - looked < LOOK_NS)
            continue;
        looked = now;
        code = refuse_captured(e, stream);
        if (code != EP_OK)
            return code;
        found = e->cu->p_cuStreamQuery(stream);      /* a device that failed writes nothing     */
        if (found != CUDA_ERROR_NOT_READY && found != CUDA_SUCCESS)
            return check(e, found, "cuStreamQuery");
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
    code = check(e, e->cu->p_cuEventRecord(edge, waited), "cuEventRecord");
    if (code == EP_OK)
        code = check(e, e->cu->p_cuStreamWaitEvent(waiter, edge, 0), "cuStreamWaitEvent");
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
    CUcontext before = current_context(e);

    return keeping_context(e, before, record_event(e, event, stream));
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
    return check(e, found, "cuEventQuery");
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
    return found == CUDA_ERROR_NOT_READY ? EP_OK : check(e, found, "cuEventQuery");
}

static int op_event_query(void *self, void *event, int *done)
{
    EXECUTOR(self);

    KEEPING_CONTEXT(query_event(e, event, done));
}

static int op_capture(void *self, void *stream, void **graph)
{
    EXECUTOR(self);
    CUcontext before = current_context(e);

    return keeping_context(e, before, find_capture(e, stream, graph));
}

/* A kernel that failed breaks the context for good, and shows at the next driver call: check() says
 * whose it was. */
static int op_look(void *self, void *stream, void **graph)
{
    EXECUTOR(self);

    untouched = e;
    return op_capture(self, stream, graph);
}

static int op_graph_keep(void *self, void *graph, void *what, void (*release)(void *what))
{
    EXECUTOR(self);
    CUuserObject object = NULL;
    int code;

    ENTER();
    TRY(cuUserObjectCreate, &object, what, release, 1, CU_USER_OBJECT_NO_DESTRUCTOR_SYNC);
    code = check(e, e->cu->p_cuGraphRetainUserObject(graph, object, 1, CU_GRAPH_USER_OBJECT_MOVE),
                 "cuGraphRetainUserObject");
    return code;
}

static int op_max_resident(void *self, void *handle, uint32_t block, uint32_t smem, uint32_t *ctas)
{
    EXECUTOR(self);
    const struct cuda_kernel *kernel = handle;
    int per_sm = 0, sms = 0;

    ENTER();
    TRY(cuOccupancyMaxActiveBlocksPerMultiprocessor, &per_sm, kernel->function, (int)block, smem);
    TRY(cuDeviceGetAttribute, &sms, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, e->device);
    *ctas = (uint32_t)(per_sm * sms);
    return EP_OK;
}

static const char *op_last_error(void *self)
{
    (void)self;
    return reason;
}

static int make_pool(struct cuda_executor *e)
{
    CUmemPoolProps props = {
        .allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
        .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = e->device},
    };

    cuuint64_t all = UINT64_MAX;

    TRY(cuMemPoolCreate, &e->pool, &props);
    /* To give memory back at a wait could itself wait for the device, where a kernel may spin for a
     * rank of this process. */
    TRY(cuMemPoolSetAttribute, e->pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &all);
    return EP_OK;
}

/* What is of the executor's own in the device's context. */
static int make_own(struct cuda_executor *e)
{
    ENTER();
    return make_pool(e);
}

static void close_device(struct cuda_executor *e)
{
    CUcontext before = current_context(e);

    if (e->cu->p_cuCtxSetCurrent(e->context) == CUDA_SUCCESS) {
        set_times(e, NULL, 0);
        while (e->num_idle > 0)
            e->cu->p_cuEventDestroy(e->idle[--e->num_idle]);
    }
    e->cu->p_cuCtxSetCurrent(before);
    if (e->pool != NULL)
        e->cu->p_cuMemPoolDestroy(e->pool);
    e->cu->p_cuDevicePrimaryCtxRelease(e->device);
    free(e->idle);
}

static int open_device(struct cuda_executor *e, int device)
{
    int major = 0, minor = 0;

    TRY(cuDeviceGet, &e->device, device);
    TRY(cuDeviceGetName, e->name, sizeof e->name, e->device);
    TRY(cuDeviceGetAttribute, &major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, e->device);
    TRY(cuDeviceGetAttribute, &minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, e->device);
    e->arch = 10 * major + minor;
    TRY(cuDeviceGetAttribute, &e->cta_smem, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
        e->device);
    TRY(cuDevicePrimaryCtxRetain, &e->context, e->device);
    if (make_own(e) == EP_OK)
        return EP_OK;
    close_device(e);
    return EP_ERR_EXECUTOR;
}

struct cuda_executor *cuda_executor_create(int device, const char **why)
{
    const struct cuda_driver *cu = cuda_driver(why);
    struct cuda_executor *e;

    if (cu == NULL)
        return NULL;
    *why = reason;
    e = calloc(1, sizeof *e);
    if (e != NULL)
        e->opened = calloc(MAX_OPENED, sizeof *e->opened);
    if (e == NULL || e->opened == NULL) {
        snprintf(reason, sizeof reason, "no memory");
        free(e);
        return NULL;
    }
    e->cu = cu;
    pthread_mutex_init(&e->lock, NULL);
    if (open_device(e, device) != EP_OK) {
        pthread_mutex_destroy(&e->lock);
        free(e->opened);
        free(e);
        return NULL;
    }
    e->table = (struct ep_executor){
        .self = e, .device = (uint64_t)device,
        .alloc = op_alloc, .free = op_free,
        .host_alloc = op_host_alloc, .host_free = op_host_free,
        .copy_in = op_copy_in, .copy_out = op_copy_out, .fill = op_fill,
        .export_memory = op_export_memory, .import_memory = op_import_memory,
        .release_memory = op_release_memory,
        .stream_create = op_stream_create, .stream_destroy = op_stream_destroy,
        .stream_synchronize = op_stream_synchronize,
        .event_create = op_event_create, .event_destroy = op_event_destroy,
        .event_record = op_event_record, .event_wait = op_event_wait,
        .event_synchronize = op_event_synchronize, .event_query = op_event_query,
        .capture = op_capture, .look = op_look, .graph_keep = op_graph_keep,
        .stream_wait = op_stream_wait, .launch = op_launch, .wait_word = op_wait_word,
        .max_resident = op_max_resident,
        .last_error = op_last_error,
    };
    return e;
}

void cuda_executor_destroy(struct cuda_executor *e)
{
    close_device(e);
    pthread_mutex_destroy(&e->lock);
    free(e->opened);
    free(e);
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

void cuda_executor_stop(struct cuda_executor *e)
{
    __atomic_store_n(&e->stopped, 1, __ATOMIC_RELAXED);
}

const struct ep_executor *cuda_executor_table(struct cuda_executor *e)
{
    return &e->table;
}

int cuda_executor_arch(const struct cuda_executor *e)
{
    return e->arch;
}

uint32_t cuda_executor_cta_smem(const struct cuda_executor *e)
{
    return (uint32_t)e->cta_smem;
}

const char *cuda_executor_device_name(const struct cuda_executor *e)
{
    return e->name;
}

static int load_kernel(struct cuda_executor *e, struct cuda_kernel *k, const char *ptx,
                       const char *symbol, uint32_t param_bytes)
{
    size_t offset = 0, bytes = 0;
    int fixed = 0;

    ENTER();
    TRY(cuLibraryLoadData, &k->library, ptx, NULL, NULL, 0, NULL, NULL, 0);
    TRY(cuLibraryGetKernel, &k->kernel, k->library, symbol);
    TRY(cuKernelGetParamInfo, k->kernel, 0, &offset, &bytes);
    if (bytes != param_bytes) {
        snprintf(reason, sizeof reason, "%s: the image takes %zu bytes of parameters, params.h"
                 " says %u", symbol, bytes, param_bytes);
        return EP_ERR_EXECUTOR;
    }
    TRY(cuKernelGetFunction, &k->function, k->kernel);
    TRY(cuFuncGetAttribute, &fixed, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, k->function);
    TRY(cuFuncSetAttribute, k->function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
        e->cta_smem - fixed);
    TRY(cuFuncLoad, k->function);    /* a lazy load could wait for a device that spins */
    return EP_OK;
}

int cuda_executor_load(struct cuda_executor *e, const char *ptx, const char *symbol,
                       uint32_t param_bytes, void **kernel)
{
    struct cuda_kernel *k = calloc(1, sizeof *k);
    int code;

    if (k == NULL) {
        snprintf(reason, sizeof reason, "no memory");
        return EP_ERR_MEMORY;
    }
    code = load_kernel(e, k, ptx, symbol, param_bytes);
    if (code != EP_OK) {
        cuda_executor_unload(e, k);
        return code;
    }
    *kernel = k;
    return EP_OK;
}

void cuda_executor_unload(struct cuda_executor *e, void *kernel)
{
    struct cuda_kernel *k = kernel;

    if (k->library != NULL)
        e->cu->p_cuLibraryUnload(k->library);
    free(k);
}

int cuda_executor_alloc_async(struct cuda_executor *e, uint64_t bytes, void *stream, ep_dptr_t *out)
{
    CUdeviceptr ptr = 0;

    ENTER();
    TRY(cuMemAllocFromPoolAsync, &ptr, bytes, e->pool, stream);
    *out = ptr;
    return EP_OK;
}

static int free_later(struct cuda_executor *e, ep_dptr_t ptr, void *stream)
{
    ENTER();
    TRY(cuMemFreeAsync, ptr, stream);
    return EP_OK;
}

int cuda_executor_free_async(struct cuda_executor *e, ep_dptr_t ptr, void *stream)
{
    KEEPING_CONTEXT(free_later(e, ptr, stream));
}

int cuda_executor_copy(struct cuda_executor *e, ep_dptr_t dst, ep_dptr_t src, uint64_t bytes,
                       void *stream)
{
    ENTER();
    TRY(cuMemcpyAsync, dst, src, bytes, stream);
    return EP_OK;
}

void cuda_executor_ask(struct cuda_executor *e, int (*interrupted)(void))
{
    e->table.interrupted = interrupted;
}

int cuda_executor_uuid(struct cuda_executor *e, void *uuid)
{
    CUuuid id;

    TRY(cuDeviceGetUuid, &id, e->device);
    memcpy(uuid, &id, sizeof id);
    return EP_OK;
}

int cuda_executor_device_of(struct cuda_executor *e, ep_dptr_t address)
{
    int type = 0, ordinal = -1;

    if (e->cu->p_cuCtxSetCurrent(e->context) != CUDA_SUCCESS)
        return -1;
    if (e->cu->p_cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, address)
            != CUDA_SUCCESS || type != CU_MEMORYTYPE_DEVICE)
        return -1;
    if (e->cu->p_cuPointerGetAttribute(&ordinal, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, address)
            != CUDA_SUCCESS)
        return -1;
    return ordinal;
}

int cuda_executor_enable_peer(struct cuda_executor *e, const struct cuda_executor *peer)
{
    CUresult code;
    int can = 0;

    if (e->device == peer->device)
        return EP_OK;
    ENTER();
    TRY(cuDeviceCanAccessPeer, &can, e->device, peer->device);
    if (!can) {
        snprintf(reason, sizeof reason, "GPU %d (%s) cannot access the memory of GPU %d (%s)",
                 e->device, e->name, peer->device, peer->name);
        return EP_ERR_EXECUTOR;
    }
    code = e->cu->p_cuCtxEnablePeerAccess(peer->context, 0);
    if (code == CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED)
        return EP_OK;
    return check(e, code, "cuCtxEnablePeerAccess");
}
