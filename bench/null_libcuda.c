/* SPDX-License-Identifier: MIT
 *
 * A libcuda.so.1 whose GPU takes all work and does none, at once: what is left of a call's time is
 * the host's own.  Every function succeeds, until null_break(); null_calls() says how often the ones
 * that calls use have been called.  Device memory is host memory that nobody reads.  NULL_CTA_SMEM:
 * bytes of shared memory that a CTA can have, 227 KiB where it is not set. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The functions that are counted: those of a call that only enqueues. */
#define COUNTED(F)                                                                               \
    F(cuCtxGetCurrent) F(cuCtxSetCurrent) F(cuThreadExchangeStreamCaptureMode)                   \
    F(cuStreamGetCaptureInfo) F(cuStreamQuery) F(cuStreamWaitEvent)                              \
    F(cuEventCreate) F(cuEventDestroy) F(cuEventRecord) F(cuEventQuery)                          \
    F(cuMemsetD8Async) F(cuMemAllocFromPoolAsync) F(cuMemFreeAsync) F(cuLaunchKernelEx)

enum {
#define F(name) N_##name,
    COUNTED(F)
#undef F
    N_COUNTED
};

static uint64_t calls[N_COUNTED];
#define COUNT(name) calls[N_##name]++

static int broken;               /* what all work returns once so much more has been taken          */
static uint64_t work_left;

/* Of what a device that has failed does not take any more. */
static int work(int name)
{
    calls[name]++;
    if (broken == 0 || work_left == 0)
        return broken;
    work_left--;
    return 0;
}

#define WORK(name) work(N_##name)

static void *context;

static int any(void) { return 0; }
static int version(int *out) { *out = 13000; return 0; }
static int one(int *out) { *out = 1; return 0; }
static int device(int *out, int ordinal) { *out = ordinal; return 0; }
static int device_name(char *out, int bytes, int of) { (void)of; strncpy(out, "null", bytes); return 0; }

static int text(int code, const char **out)
{
    static char number[16];

    snprintf(number, sizeof number, "error %d", code);
    *out = number;
    return 0;
}

static int make(void **out) { *out = malloc(1); return 0; }
static int make_stream(void **out, unsigned flags, int priority)
{
    (void)flags, (void)priority;
    return make(out);
}

static int attribute(int *out, int what, int of)
{
    enum { SMS = 16, MAJOR = 75, MINOR = 76, CTA_SMEM = 97 };
    const char *smem = getenv("NULL_CTA_SMEM");

    (void)of;
    *out = what == SMS ? 132 : what == MAJOR ? 9 : what == MINOR ? 0
         : what == CTA_SMEM && smem != NULL ? atoi(smem) : 227 << 10;
    return 0;
}

static int zero_attribute(int *out) { *out = 0; return 0; }

static int retain(void **out, int of) { (void)of; *out = &context; return 0; }
static int get_context(void **out) { COUNT(cuCtxGetCurrent); *out = context; return 0; }
static int set_context(void *c) { COUNT(cuCtxSetCurrent); context = c; return 0; }

static int alloc(uint64_t *out, size_t bytes)
{
    *out = (uint64_t)(uintptr_t)malloc(bytes);
    return *out == 0 ? 2 : 0;
}

static int free_memory(uint64_t ptr) { free((void *)(uintptr_t)ptr); return 0; }
static int host_alloc(void **out, size_t bytes) { *out = malloc(bytes); return *out == NULL ? 2 : 0; }
static int host_free(void *host) { free(host); return 0; }
static int host_address(uint64_t *out, void *host) { *out = (uint64_t)(uintptr_t)host; return 0; }

static int range(uint64_t *base, size_t *bytes, uint64_t ptr)
{
    (void)bytes;
    *base = ptr;
    return 0;
}

static int copy_out(void *dst, uint64_t src, size_t bytes) { (void)src; memset(dst, 0, bytes); return 0; }

static int alloc_async(uint64_t *out, size_t bytes)
{
    COUNT(cuMemAllocFromPoolAsync);
    return alloc(out, bytes);
}

static int free_async(uint64_t ptr) { COUNT(cuMemFreeAsync); return free_memory(ptr); }
static int exchange(int *mode) { (void)mode; COUNT(cuThreadExchangeStreamCaptureMode); return 0; }

static void *captured;           /* the one stream that is being captured                           */
static int capture_broken;       /* somebody has asked whether it is done                           */

static int capture_info(void *stream, int *status, uint64_t *id, void **graph)
{
    (void)id;
    *status = stream != NULL && stream == captured;
    *graph = *status ? &captured : NULL;
    return WORK(cuStreamGetCaptureInfo);
}

/* Streams are at rest, and busy from null_break() until the device breaks. */
static int stream_query(void *stream)
{
    enum { NOT_READY = 600, CAPTURE_UNSUPPORTED = 900 };
    int code = WORK(cuStreamQuery);

    if (stream != NULL && stream == captured) {
        capture_broken = 1;
        return CAPTURE_UNSUPPORTED;
    }
    return code == 0 && broken != 0 ? NOT_READY : code;
}

