/* SPDX-License-Identifier: MIT
 *
 * Buffers of several threads over one executor of a GPU that does nothing (bench/null_libcuda.c):
 * what they share is found by ThreadSanitizer, what they mix up by the checks here.  Built and run by
 * tests/test_threads.py, with the driver's path as argument. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "deepep_ptx/deepep_ptx.h"
#include "cuda/executor.h"
#include "kernels.h"

#define NUM_THREADS 3
#define ROUNDS 200
#define ROWS 4
#define ROW_BYTES 64
#define ARENA_BYTES (1 << 20)
#define WAIT_NS 3000000                      /* longer than between two looks at the device    */

#define NEED(what)                                                                               \
    do {                                                                                         \
        if (!(what)) {                                                                           \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #what);                   \
            exit(1);                                                                             \
        }                                                                                        \
    } while (0)

static struct cuda_executor *executor;
static const struct ep_executor *exec;
static void *captured_stream;

/* A result of one thread's, which ends in the next thread. */
static struct mailbox {
    pthread_mutex_t lock;
    struct ep_buffer *buffer;
    struct ep_block *block;
} mailboxes[NUM_THREADS];

static void *load(uint32_t kernel)
{
    char text[64];
    void *handle = NULL;

    snprintf(text, sizeof text, ".b8 p[%u]", ep_param_bytes(kernel));
    NEED(cuda_executor_load(executor, text, "kernel", ep_param_bytes(kernel), &handle) == EP_OK);
    return handle;
}

static struct ep_buffer *make_buffer(void *const *kernels)
{
    struct ep_buffer *b = NULL;
    char handle[EP_HANDLE_BYTES];
    uint32_t index;
    ep_dptr_t base;

    NEED(ep_buffer_create(exec, 0, 1, 1000, 1, &b) == EP_OK);
    for (uint32_t i = 0; i < EP_NUM_KERNELS; i++) {
        struct ep_loaded loaded = { .handle = kernels[i], .threads = 128 };
        ep_buffer_set_kernel(b, i, &loaded);
    }
    NEED(ep_buffer_heap_handle(b, handle) == EP_OK);
    NEED(ep_buffer_add_segment(b, ARENA_BYTES, &index, &base, handle) == EP_OK);
    NEED(ep_buffer_publish(b) == EP_OK);
    return b;
}

static void post(struct mailbox *box, struct ep_buffer *buffer, struct ep_block *block)
{
    pthread_mutex_lock(&box->lock);
    if (box->block == NULL) {
        box->buffer = buffer;
        box->block = block;
        block = NULL;
    }
    pthread_mutex_unlock(&box->lock);
    if (block != NULL)
        ep_buffer_give_back(buffer, block);
}

/* Sometimes on a stream that is captured: then a call of its buffer's has to end it. */
static void end_one(struct mailbox *box, int on_captured)
{
    void *streams[2] = { on_captured ? captured_stream : NULL, NULL };
    struct ep_buffer *buffer;
    struct ep_block *block;

    pthread_mutex_lock(&box->lock);
    buffer = box->buffer;
    block = box->block;
    box->block = NULL;
    pthread_mutex_unlock(&box->lock);
    if (block != NULL)
        ep_buffer_retire(buffer, block, streams, 1);
}

static void call(struct ep_buffer *b, uint32_t me)
{
    struct ep_layout_args layout = { .num_tokens = ROWS, .num_topk = 1, .num_experts = 1,
                                     .topk_idx_bytes = 8 };
    struct ep_dispatch_args dispatch = { .num_tokens = ROWS, .hidden_bytes = ROW_BYTES,
                                         .num_topk = 1, .topk_idx_bytes = 8, .num_experts = 1,
                                         .rows = ROWS, .worst_rows = ROWS,
                                         .landing_bytes = ROW_BYTES };
    struct ep_dispatch_result result;
    void *graph = NULL;

    NEED(ep_buffer_look(b, NULL, &graph) == EP_OK && graph == NULL);
    layout.call.num_sms = dispatch.call.num_sms = 1;
    NEED(ep_buffer_layout(b, &layout) == EP_OK);
    NEED(ep_buffer_dispatch(b, &dispatch, &result) == EP_OK);
    NEED(result.block != NULL);
    post(&mailboxes[(me + 1) % NUM_THREADS], b, result.block);
    NEED(ep_buffer_check(b) == EP_OK);
}

/* Memory of another process, and an event. */
static void use_executor(void)
{
    char handle[EP_HANDLE_BYTES];
    ep_dptr_t own = 0, peer = 0;
    void *event = NULL;
    int done = 0;

    NEED(exec->alloc(exec->self, 256, "own", &own) == EP_OK);
    NEED(exec->export_memory(exec->self, own, handle) == EP_OK);
    handle[24] ^= 1;             /* struct handle of cuda/memory.c: the process                 */
    NEED(exec->import_memory(exec->self, handle, &peer) == EP_OK && peer == own);
    NEED(exec->release_memory(exec->self, peer) == EP_OK);
    NEED(exec->free(exec->self, own, NULL) == EP_OK);
    NEED(exec->event_create(exec->self, &event) == EP_OK);
    NEED(exec->event_record(exec->self, event, NULL) == EP_OK);
    NEED(exec->event_query(exec->self, event, &done) == EP_OK && done);
    NEED(exec->event_destroy(exec->self, event) == EP_OK);
}

