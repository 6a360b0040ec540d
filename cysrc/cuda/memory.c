/* SPDX-License-Identifier: MIT */
#include "cuda/memory.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "cuda/call.h"

#define HANDLE_MAGIC 0x656c646e61686463u     /* "cdhandle" */
#define MAX_OPENED (EP_MAX_RANKS * (EP_MAX_SEGMENTS + 1) * 4)     /* four buffers */

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

int cuda_memory_open(struct cuda_executor *e)
{
    e->opened = calloc(MAX_OPENED, sizeof *e->opened);
    if (e->opened == NULL)
        return cuda_refuse(EP_ERR_MEMORY, "no memory");
    ENTER();
    return make_pool(e);
}

void cuda_memory_close(struct cuda_executor *e)
{
    if (e->pool != NULL)
        e->cu->p_cuMemPoolDestroy(e->pool);
    free(e->opened);
}

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
    code = cuda_check(e, e->cu->p_cuMemHostGetDevicePointer(&ptr, *host, 0),
                      "cuMemHostGetDevicePointer");
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
        e->opened[e->num_opened++] = (struct cuda_opened){ .address = address, .base = base };
    pthread_mutex_unlock(&e->lock);
    return has_room;
}

static int op_import_memory(void *self, const void *handle, ep_dptr_t *out)
{
    EXECUTOR(self);
    struct handle h;
    CUdeviceptr base = 0;

    memcpy(&h, handle, sizeof h);
    if (h.magic != HANDLE_MAGIC)
        return cuda_refuse(EP_ERR_ARGUMENT, "handle: not a handle of the cuda executor");
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
    return cuda_refuse(EP_ERR_MEMORY, "more than %d peer allocations are open", MAX_OPENED);
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

void cuda_memory_ops(struct ep_executor *table)
{
    table->alloc = op_alloc;
    table->free = op_free;
    table->host_alloc = op_host_alloc;
    table->host_free = op_host_free;
    table->copy_in = op_copy_in;
    table->copy_out = op_copy_out;
    table->fill = op_fill;
    table->export_memory = op_export_memory;
    table->import_memory = op_import_memory;
    table->release_memory = op_release_memory;
}
