/* SPDX-License-Identifier: MIT
 *
 * The device half of the CPU executor without its host half, behind functions of plain numbers:
 * built and called by test_device.py.  What its world's observer hears is kept as records. */
#include "emu/device/emu.h"
#include "emu/device/observe.h"
#include "emu/device/world.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct record {
    uint64_t kind, space, sem, scope, proxy, rank, va, bytes, host, who, cta, warp, lanes,
             lane_bytes, pc;
};

enum who { LANES, COPY, HOST };

struct device {
    struct emu_world *world;
    struct record *records;
    size_t num_records, room;
    struct emu_fault fault;
};

static void hear_fault(void *self, const struct emu_finding *finding)
{
    emu_report(&((struct device *)self)->fault, finding);
}

static void hear_access(void *self, const struct emu_access *a)
{
    struct device *d = self;

    if (d->num_records == d->room) {
        d->room = d->room ? 2 * d->room : 64;
        d->records = realloc(d->records, d->room * sizeof *d->records);
        if (!d->records)
            abort();
    }
    d->records[d->num_records++] = (struct record){
        a->kind, a->space, a->sem, a->scope, a->proxy, a->rank, a->va, a->bytes,
        (uintptr_t)a->host, !a->grid ? HOST : a->copy ? COPY : LANES, a->cta, a->warp, a->lanes,
        a->lane_bytes, a->pc,
    };
}

struct device *device_create(uint32_t num_ranks, uint32_t scheduler, uint64_t seed, int observed)
{
    const struct emu_options options = {
        .num_ranks = num_ranks, .sms_per_rank = 4, .cta_smem = 227 << 10, .scheduler = scheduler,
        .checks = EMU_CHECK_UNINIT, .seed = seed, .stall_limit = 1 << 16,
        .instruction_limit = 1 << 24,
    };
    struct device *d = calloc(1, sizeof *d);
    struct emu_observer observer = {.self = d, .watcher = d, .fault = hear_fault};

    if (observed)
        observer.access = hear_access;
    d->world = emu_world_create(&options, &observer);
    return d;
}

void device_destroy(struct device *d)
{
    emu_world_destroy(d->world);
    free(d->records);
    free(d->fault.text);
    free(d);
}

struct emu_world *device_world(const struct device *d)
{
    return d->world;
}

const struct record *device_records(const struct device *d, size_t *count)
{
    *count = d->num_records;
    return d->records;
}

const char *device_fault(const struct device *d)
{
    return d->fault.text;
}

struct emu_kernel *device_load(struct device *d, const char *symbol, const void *insns,
                               uint32_t num_insns, const void *constants, uint32_t constant_bytes,
                               uint32_t register_bytes, uint32_t num_predicates,
                               uint32_t param_bytes, uint32_t shared_bytes)
{
    return emu_kernel_load(d->world, &(struct emu_kernel_image){
        .symbol = symbol, .insns = insns, .num_insns = num_insns, .constants = constants,
        .constant_bytes = constant_bytes, .register_bytes = register_bytes,
        .num_predicates = num_predicates, .param_bytes = param_bytes,
        .shared_bytes = shared_bytes,
    });
}

void device_counters(const struct device *d, uint32_t rank, uint64_t out[8])
{
    struct emu_counters counters;

    emu_rank_counters(d->world, rank, &counters);
    _Static_assert(sizeof counters == 8 * sizeof *out, "eight counters");
    memcpy(out, &counters, sizeof counters);
}

/* -- registers: each keeps what was stored last, and a load counts it up ----------------------- */

struct registers {
    struct emu_world *world;
    uint64_t values[8], stores[64][3];   /* offset, bytes, value */
    int num_stores;
};

static uint64_t load_register(void *self, uint64_t offset, unsigned bytes)
{
    struct registers *r = self;

    emu_touch(r->world);
    return r->values[offset / 8]++ + (bytes == 8 ? 1ull << 40 : 0);
}

static void store_register(void *self, uint64_t offset, unsigned bytes, uint64_t value)
{
    struct registers *r = self;

    if (r->num_stores == 64)
        abort();
    memcpy(r->stores[r->num_stores++], (uint64_t[]){offset, bytes, value}, sizeof r->stores[0]);
    r->values[offset / 8] = value;
}

struct registers *registers_map(struct device *d, uint32_t rank, uint64_t *va)
{
    struct registers *r = calloc(1, sizeof *r);
    const struct emu_mmio mmio = {.self = r, .load = load_register, .store = store_register};

    r->world = d->world;
    if (emu_map_mmio(d->world, rank, &mmio, sizeof r->values, "doorbell", va) != EMU_OK)
        abort();
    return r;
}

int registers_stores(const struct registers *r, uint64_t out[64][3])
{
    memcpy(out, r->stores, sizeof r->stores);
    return r->num_stores;
}

/* -- an agent: stores a word at a time, or when it is forced to -------------------------------- */

struct late_word {
    struct emu_agent agent;
    struct emu_world *world;
    uint64_t va, when;       /* UINT64_MAX: when it is forced                                 */
    int stored, steps;
};

static bool late_live(const void *self)
{
    return !((const struct late_word *)self)->stored;
}

static bool late_force(void *self)
{
    struct late_word *late = self;
    const uint64_t one = 1;

    late->stored = 1;
    late->world->changed = true;
    return emu_host_write(late->world, 0, late->va, &one, sizeof one) == EMU_OK;
}

static bool late_step(void *self)
{
    struct late_word *late = self;

    late->steps++;
    return late->stored || emu_now(late->world) < late->when || late_force(late);
}

static bool late_idle(const void *self, enum emu_patience patience, uint64_t *wake)
{
    const struct late_word *late = self;

    (void)patience;
    if (!late->stored && late->when < *wake)
        *wake = late->when;
    return true;
}

struct late_word *late_word_join(struct device *d, uint64_t va, uint64_t when)
{
    struct late_word *late = calloc(1, sizeof *late);

    *late = (struct late_word){
        .agent = {.self = late, .live = late_live, .step = late_step, .idle = late_idle,
                  .force = when == UINT64_MAX ? late_force : NULL},
        .world = d->world, .va = va, .when = when,
    };
    emu_add_agent(d->world, &late->agent);
    return late;
}

int late_word_steps(const struct late_word *late)
{
    return late->steps;
}