/* Imported memory is at the address that it has where it was made. */
struct ipc { uint64_t address, rest[7]; };
static int ipc_get(struct ipc *out, uint64_t ptr) { *out = (struct ipc){ .address = ptr }; return 0; }
static int ipc_open(uint64_t *out, struct ipc handle) { *out = handle.address; return 0; }

static _Thread_local void *waiter, *waited;      /* stream and event of the newest wait             */

static int stream_wait(void *stream, void *event)
{
    waiter = stream;
    waited = event;
    return WORK(cuStreamWaitEvent);
}

static int event_create(void **out) { COUNT(cuEventCreate); return make(out); }
static int event_destroy(void *event) { COUNT(cuEventDestroy); free(event); return 0; }
static int event_record(void) { return WORK(cuEventRecord); }
static int event_query(void) { return WORK(cuEventQuery); }
static int fill(void) { return WORK(cuMemsetD8Async); }

/* CUlaunchConfig and CUlaunchAttribute of cuda.h. */
struct attribute { uint64_t id, value[8]; };
struct config { uint32_t grid[3], block[3], smem; void *stream; struct attribute *attributes;
                uint32_t num_attributes; };

static _Thread_local struct attribute attributes[8];     /* of the newest launch                    */
static _Thread_local uint32_t num_attributes;

static int launch(const struct config *config)
{
    num_attributes = config->num_attributes;
    memcpy(attributes, config->attributes, num_attributes * sizeof *attributes);
    return WORK(cuLaunchKernelEx);
}

/* A kernel is the number of bytes that its one parameter block has by its text. */
static int load(void **out, const char *ptx)
{
    const char *block = strstr(ptx, ".b8 p[");

    *out = (void *)strtoul(block + strlen(".b8 p["), NULL, 10);
    return 0;
}

static int pass_on(void **out, void *library) { *out = library; return 0; }

static int parameter(void *kernel, size_t index, size_t *offset, size_t *bytes)
{
    (void)index;
    *offset = 0;
    *bytes = (size_t)kernel;
    return 0;
}

/* Whether the newest launch of this thread had the attribute, and the first 8 bytes of its value. */
int null_attribute(uint32_t id, uint64_t *value)
{
    for (uint32_t i = 0; i < num_attributes; i++) {
        if ((uint32_t)attributes[i].id == id) {
            *value = attributes[i].value[0];
            return 1;
        }
    }
    return 0;
}

void null_waited(void **stream, void **event) { *stream = waiter; *event = waited; }
void null_break(int code, uint64_t after) { broken = code; work_left = after; }
void null_capture(void *stream) { captured = stream; }
int null_capture_is_broken(void) { return capture_broken; }

uint64_t null_calls(unsigned index, const char **name)
{
    static const char *const names[] = {
#define F(name) #name,
        COUNTED(F)
#undef F
    };

    *name = index < N_COUNTED ? names[index] : NULL;
    return index < N_COUNTED ? calls[index] : 0;
}

int cuGetProcAddress_v2(const char *symbol, void **out, int least, uint64_t flags, int *found)
{
    static const struct { const char *name; void *function; } known[] = {
        { "cuDriverGetVersion", version }, { "cuDeviceGetCount", one }, { "cuDeviceGet", device },
        { "cuDeviceGetName", device_name }, { "cuDeviceGetAttribute", attribute },
        { "cuDeviceCanAccessPeer", one }, { "cuGetErrorName", text }, { "cuGetErrorString", text },
        { "cuDevicePrimaryCtxRetain", retain }, { "cuCtxGetCurrent", get_context },
        { "cuCtxSetCurrent", set_context }, { "cuMemAlloc", alloc }, { "cuMemFree", free_memory },
        { "cuMemPoolCreate", make }, { "cuMemHostAlloc", host_alloc }, { "cuMemFreeHost", host_free },
        { "cuMemHostGetDevicePointer", host_address }, { "cuMemGetAddressRange", range },
        { "cuMemcpyDtoHAsync", copy_out }, { "cuMemAllocFromPoolAsync", alloc_async },
        { "cuMemFreeAsync", free_async }, { "cuMemsetD8Async", fill },
        { "cuStreamCreateWithPriority", make_stream }, { "cuStreamDestroy", host_free },
        { "cuIpcGetMemHandle", ipc_get }, { "cuIpcOpenMemHandle", ipc_open },
        { "cuStreamGetCaptureInfo", capture_info }, { "cuStreamQuery", stream_query },
        { "cuStreamWaitEvent", stream_wait }, { "cuThreadExchangeStreamCaptureMode", exchange },
        { "cuEventCreate", event_create }, { "cuEventDestroy", event_destroy },
        { "cuEventRecord", event_record }, { "cuEventQuery", event_query },
        { "cuLibraryLoadData", load }, { "cuLibraryGetKernel", pass_on },
        { "cuKernelGetFunction", pass_on }, { "cuKernelGetParamInfo", parameter },
        { "cuFuncGetAttribute", zero_attribute }, { "cuLaunchKernelEx", launch },
        { "cuOccupancyMaxActiveBlocksPerMultiprocessor", one },
    };

    (void)least, (void)flags, (void)found;
    *out = any;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(known[i].name, symbol) == 0)
            *out = known[i].function;
    return 0;
}
