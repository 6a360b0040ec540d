/* SPDX-License-Identifier: MIT
 *
 * struct ep_executor over the host side of an emulated world. */
#include "emu/host/executor.h"

#include <stdlib.h>
#include <string.h>

#define HANDLE_MAGIC 0x31656c646e616865u     /* "ehandle1" */

struct emu_executor {
    struct ep_executor table;
    struct host_world *host;
    uint32_t rank;
};

/* What an exported handle holds; zero-filled to EP_HANDLE_BYTES. */
struct handle {
    uint64_t magic;
    uint64_t world;          /* tells worlds of one process apart */
    uint64_t owner_va;
    uint64_t bytes;
    uint32_t owner;
    uint32_t reserved;
};
_Static_assert(sizeof(struct handle) <= EP_HANDLE_BYTES, "a handle fits");

#define EXECUTOR(self) struct emu_executor *e = (self)

static int op_alloc(void *self, uint64_t bytes, const char *name, ep_dptr_t *out)
{
    EXECUTOR(self);
    return host_alloc(e->host, e->rank, bytes, name, out);
}

static int op_free(void *self, ep_dptr_t ptr, void *stream)
{
    EXECUTOR(self);
    return host_free(e->host, e->rank, ptr, stream);
}

static int op_host_alloc(void *self, uint64_t bytes, const char *name, void **host, ep_dptr_t *out)
{
    EXECUTOR(self);
    return host_pinned_alloc(e->host, e->rank, bytes, name, host, out);
}

static int op_host_free(void *self, void *host)
{
    EXECUTOR(self);
    return host_pinned_free(e->host, e->rank, host);
}

static int op_copy_in(void *self, ep_dptr_t dst, const void *src, uint64_t bytes, void *stream)
{
    EXECUTOR(self);
    return host_copy_in(e->host, e->rank, dst, src, bytes, stream);
}

static int op_copy_out(void *self, void *dst, ep_dptr_t src, uint64_t bytes, void *stream)
{
    EXECUTOR(self);
    return host_copy_out(e->host, e->rank, dst, src, bytes, stream);
}

static int op_fill(void *self, ep_dptr_t dst, uint8_t value, uint64_t bytes, void *stream)
{
    EXECUTOR(self);
    return host_fill(e->host, e->rank, dst, value, bytes, stream);
}

static int op_export_memory(void *self, ep_dptr_t ptr, void *handle)
{
    EXECUTOR(self);
    struct handle h = { .magic = HANDLE_MAGIC, .world = host_world_id(e->host), .owner_va = ptr,
                        .owner = e->rank };
    int code = host_alloc_size(e->host, e->rank, ptr, &h.bytes);

    if (code == EP_OK) {
        memset(handle, 0, EP_HANDLE_BYTES);
        memcpy(handle, &h, sizeof h);
    }
    return code;
}

static int op_import_memory(void *self, const void *handle, ep_dptr_t *out)
{
    EXECUTOR(self);
    struct handle h;

    memcpy(&h, handle, sizeof h);
    if (h.magic != HANDLE_MAGIC)
        return host_refuse(e->host, e->rank, "handle: not a handle of the CPU executor");
    if (h.world != host_world_id(e->host))
        return host_refuse(e->host, e->rank, "handle: of another run");
    return host_map_peer(e->host, e->rank, h.owner, h.owner_va, h.bytes, out);
}

static int op_release_memory(void *self, ep_dptr_t imported)
{
    EXECUTOR(self);
    return host_unmap_peer(e->host, e->rank, imported);
}

static int op_stream_create(void *self, void **out)
{
    EXECUTOR(self);
    struct host_stream *stream = NULL;
    int code = host_stream_create(e->host, e->rank, &stream);

    *out = stream;
    return code;
}

static int op_stream_destroy(void *self, void *stream)
{
    EXECUTOR(self);
    return host_stream_destroy(e->host, e->rank, stream);
}

/* A wait for a captured stream would break the capture. */
static int op_stream_synchronize(void *self, void *stream)
{
    EXECUTOR(self);
    struct host_graph *graph = NULL;
    int code = host_capture_of(e->host, e->rank, stream, &graph);

    if (code == EP_OK && graph)
        return EP_ERR_CAPTURED;
    return code == EP_OK ? host_synchronize(e->host, e->rank, stream) : code;
}

