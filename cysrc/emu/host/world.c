/* SPDX-License-Identifier: MIT
 *
 * One emulated world as its host sees it: its life, its kernels, what came of it. */
#include "emu/host/event.h"
#include "emu/host/failure.h"
#include "emu/host/graph.h"
#include "emu/host/memory.h"
#include "emu/host/work.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

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

const struct race_found *host_races(struct host_world *h)
{
    return h->races ? race_first(h->races) : NULL;
}

int host_races_whole(struct host_world *h)
{
    return !h->races || race_is_whole(h->races);
}

struct host_world *host_create(const struct emu_options *options, uint64_t wait_limit_ns,
                               uint32_t races)
{
    struct emu_observer observer = { .fault = host_hear };
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
    h->fault.text = calloc(1, 1);        /* a report that gets no memory is empty, not missing */
    observer.self = h;
    if (races) {
        h->races = race_create(&(struct race_options){
            .num_ranks = options->num_ranks, .seed = options->seed, .reports = races & HOST_RACES,
            .weak = races & HOST_WEAK, .strict = races & HOST_STRICT });
        if (!h->races)
            goto failed;
        race_observe(h->races, &observer);
    }
    h->world = emu_world_create(options, &observer);
    if (!h->ranks || !h->fault.text || !h->world)
        goto failed;
    if (h->races && !race_set_world(h->races, h->world))
        goto failed;
    for (uint32_t i = 0; i < options->num_ranks; i++) {
        pthread_cond_init(&h->ranks[i].turn, NULL);
        pthread_cond_init(&h->ranks[i].waited, NULL);
        h->num_ranks++;
        h->ranks[i].order = race_order_new(h->races, i, false);
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
        race_order_free(h->ranks[i].order);
        race_clock_release(h->ranks[i].ended);
        pthread_cond_destroy(&h->ranks[i].turn);
        pthread_cond_destroy(&h->ranks[i].waited);
    }
    host_release(h->gone);
    race_clock_release(h->met);
    race_destroy(h->races);
    free(h->ranks);
    free(h->fault.text);
    pthread_mutex_destroy(&h->lock);
    free(h);
}
