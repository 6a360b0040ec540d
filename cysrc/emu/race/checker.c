/* SPDX-License-Identifier: MIT
 *
 * The checker's life, and what its world tells it. */
#include "access.h"
#include "find.h"
#include "old.h"
#include "copies.h"
#include "grids.h"
#include "sync.h"

#include <stdlib.h>

/* -- life -------------------------------------------------------------------------------------- */

struct race_checker *race_create(const struct race_options *options)
{
    struct race_checker *c = calloc(1, sizeof *c);

    if (!c)
        return NULL;
    c->options = *options;
    c->extent.num_planes = options->strict ? RACE_PLANES : 1;
    c->extent.pool = &c->pool;
    c->last_found = &c->found;
    c->free_slots = calloc(options->num_ranks, sizeof *c->free_slots);
    if (!c->free_slots) {
        race_destroy(c);
        return NULL;
    }
    return c;
}

void race_destroy(struct race_checker *c)
{
    if (!c)
        return;
    while (c->shadows)
        race_shadow_free(c->shadows);
    while (c->grids) {
        struct race_grid *next = c->grids->next;

        race_clock_drop(c->grids->launch);
        race_clock_drop(c->grids->end);
        free(c->grids);
        c->grids = next;
    }
    for (uint32_t i = 0; i < c->num_slots; i++)
        free(c->slots[i].tenants);
    for (uint32_t r = 0; c->free_slots && r < c->options.num_ranks; r++)
        free(c->free_slots[r].of);
    race_found_free(c);
    race_history_free(&c->history);
    race_old_destroy(c);
    race_pool_empty(&c->pool);
    free(c->free_slots);
    free(c->slots);
    free(c);
}

bool race_set_world(struct race_checker *c, struct emu_world *world)
{
    c->world = world;
    return !c->options.weak || race_old_init(c, world);
}

bool race_is_whole(const struct race_checker *c)
{
    return !c->failed;
}

const struct race_found *race_first(const struct race_checker *c)
{
    return c->found;
}

/* -- what the world tells ---------------------------------------------------------------------- */

static void hear_access(void *self, const struct emu_access *access)
{
    struct race_checker *c = self;

    if (!c->failed)
        race_look_at(c, access);
}

static void hear_event(void *self, const struct emu_event *event)
{
    struct race_checker *c = self;

    if (!c->failed)
        race_hear(c, event);
    else if (event->kind == EMU_EVENT_CTA_END)
        race_cta_free(event->cta);
    else if (event->kind == EMU_EVENT_COPY_END)
        race_copy_free(event->copy);
}

static void hear_loaded(void *self, struct emu_exec *x, const struct emu_instr *op)
{
    struct race_checker *c = self;

    if (!c->failed)
        race_old_load(c, x, op);
}

/* Bytes that a bulk copy has read. */
static void hear_copied(void *self, uint8_t *bytes)
{
    struct race_checker *c = self;

    if (!c->failed)
        race_old_copy(c, bytes);
}

void race_observe(struct race_checker *c, struct emu_observer *observer)
{
    observer->watcher = c;
    observer->access = hear_access;
    observer->event = hear_event;
    if (c->options.weak) {
        observer->loaded = hear_loaded;
        observer->copied = hear_copied;
    }
}