/* A wait that ends by its limit, with this thread's own words. */
static void wait_in_vain(void *stream, uint64_t want)
{
    const uint64_t word = 0;
    char number[32];

    snprintf(number, sizeof number, "written %llu within", (unsigned long long)want);
    NEED(exec->wait_word(exec->self, stream, &word, want, WAIT_NS) == EP_ERR_TIMEOUT);
    if (strstr(exec->last_error(exec->self), number) == NULL) {
        fprintf(stderr, "waited for %s: %s\n", number, exec->last_error(exec->self));
        exit(1);
    }
}

struct thread {
    pthread_t id;
    uint32_t me;
    struct ep_buffer *buffer;
};

static void *run(void *argument)
{
    struct thread *t = argument;

    for (uint32_t i = 0; i < ROUNDS; i++) {
        call(t->buffer, t->me);
        end_one(&mailboxes[t->me], i % 3 == 0);
        use_executor();
        if (i % 20 == 0)
            wait_in_vain(ep_buffer_stream(t->buffer), 1 + t->me * ROUNDS + i);
    }
    return NULL;
}

static int stop;

static int never(void) { return 0; }

/* Launches into a capture, while the others wait. */
static void *capture(void *kernel)
{
    char params[sizeof(struct ep_copy_params)] = { 0 };
    struct ep_launch launch = { .kernel = kernel, .params = params, .param_bytes = sizeof params,
                                .grid = 1, .block = 32, .stream = captured_stream };

    while (!__atomic_load_n(&stop, __ATOMIC_RELAXED))
        NEED(exec->launch(exec->self, &launch) == EP_OK);
    NEED(exec->stream_synchronize(exec->self, captured_stream) == EP_ERR_CAPTURED);
    return NULL;
}

static uint64_t count_of(uint64_t (*calls)(unsigned, const char **), const char *function)
{
    const char *name;

    for (unsigned i = 0;; i++) {
        uint64_t count = calls(i, &name);
        NEED(name != NULL);
        if (strcmp(name, function) == 0)
            return count;
    }
}

/* An event that keeps its time is not handed out again where none is needed. */
static void check_timed_events(uint64_t (*calls)(unsigned, const char **))
{
    uint64_t destroyed = count_of(calls, "cuEventDestroy");
    void *timed = NULL, *event = NULL;

    NEED(cuda_executor_timed_event(executor, &timed) == EP_OK);
    NEED(cuda_executor_timed_event_destroy(executor, timed) == EP_OK);
    NEED(count_of(calls, "cuEventDestroy") == destroyed + 1);
    NEED(exec->event_create(exec->self, &event) == EP_OK);
    NEED(exec->event_destroy(exec->self, event) == EP_OK);
    NEED(count_of(calls, "cuEventDestroy") == destroyed + 1);
}

int main(int argc, char **argv)
{
    struct thread threads[NUM_THREADS];
    void *kernels[EP_NUM_KERNELS], *driver;
    const char *why = NULL;
    pthread_t capturing;

    NEED(argc == 2);
    driver = dlopen(argv[1], RTLD_NOW | RTLD_GLOBAL);
    NEED(driver != NULL);
    void (*null_capture)(void *);
    int (*null_capture_is_broken)(void);
    uint64_t (*null_calls)(unsigned, const char **);
    *(void **)&null_capture = dlsym(driver, "null_capture");
    *(void **)&null_capture_is_broken = dlsym(driver, "null_capture_is_broken");
    *(void **)&null_calls = dlsym(driver, "null_calls");
    executor = cuda_executor_create(0, &why);
    NEED(executor != NULL);
    exec = cuda_executor_table(executor);
    cuda_executor_ask(executor, never);
    check_timed_events(null_calls);
    for (uint32_t i = 0; i < EP_NUM_KERNELS; i++)
        kernels[i] = load(i);
    NEED(exec->stream_create(exec->self, &captured_stream) == EP_OK);
    null_capture(captured_stream);
    NEED(cuda_executor_profile(executor, 100) == EP_OK);
    for (uint32_t i = 0; i < NUM_THREADS; i++) {
        pthread_mutex_init(&mailboxes[i].lock, NULL);
        threads[i] = (struct thread){ .me = i, .buffer = make_buffer(kernels) };
    }
    pthread_create(&capturing, NULL, capture, kernels[EP_KERNEL_COPY]);
    for (uint32_t i = 0; i < NUM_THREADS; i++)
        pthread_create(&threads[i].id, NULL, run, &threads[i]);
    for (uint32_t i = 0; i < NUM_THREADS; i++)
        pthread_join(threads[i].id, NULL);
    __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
    pthread_join(capturing, NULL);
    NEED(!null_capture_is_broken());
    for (uint32_t i = 0; i < NUM_THREADS; i++) {
        end_one(&mailboxes[i], 0);
        pthread_mutex_destroy(&mailboxes[i].lock);
    }
    for (uint32_t i = 0; i < NUM_THREADS; i++)
        ep_buffer_destroy(threads[i].buffer);
    for (uint32_t i = 0; i < EP_NUM_KERNELS; i++)
        cuda_executor_unload(executor, kernels[i]);
    exec->stream_destroy(exec->self, captured_stream);
    cuda_executor_destroy(executor);
    puts("every round was right");
    return 0;
}
