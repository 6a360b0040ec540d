/* SPDX-License-Identifier: MIT
 *
 * The symmetric memory of a buffer without Python: ranks are threads, their group is memory that
 * they share, and their executors hand out memory of the process.  What every rank is told is
 * compared with what has happened, and all that was taken must be given back.  Built and run by
 * tests/test_symmetric.py. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/buffer.h"
#include "core/gather.h"

#define HIDDEN 128
#define R 3
#define FAILING 1                            /* the rank on which functions fail                */
#define START (1u << 16)
#define STEP (1u << 12)
#define MAX_NTH 100

#define NEED(what)                                                                               \
    do {                                                                                         \
        if (!(what)) {                                                                           \
            fprintf(stderr, "%s:%d: not so in %s: %s\n", __FILE__, __LINE__, scene, #what);      \
            exit(1);                                                                             \
        }                                                                                        \
    } while (0)

static char scene[128];

/* -- a machine that does nothing ----------------------------------------------------------- */

enum kind { MEMORY, PINNED, IMPORTED, STREAM, EVENT, NUM_KINDS };

struct machine {
    struct ep_executor table;
    int live[NUM_KINDS];
    const char *fails;           /* this function does, the nth time from now on                */
    int nth, always, code, has_failed;
};

static int fails(struct machine *m, const char *function)
{
    if (!m->fails || strcmp(m->fails, function) != 0 || (--m->nth > 0))
        return 0;
    if (m->nth < 0 && !m->always)
        return 0;
    m->has_failed = 1;
    return m->code;
}

#define FAILS(function)                                                                          \
    struct machine *m = self;                                                                    \
    int rc = fails(m, function);                                                                 \
    if (rc != EP_OK)                                                                             \
        return rc

static int take(struct machine *m, enum kind kind, uint64_t bytes, void **out)
{
    m->live[kind]++;
    *out = calloc(1, bytes);
    NEED(*out);
    return EP_OK;
}

static int give(struct machine *m, enum kind kind, void *memory)
{
    NEED(m->live[kind]-- > 0);
    free(memory);
    return EP_OK;
}

static int m_alloc(void *self, uint64_t bytes, const char *name, ep_dptr_t *out)
{
    void *memory;
    FAILS(strcmp(name, "arena") == 0 ? "arena" : "alloc");
    take(m, MEMORY, bytes, &memory);
    *out = (ep_dptr_t)(uintptr_t)memory;
    return EP_OK;
}

static int m_free(void *self, ep_dptr_t ptr, void *stream)
{
    (void)stream;
    return give(self, MEMORY, (void *)(uintptr_t)ptr);
}

static int m_host_alloc(void *self, uint64_t bytes, const char *name, void **host, ep_dptr_t *out)
{
    (void)name;
    FAILS("host_alloc");
    take(m, PINNED, bytes, host);
    *out = (ep_dptr_t)(uintptr_t)*host;
    return EP_OK;
}

static int m_host_free(void *self, void *host)
{
    return give(self, PINNED, host);
}

static int m_copy_in(void *self, ep_dptr_t dst, const void *src, uint64_t bytes, void *stream)
{
    (void)stream;
    FAILS("copy_in");
    memcpy((void *)(uintptr_t)dst, src, bytes);
    return EP_OK;
}

static int m_copy_out(void *self, void *dst, ep_dptr_t src, uint64_t bytes, void *stream)
{
    (void)stream;
    FAILS("copy_out");
    memcpy(dst, (void *)(uintptr_t)src, bytes);
    return EP_OK;
}

static int m_fill(void *self, ep_dptr_t dst, uint8_t value, uint64_t bytes, void *stream)
{
    (void)stream;
    FAILS("fill");
    memset((void *)(uintptr_t)dst, value, bytes);
    return EP_OK;
}

static int m_export(void *self, ep_dptr_t ptr, void *handle)
{
    FAILS("export_memory");
    memset(handle, 0, EP_HANDLE_BYTES);
    memcpy(handle, &ptr, sizeof ptr);
    return EP_OK;
}

static int m_import(void *self, const void *handle, ep_dptr_t *out)
{
    FAILS("import_memory");
    m->live[IMPORTED]++;
    memcpy(out, handle, sizeof *out);
    return EP_OK;
}

static int m_release(void *self, ep_dptr_t imported)
{
    struct machine *m = self;
    (void)imported;
    NEED(m->live[IMPORTED]-- > 0);
    return EP_OK;
}

static int m_stream_create(void *self, void **out)
{
    FAILS("stream_create");
    return take(m, STREAM, 1, out);
}

static int m_stream_destroy(void *self, void *stream)
{
    return give(self, STREAM, stream);
}

static int m_synchronize(void *self, void *stream)
{
    (void)stream;
    FAILS("stream_synchronize");
    return EP_OK;
}

static int m_wait(void *self, void *waiter, void *waited)
{
    (void)waiter;
    (void)waited;
    FAILS("stream_wait");
    return EP_OK;
}

static int m_event_create(void *self, void **out)
{
    FAILS("event_create");
    return take(m, EVENT, 1, out);
}

static int m_event_destroy(void *self, void *event)
{
    return give(self, EVENT, event);
}

static const char *m_last_error(void *self)
{
    (void)self;
    return "as was asked for";
}

static const char *const FUNCTIONS[] = {
    "alloc", "arena", "host_alloc", "copy_in", "copy_out", "fill", "export_memory",
    "import_memory", "stream_create", "stream_synchronize", "stream_wait", "event_create"};
#define NUM_FUNCTIONS (sizeof FUNCTIONS / sizeof *FUNCTIONS)

static void make_machine(struct machine *m)
{
    *m = (struct machine){.table = {
        .self = m, .alloc = m_alloc, .free = m_free, .host_alloc = m_host_alloc,
        .host_free = m_host_free, .copy_in = m_copy_in, .copy_out = m_copy_out, .fill = m_fill,
        .export_memory = m_export, .import_memory = m_import, .release_memory = m_release,
        .stream_create = m_stream_create, .stream_destroy = m_stream_destroy,
        .stream_synchronize = m_synchronize, .stream_wait = m_wait, .event_create = m_event_create,
        .event_destroy = m_event_destroy, .last_error = m_last_error}};
}

/* -- a group ------------------------------------------------------------------------------- */

struct rank {
    struct machine machine;
    struct ep_symmetric *symmetric;
    struct ep_buffer *buffer;
    uint32_t rank;
    uint64_t limit;
    uint32_t hidden;                         /* of its low-latency calls                        */
    const char *device_name;
    int (*step)(struct rank *);
    int rc, more;                            /* what a step returned, and its second call       */
    int num_asked, num_views, fail_view;
    int calls_left;                          /* of the group, until one fails; below 0: none    */
    /* What is to become of what rank `rank` is told; NULL: nothing. */
    void (*lie)(struct ep_record *all);
    enum ep_collective lie_in;
};

static struct rank ranks[R];

static struct {
    pthread_mutex_t lock;
    pthread_cond_t  moved;
    uint64_t generation;
    uint32_t num_here, num_done;
    struct ep_record given[2][R];
} meeting = {.lock = PTHREAD_MUTEX_INITIALIZER, .moved = PTHREAD_COND_INITIALIZER};

/* All ranks are here, or it fails because one has done its step and does not come. */
static int meet(struct rank *r, const struct ep_record *mine, struct ep_record *all)
{
    int rc = EP_OK;
    if (r->calls_left >= 0 && r->calls_left-- == 0)
        return 77;
    pthread_mutex_lock(&meeting.lock);
    uint64_t generation = meeting.generation;
    struct ep_record *given = meeting.given[generation % 2];
    memset(&given[r->rank], 0, sizeof *given);
    if (mine)
        given[r->rank] = *mine;
    if (++meeting.num_here == R) {
        meeting.num_here = 0;
        meeting.generation++;
        pthread_cond_broadcast(&meeting.moved);
    }
    while (generation == meeting.generation && meeting.num_done == 0)
        pthread_cond_wait(&meeting.moved, &meeting.lock);
    if (generation == meeting.generation) {
        meeting.num_here--;
        rc = 78;
    } else if (all) {
        memcpy(all, given, R * sizeof *given);
    }
    pthread_mutex_unlock(&meeting.lock);
    return rc;
}

static int group_allgather(void *self, const void *mine, void *all, uint64_t bytes)
{
    struct rank *r = self;
    struct ep_record *records = all;
    NEED(bytes == sizeof *records);
    int rc = meet(r, mine, all);
    if (rc == EP_OK && r->lie && records[r->rank].collective == r->lie_in)
        r->lie(records);
    return rc;
}

static int group_barrier(void *self)
{
    return meet(self, NULL, NULL);
}

static int hook_added(void *self, uint32_t index, ep_dptr_t base, uint64_t bytes, uint64_t *view)
{
    struct rank *r = self;
    NEED(index < EP_MAX_SEGMENTS && base == *view && bytes > 0);
    r->num_views++;
    return r->fail_view;
}

static void hook_dropped(void *self, uint32_t index)
{
    struct rank *r = self;
    NEED(index < EP_MAX_SEGMENTS && r->num_views-- > 0);
}

static int hook_give_back(void *self)
{
    ((struct rank *)self)->num_asked++;
    return EP_OK;
}

/* -- what ranks do -------------------------------------------------------------------------- */

static void *run_step(void *argument)
{
    struct rank *r = argument;
    r->rc = r->step(r);
    pthread_mutex_lock(&meeting.lock);
    meeting.num_done++;
    pthread_cond_broadcast(&meeting.moved);
    pthread_mutex_unlock(&meeting.lock);
    return NULL;
}

/* On all ranks at once, each in a thread. */
static void run(void)
{
    pthread_t threads[R];
    meeting.num_here = meeting.num_done = 0;
    for (int i = 0; i < R; i++)
        NEED(pthread_create(&threads[i], NULL, run_step, &ranks[i]) == 0);
    for (int i = 0; i < R; i++)
        pthread_join(threads[i], NULL);
}

static void all_do(int (*step)(struct rank *))
{
    for (int i = 0; i < R; i++)
        ranks[i].step = step;
    run();
}

static int make(struct rank *r)
{
    struct ep_group group = {.self = r, .rank = r->rank, .size = R, .allgather = group_allgather,
                             .barrier = group_barrier};
    struct ep_hooks hooks = {.self = r, .added = hook_added, .dropped = hook_dropped,
                             .give_back = hook_give_back};
    struct ep_connection c = {.start_bytes = r->limit ? 0 : START, .limit_bytes = r->limit,
                              .growth_step = STEP, .device_name = r->device_name,
                              .place = r->rank < 2 ? "one" : "another"};
    uint32_t num_here = 0;
    NEED(ep_symmetric_create(&r->machine.table, &group, &hooks, &r->symmetric) == EP_OK);
    c.made = ep_buffer_create(&r->machine.table, r->rank, R, 1000, r->limit == 0, &r->buffer);
    c.buffer = r->buffer;
    int rc = ep_symmetric_connect(r->symmetric, &c, &num_here);
    NEED(rc != EP_OK || num_here == (r->rank < 2 ? 2 : 1));
    return rc;
}

static int grow(struct rank *r)
{
    return ep_symmetric_grow(r->symmetric, 1 + r->rank);
}

static int grow_by_much(struct rank *r)
{
    return ep_symmetric_grow(r->symmetric, r->rank == 2 ? 1u << 24 : 1);
}

static int make_room(struct rank *r)
{
    struct ep_arena_stats held;
    struct ep_heard heard;
    const uint64_t said[EP_NUM_SAID] = {7, r->rank, 100 - r->rank};
    ep_buffer_stats(r->buffer, &held);
    uint64_t bytes = 2 * held.arena_bytes + r->rank * EP_SLOT_ALIGN;
    int rc = ep_symmetric_ensure_landing(r->symmetric, bytes, said, &heard);
    if (rc == EP_OK) {
        ep_buffer_stats(r->buffer, &held);
        NEED(held.landing_bytes >= bytes);
        NEED(heard.least[0] == 7 && heard.most[0] == 7 && heard.least[1] == 0
             && heard.most[1] == R - 1 && heard.least[2] == 101 - R && heard.most[2] == 100);
    }
    return rc;
}

static int reset(struct rank *r)
{
    struct ep_heard heard;
    const uint64_t said[EP_NUM_SAID] = {r->rank};
    int rc = ep_symmetric_reset(r->symmetric, said, &heard);
    NEED(rc != EP_OK || (heard.least[0] == 0 && heard.most[0] == R - 1));
    return rc;
}

/* Who could not even begin tries again, while the others wait. */
static int reset_twice(struct rank *r)
{
    const struct ep_failure *failure = ep_symmetric_failure(r->symmetric);
    int rc = reset(r);
    return failure->what == EP_FAILED_HERE && !failure->described ? reset(r) : rc;
}

/* Rank i asks for i lines more than it needs: the most of all counts. */
static int make_low_latency(struct rank *r)
{
    struct ep_ll_shape shape = {.max_tokens = 4, .hidden = r->hidden, .num_experts = 2 * R,
                                .num_topk = 2, .reduce = EP_LL_REDUCE_EXACT, .word_tokens = 2};
    uint64_t before = ep_buffer_ll_bytes(r->buffer), needed = ep_ll_bytes(&shape, R);
    int rc = ep_symmetric_ensure_low_latency(r->symmetric, &shape, needed + r->rank * EP_SLOT_ALIGN,
                                             NULL);
    uint64_t bytes = ep_buffer_ll_bytes(r->buffer);
    NEED(rc == EP_OK ? bytes >= needed + (R - 1) * EP_SLOT_ALIGN : bytes == before);
    return rc;
}

/* Memory of no shape, then a shape for which it is enough: the device's table has its areas. */
static int divide_low_latency(struct rank *r)
{
    struct ep_ll_shape none = {.reduce = EP_LL_REDUCE_EXACT};
    int rc = ep_symmetric_ensure_low_latency(r->symmetric, &none, 1 << 20, NULL);
    if (rc == EP_OK)
        rc = make_low_latency(r);
    if (rc == EP_OK) {
        const struct ep_peers *table = (void *)(uintptr_t)r->buffer->comm.peers;
        NEED(ep_buffer_ll_bytes(r->buffer) == 1 << 20);
        NEED(table->words_at && table->words_at == r->buffer->ll.areas.numbers);
        NEED(table->half_bytes == 1 << 19);
    }
    return rc;
}

/* In place of what there was. */
static int make_more_low_latency(struct rank *r)
{
    int rc = make_low_latency(r);
    if (rc == EP_OK) {
        r->hidden *= 2;
        rc = make_low_latency(r);
        r->hidden /= 2;
    }
    return rc;
}

static int end(struct rank *r)
{
    return ep_symmetric_end(r->symmetric);
}

static void begin_scene(const char *name)
{
    snprintf(scene, sizeof scene, "%s", name);
    for (uint32_t i = 0; i < R; i++) {
        ranks[i] = (struct rank){.rank = i, .device_name = "machine", .calls_left = -1,
                                 .hidden = HIDDEN};
        make_machine(&ranks[i].machine);
    }
}

/* Whatever has happened, nothing is left. */
static void end_scene(void)
{
    for (int i = 0; i < R; i++)
        if (ranks[i].buffer)
            ep_buffer_close_peers(ranks[i].buffer);
    for (int i = 0; i < R; i++) {
        struct rank *r = &ranks[i];
        if (r->buffer)
            ep_buffer_destroy(r->buffer);
        ep_symmetric_free(r->symmetric);
        for (int kind = 0; kind < NUM_KINDS; kind++)
            NEED(r->machine.live[kind] == 0);
    }
}

static void need_all(int rc)
{
    for (int i = 0; i < R; i++)
        NEED(ranks[i].rc == rc);
}

static const struct ep_failure *failure_of(int rank)
{
    return ep_symmetric_failure(ranks[rank].symmetric);
}

static void need_same_arenas(void)
{
    struct ep_arena_stats first, other;
    ep_buffer_stats(ranks[0].buffer, &first);
    for (int i = 0; i < R; i++) {
        ep_buffer_stats(ranks[i].buffer, &other);
        NEED(other.arena_bytes == first.arena_bytes && other.num_segments == first.num_segments);
        NEED((uint32_t)ranks[i].num_views == other.num_segments);
        NEED(ep_symmetric_number(ranks[i].symmetric) == ep_symmetric_number(ranks[0].symmetric));
    }
}

static uint32_t num_segments(void)
{
    struct ep_arena_stats held;
    need_same_arenas();
    ep_buffer_stats(ranks[0].buffer, &held);
    return held.num_segments;
}

static void make_all(void)
{
    all_do(make);
    need_all(EP_OK);
    NEED(num_segments() == 1);
}

/* -- all goes well -------------------------------------------------------------------------- */

static void a_life(void)
{
    begin_scene("a life");
    make_all();
    uint64_t number = ep_symmetric_number(ranks[0].symmetric);
    while (num_segments() < EP_MAX_SEGMENTS) {
        all_do(grow);
        need_all(EP_OK);
    }
    all_do(grow);                /* only the first is not idle by right                         */
    need_all(EP_OK);
    NEED(num_segments() == 2);
    all_do(make_room);
    need_all(EP_OK);
    all_do(make_more_low_latency);
    need_all(EP_OK);
    uint64_t low_latency = ep_buffer_ll_bytes(ranks[0].buffer);
    all_do(make_low_latency);    /* there is enough                                             */
    need_all(EP_OK);
    NEED(ep_buffer_ll_bytes(ranks[0].buffer) == low_latency);
    all_do(reset);
    need_all(EP_OK);
    all_do(end);
    need_all(EP_OK);
    for (int i = 0; i < R; i++)
        NEED(ranks[i].machine.live[IMPORTED] == 0);
    end_scene();

    begin_scene("another life");
    for (int i = 0; i < R; i++)
        ranks[i].limit = START << i;         /* each its own                                    */
    all_do(make);
    need_all(EP_OK);
    NEED(ep_symmetric_number(ranks[0].symmetric) > number);
    all_do(end);
    need_all(EP_OK);
    end_scene();
}

/* -- a rank fails ---------------------------------------------------------------------------- */

static void need_told(int code)
{
    for (int i = 0; i < R; i++) {
        const struct ep_failure *failure = failure_of(i);
        NEED(ranks[i].rc == (i == FAILING ? code : EP_ERR_PEER));
        NEED(failure->what == (i == FAILING ? EP_FAILED_HERE : EP_FAILED_PEER));
        NEED(failure->code == code && failure->rank == FAILING && !failure->untold
             && !failure->kept && failure->described == (i == FAILING));
        NEED(i == FAILING || strstr(failure->reason, "as was asked for"));
    }
}

/* `step` behind `before` growths with each function failing each time that it is called; what it
 * could not do it does then. */
static void failures_of(const char *name, int (*step)(struct rank *), int before, int code)
{
    int num_told = 0;
    for (size_t f = 0; f < NUM_FUNCTIONS; f++)
        for (int nth = 1;; nth++) {
            begin_scene(name);
            snprintf(scene, sizeof scene, "%s without %s, %d", name, FUNCTIONS[f], nth);
            NEED(nth < MAX_NTH);
            if (step != make)
                make_all();
            for (int i = 0; i < before; i++) {
                all_do(grow);
                need_all(EP_OK);
            }
            struct machine *m = &ranks[FAILING].machine;
            m->fails = FUNCTIONS[f];
            m->nth = nth;
            m->code = code;
            all_do(step);
            m->fails = NULL;
            if (ranks[FAILING].rc == EP_OK) {        /* it could do without, or tried again     */
                need_all(EP_OK);
                need_same_arenas();
            } else {
                need_told(code);
                num_told++;
                if (step != make) {
                    need_same_arenas();
                    all_do(step);
                    need_all(EP_OK);
                }
            }
            int has_failed = m->has_failed;
            if (step != make || ranks[FAILING].rc == EP_OK) {
                all_do(end);
                need_all(EP_OK);
            }
            end_scene();
            if (!has_failed)
                break;
        }
    NEED(num_told > 0);
}

static void a_full_device(void)
{
    begin_scene("a full device");
    make_all();
    all_do(grow);
    need_all(EP_OK);
    struct machine *m = &ranks[FAILING].machine;
    m->fails = "arena";
    m->always = 1;
    m->code = EP_ERR_MEMORY;
    all_do(grow);                /* as large as the arena, then as is needed                    */
    need_told(EP_ERR_MEMORY);
    NEED(failure_of(FAILING)->bytes == STEP && failure_of(0)->bytes == 0);
    NEED(ranks[FAILING].num_asked == 2 && ranks[0].num_asked == 0);
    all_do(grow_by_much);        /* all of it is needed                                         */
    need_told(EP_ERR_MEMORY);
    NEED(failure_of(FAILING)->bytes == 1u << 24 && ranks[FAILING].num_asked == 3);
    NEED(num_segments() == 2);
    m->fails = NULL;
    ranks[FAILING].fail_view = 5;
    all_do(grow);
    NEED(ranks[FAILING].rc == EP_ERR_CALLER && failure_of(FAILING)->what == EP_FAILED_CALLER);
    NEED(ranks[0].rc == EP_ERR_PEER && failure_of(0)->code == EP_ERR_CALLER);
    NEED(num_segments() == 2);
    ranks[FAILING].fail_view = 0;
    all_do(end);
    need_all(EP_OK);
    end_scene();
}

/* -- the group fails -------------------------------------------------------------------------- */

static int live_in_one(struct rank *r)
{
    int rc = make(r);
    for (int i = 0; rc == EP_OK && i < EP_MAX_SEGMENTS; i++)
        rc = grow(r);
    if (rc == EP_OK)
        rc = make_room(r);
    if (rc == EP_OK)
        rc = reset(r);
    return rc == EP_OK ? end(r) : rc;
}

static void a_group_that_fails(void)
{
    for (int nth = 0;; nth++) {
        begin_scene("a group that fails");
        snprintf(scene, sizeof scene, "a group that fails in its call %d", nth);
        NEED(nth < MAX_NTH);
        ranks[FAILING].calls_left = nth;
        all_do(live_in_one);
        int all_well = ranks[FAILING].rc == EP_OK;
        need_all(all_well ? EP_OK : EP_ERR_CALLER);
        NEED(all_well || failure_of(FAILING)->what == EP_FAILED_CALLER);
        /* The others may have met the barrier with which a growth ends. */
        for (int i = 0; !all_well && i < R; i++)
            NEED(failure_of(i)->rank == (uint32_t)(failure_of(i)->what == EP_FAILED_CALLER
                                                   ? i : FAILING));
        end_scene();
        if (all_well)
            break;
    }
}

static void number_too_large(struct ep_record *all) { all[0].number[3] = EP_MOST_NUMBER + 1; }
static void no_record(struct ep_record *all) { all[0].magic ^= 1; }
static void another_order(struct ep_record *all) { all[0] = all[R - 1]; }
static void endless_text(struct ep_record *all)
{
    all[0].code = EP_ERR_MEMORY;
    memset(all[0].text.reason, 'x', EP_REASON_BYTES);
}
static void of_oneself(struct ep_record *all) { all[FAILING].number[0]++; }
static void another_segment(struct ep_record *all) { all[0].number[0] = 99; }
static void half_a_line(struct ep_record *all) { all[0].number[1] = 64; }

static const struct {
    void (*lie)(struct ep_record *all);
    enum ep_collective in;
    uint32_t rank;               /* about whom                                                  */
} LIES[] = {
    {number_too_large, EP_IN_CONNECT, 0}, {no_record, EP_IN_HEAPS, 0},
    {another_order, EP_IN_ROOM, 0},
    {endless_text, EP_IN_GROWTH, 0}, {of_oneself, EP_IN_CONNECT, FAILING},
    {of_oneself, EP_IN_SEGMENT, FAILING}, {of_oneself, EP_IN_RECYCLING, FAILING},
    {of_oneself, EP_IN_RESET, FAILING}, {another_segment, EP_IN_SEGMENT, 0},
    {half_a_line, EP_IN_CONNECT, 0}, {no_record, EP_IN_EPOCH, 0}, {no_record, EP_IN_END, 0},
};

/* One rank is told what another has not given. */
static void a_group_that_lies(void)
{
    for (size_t i = 0; i < sizeof LIES / sizeof *LIES; i++) {
        begin_scene("a group that lies");
        snprintf(scene, sizeof scene, "lie %zu", i);
        ranks[FAILING].lie = LIES[i].lie;
        ranks[FAILING].lie_in = LIES[i].in;
        all_do(live_in_one);
        const struct ep_failure *failure = failure_of(FAILING);
        NEED(ranks[FAILING].rc == EP_ERR_CALLER && failure->what == EP_FAILED_NONSENSE);
        NEED(failure->rank == LIES[i].rank && strstr(failure->reason, "collective "));
        for (int rank = 0; rank < R; rank++)
            NEED(ranks[rank].rc == EP_ERR_CALLER || ranks[rank].rc == EP_ERR_PEER);
        end_scene();
    }
}

/* -- ranks that differ ------------------------------------------------------------------------ */

static void need_mismatch(const char *argument)
{
    need_all(EP_ERR_PEER);
    for (int i = 0; i < R; i++)
        NEED(failure_of(i)->what == EP_FAILED_MISMATCH && failure_of(i)->rank == 2
             && strcmp(failure_of(i)->argument, argument) == 0);
}

static int grow_and_reset(struct rank *r)
{
    r->more = grow(r);
    NEED(r->more == EP_ERR_PEER && ep_symmetric_failure(r->symmetric)->what == EP_FAILED_ELSEWHERE);
    return reset(r);
}

static void ranks_that_differ(void)
{
    begin_scene("a limit on one rank");
    ranks[2].limit = START;
    all_do(make);
    need_mismatch("arena_limit_bytes");
    NEED(failure_of(0)->sizes[0] == 0 && failure_of(0)->sizes[1] == START);
    end_scene();

    begin_scene("another device on one rank");
    ranks[2].device_name = "other";
    all_do(make);
    need_mismatch("group");
    NEED(strcmp(failure_of(1)->names[0], "machine") == 0
         && strcmp(failure_of(1)->names[1], "other") == 0);
    end_scene();

    begin_scene("another low-latency shape on one rank");
    make_all();
    ranks[2].hidden *= 2;
    all_do(make_low_latency);
    need_mismatch("hidden");
    NEED(failure_of(0)->sizes[0] == HIDDEN && failure_of(0)->sizes[1] == 2 * HIDDEN);
    NEED(ep_buffer_ll_bytes(ranks[0].buffer) == 0);
    end_scene();

    begin_scene("different calls");
    make_all();
    for (int i = 0; i < R; i++)
        ranks[i].step = i == 2 ? end : make_room;
    run();
    need_all(EP_ERR_PEER);
    for (int i = 0; i < R; i++)
        NEED(failure_of(i)->what == EP_FAILED_ELSEWHERE && failure_of(i)->rank == (i == 2 ? 0 : 2)
             && failure_of(i)->collective == (i == 2 ? EP_IN_END : EP_IN_ROOM));
    for (int i = 0; i < R; i++)  /* who waits in another learns of the reset, and comes too     */
        ranks[i].step = i == 0 ? grow_and_reset : reset;
    run();
    need_all(EP_OK);
    NEED(num_segments() == 1);
    all_do(grow);
    need_all(EP_OK);
    all_do(end);
    need_all(EP_OK);
    end_scene();
}

static void different_buffers(void)
{
    struct ep_symmetric *symmetric[R];
    struct ep_buffer *buffer[R];
    begin_scene("one of two buffers");
    make_all();
    for (int i = 0; i < R; i++) {
        symmetric[i] = ranks[i].symmetric;
        buffer[i] = ranks[i].buffer;
        ranks[i].num_views = 0;
    }
    make_all();
    struct ep_symmetric *second = ranks[0].symmetric;
    ranks[0].symmetric = symmetric[0];
    all_do(grow);
    need_all(EP_ERR_PEER);
    for (int i = 0; i < R; i++)
        NEED(failure_of(i)->what == EP_FAILED_ELSEWHERE);
    all_do(reset);
    need_all(EP_ERR_PEER);
    ranks[0].symmetric = second;
    all_do(grow);
    need_all(EP_OK);
    all_do(end);
    need_all(EP_OK);
    for (int i = 0; i < R; i++)
        ep_buffer_close_peers(buffer[i]);
    for (int i = 0; i < R; i++) {
        ep_buffer_destroy(buffer[i]);
        ep_symmetric_free(symmetric[i]);
    }
    end_scene();
}

static void a_closed_buffer(void)
{
    char handle[EP_HANDLE_BYTES] = {0};
    uint64_t epoch;
    uint32_t index, ctas;
    ep_dptr_t base;
    begin_scene("a closed buffer");
    make_all();
    all_do(end);
    need_all(EP_OK);
    for (int i = 0; i < R; i++) {
        struct ep_buffer *b = ranks[i].buffer;
        ep_buffer_close(b);
        NEED(ep_buffer_heap_handle(b, handle) == EP_ERR_DESTROYED);
        NEED(ep_buffer_open_heap(b, 0, handle) == EP_ERR_DESTROYED);
        NEED(ep_buffer_add_segment(b, START, &index, &base, handle) == EP_ERR_DESTROYED);
        NEED(ep_buffer_open_segment(b, 0, 0, handle) == EP_ERR_DESTROYED);
        NEED(ep_buffer_publish(b) == EP_ERR_DESTROYED);
        NEED(ep_buffer_max_ctas(b, &ctas) == EP_ERR_DESTROYED);
        NEED(ep_buffer_reset_begin(b, &epoch) == EP_ERR_DESTROYED);
        NEED(ep_buffer_reset_end(b, 0) == EP_ERR_DESTROYED);
    }
    end_scene();
}

int main(void)
{
    a_life();
    a_closed_buffer();
    failures_of("making", make, 0, EP_ERR_EXECUTOR);
    failures_of("making, short of memory", make, 0, EP_ERR_MEMORY);
    failures_of("growth", grow, 0, EP_ERR_ABORTED);
    failures_of("growth", grow, 2, EP_ERR_MEMORY);
    failures_of("growth that recycles", grow, EP_MAX_SEGMENTS - 1, EP_ERR_ABORTED);
    failures_of("making room", make_room, 1, EP_ERR_EXECUTOR);
    failures_of("areas of low-latency memory", divide_low_latency, 0, EP_ERR_MEMORY);
    failures_of("low-latency memory", make_more_low_latency, 0, EP_ERR_MEMORY);
    failures_of("reset", reset_twice, 1, EP_ERR_EXECUTOR);
    a_full_device();
    a_group_that_fails();
    a_group_that_lies();
    ranks_that_differ();
    different_buffers();
    puts("every rank was told what had happened, and nothing is left");
    return 0;
}