static int op_stream_wait(void *self, void *waiter, void *waited)
{
    EXECUTOR(self);
    return host_stream_wait(e->host, e->rank, waiter, waited);
}

static int op_event_create(void *self, void **out)
{
    EXECUTOR(self);
    struct host_event *event = NULL;
    int code = host_event_create(e->host, e->rank, &event);

    *out = event;
    return code;
}

static int op_event_destroy(void *self, void *event)
{
    EXECUTOR(self);
    return host_event_destroy(e->host, e->rank, event);
}

static int op_event_record(void *self, void *event, void *stream)
{
    EXECUTOR(self);
    return host_event_record(e->host, e->rank, event, stream);
}

static int op_event_wait(void *self, void *stream, void *event)
{
    EXECUTOR(self);
    return host_event_wait(e->host, e->rank, stream, event);
}

static int op_event_synchronize(void *self, void *event)
{
    EXECUTOR(self);
    return host_event_synchronize(e->host, e->rank, event);
}

static int op_event_query(void *self, void *event, int *done)
{
    EXECUTOR(self);
    return host_event_query(e->host, e->rank, event, done);
}

static int op_capture(void *self, void *stream, void **graph)
{
    EXECUTOR(self);
    struct host_graph *g = NULL;
    int code = host_capture_of(e->host, e->rank, stream, &g);

    *graph = g;
    return code;
}

static int op_graph_keep(void *self, void *graph, void *what, void (*release)(void *what))
{
    EXECUTOR(self);
    return host_graph_keep(e->host, e->rank, graph, what, release);
}

static int op_launch(void *self, const struct ep_launch *launch)
{
    EXECUTOR(self);
    int code = host_launch(e->host, e->rank, launch);

    /* "Or later" is its end: nobody's work here takes SMs from another's. */
    if (code == EP_OK && launch->started != NULL)
        code = host_event_record(e->host, e->rank, launch->started, launch->stream);
    return code;
}

static int op_wait_word(void *self, void *stream, const uint64_t *word, uint64_t want,
                        uint64_t timeout_ns)
{
    EXECUTOR(self);

    (void)stream;
    return host_wait_word(e->host, e->rank, word, want, timeout_ns, "wait_word");
}

static void op_will_read(void *self, const void *host, uint64_t bytes)
{
    EXECUTOR(self);
    host_will_read(e->host, e->rank, host, bytes);
}

static int op_max_resident(void *self, void *kernel, uint32_t block, uint32_t smem, uint32_t *ctas)
{
    EXECUTOR(self);
    return host_max_resident(e->host, e->rank, kernel, block, smem, ctas);
}

static const char *op_last_error(void *self)
{
    (void)self;
    return host_last_error();
}

struct emu_executor *emu_executor_create(struct host_world *host, uint32_t rank)
{
    struct emu_executor *e = calloc(1, sizeof *e);

    if (!e)
        return NULL;
    e->host = host;
    e->rank = rank;
    e->table = (struct ep_executor) {
        .self = e,
        .device = (uintptr_t)e,      /* each rank has one of its own */
        .alloc = op_alloc,
        .free = op_free,
        .host_alloc = op_host_alloc,
        .host_free = op_host_free,
        .copy_in = op_copy_in,
        .copy_out = op_copy_out,
        .fill = op_fill,
        .export_memory = op_export_memory,
        .import_memory = op_import_memory,
        .release_memory = op_release_memory,
        .stream_create = op_stream_create,
        .stream_destroy = op_stream_destroy,
        .stream_synchronize = op_stream_synchronize,
        .stream_wait = op_stream_wait,
        .event_create = op_event_create,
        .event_destroy = op_event_destroy,
        .event_record = op_event_record,
        .event_wait = op_event_wait,
        .event_synchronize = op_event_synchronize,
        .event_query = op_event_query,
        .capture = op_capture, .look = op_capture,
        .graph_keep = op_graph_keep,
        .launch = op_launch,
        .wait_word = op_wait_word,
        .will_read = op_will_read,
        .max_resident = op_max_resident,
        .last_error = op_last_error,
    };
    return e;
}

void emu_executor_destroy(struct emu_executor *executor)
{
    free(executor);
}

const struct ep_executor *emu_executor_table(const struct emu_executor *executor)
{
    return &executor->table;
}
