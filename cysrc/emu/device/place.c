/* SPDX-License-Identifier: MIT
 *
 * Grids, and where their CTAs are. */
#include "place.h"
#include "bits.h"
#include "bulk.h"
#include "fault.h"
#include "memory.h"
#include "observe.h"

#include <stdlib.h>
#include <string.h>

/* -- ends -------------------------------------------------------------------------------------- */

static void free_cta(struct emu_cta *cta)
{
    emu_bulk_free(cta->grid->world, cta->copies);
    emu_tell(cta->grid->world, &(struct emu_event){
        .kind = EMU_EVENT_CTA_END, .grid = cta->grid, .cta = cta,
    });
    free(cta->mbarriers);
    free(cta->register_files);
    free(cta->shared);
    free(cta->shared_valid);
    free(cta->warps);
    free(cta);
}

static void free_grid(struct emu_grid *grid)
{
    emu_bulk_free(grid->world, grid->copies);
    free(grid->params);
    free(grid->order);
    free(grid);
}

/* -- grids ------------------------------------------------------------------------------------- */

static uint32_t num_warps(uint32_t block)
{
    return (block + EMU_LANES - 1) / EMU_LANES;
}

static uint32_t shared_footprint(uint32_t shared_bytes)
{
    return shared_bytes + EMU_CTA_RESERVED;
}

/* Whether one CTA of that shape may exist at all. */
static bool fits_device(const struct emu_world *world, const struct emu_kernel *kernel,
                        uint32_t block, uint64_t smem)
{
    return block > 0 && block <= EMU_CTA_THREADS &&
           (kernel->max_threads == 0 || block <= kernel->max_threads) &&
           kernel->shared_bytes + smem <= world->options.cta_smem;
}

static uint32_t sm_shared(const struct emu_world *world)
{
    return shared_footprint(world->options.cta_smem);
}

static uint32_t ctas_per_sm(const struct emu_world *world, const struct emu_kernel *kernel,
                            uint32_t block, uint32_t smem)
{
    uint32_t by_threads = EMU_SM_THREADS / (num_warps(block) * EMU_LANES);
    uint32_t by_shared = sm_shared(world) / shared_footprint(kernel->shared_bytes + smem);
    uint32_t fit = by_threads < by_shared ? by_threads : by_shared;

    return fit < EMU_SM_CTAS ? fit : EMU_SM_CTAS;
}

int emu_max_resident(const struct emu_world *world, const struct emu_kernel *kernel, uint32_t block,
                     uint32_t smem, uint32_t *ctas)
{
    if (!fits_device(world, kernel, block, smem))
        return EMU_ERR_ARGUMENT;
    *ctas = ctas_per_sm(world, kernel, block, smem) * world->options.sms_per_rank;
    return EMU_OK;
}

/* CTAs are placed in an order of their own. */
static bool shuffle_order(struct emu_world *world, struct emu_grid *grid)
{
    grid->order = calloc(grid->num_ctas, sizeof *grid->order);
    if (!grid->order)
        return false;
    for (uint32_t i = 0; i < grid->num_ctas; i++) {
        uint32_t j = emu_random(world) % (i + 1);

        grid->order[i] = grid->order[j];
        grid->order[j] = i;
    }
    return true;
}

int emu_launch(struct emu_world *world, uint32_t rank, struct emu_kernel *kernel,
               const void *params, uint32_t param_bytes, uint32_t grid, uint32_t block,
               uint32_t smem, struct emu_grid **out)
{
    struct emu_grid *g, **end;

    if (world->faulted)
        return EMU_ERR_FAULT;
    if (rank >= world->options.num_ranks || grid == 0 || param_bytes != kernel->param_bytes ||
        !fits_device(world, kernel, block, smem))
        return EMU_ERR_ARGUMENT;
    g = calloc(1, sizeof *g);
    if (!g || !(g->params = calloc(1, param_bytes + 1))) {
        free(g);
        return EMU_ERR_MEMORY;
    }
    if (param_bytes)
        memcpy(g->params, params, param_bytes);
    g->world = world;
    g->rank = &world->ranks[rank];
    g->kernel = kernel;
    g->num_ctas = grid;
    g->block = block;
    g->shared_bytes = kernel->shared_bytes + smem;
    if (world->options.scheduler == EMU_SCHED_RANDOM && !shuffle_order(world, g)) {
        free_grid(g);
        return EMU_ERR_MEMORY;
    }
    for (end = &g->rank->grids; *end; end = &(*end)->next)
        ;
    *end = g;
    world->changes++;
    *out = g;
    return EMU_OK;
}

int emu_grid_done(const struct emu_grid *grid)
{
    return grid->finished == grid->num_ctas && !grid->copies_in_flight;
}

void emu_grid_free(struct emu_grid *grid)
{
    struct emu_rank *rank = grid->rank;
    struct emu_grid **g = &rank->grids;

    for (struct emu_cta **c = &rank->ctas; *c;) {
        struct emu_cta *cta = *c;

        if (cta->grid == grid) {
            *c = cta->next;
            free_cta(cta);
        } else {
            c = &cta->next;
        }
    }
    while (*g != grid)
        g = &(*g)->next;
    *g = grid->next;
    free_grid(grid);
}

/* -- CTAs -------------------------------------------------------------------------------------- */

/* All arrays of a warp in one piece of memory, registers first. */
static uint64_t warp_bytes(const struct emu_kernel *kernel)
{
    uint64_t words = kernel->num_predicates + 1 + kernel->num_defined;

    return (kernel->register_bytes + 4 * words + 63) / 64 * 64;
}

static struct emu_cta *new_cta(struct emu_grid *grid, uint32_t index, uint32_t sm)
{
    const struct emu_kernel *kernel = grid->kernel;
    uint64_t stride = warp_bytes(kernel);
    struct emu_cta *cta = calloc(1, sizeof *cta);
    void *files = NULL;

    if (!cta)
        return NULL;
    cta->grid = grid;
    cta->index = index;
    cta->sm = sm;
    cta->num_warps = cta->live_warps = num_warps(grid->block);
    cta->shared_bytes = grid->shared_bytes;
    cta->warps = calloc(cta->num_warps, sizeof *cta->warps);
    cta->shared_valid = calloc(emu_bitmap_words(grid->shared_bytes) + 1, sizeof(uint64_t));
    if (!cta->warps || !cta->shared_valid || posix_memalign(&files, 64, stride * cta->num_warps)) {
        free_cta(cta);
        return NULL;
    }
    cta->register_files = files;
    if (posix_memalign((void **)&cta->shared, 128, grid->shared_bytes + 1)) {
        cta->shared = NULL;
        free_cta(cta);
        return NULL;
    }
    emu_fill_pattern(grid->world, cta->shared, grid->shared_bytes);
    emu_fill_pattern(grid->world, cta->register_files, stride * cta->num_warps);
    for (uint32_t w = 0; w < cta->num_warps; w++) {
        struct emu_warp *warp = &cta->warps[w];
        uint32_t lanes = grid->block - w * EMU_LANES;

        warp->cta = cta;
        warp->index = w;
        warp->live = lanes >= EMU_LANES ? EMU_ALL_LANES : (1u << lanes) - 1;
        warp->registers = cta->register_files + w * stride;
        warp->predicates = (uint32_t *)(warp->registers + kernel->register_bytes);
        warp->defined = warp->predicates + kernel->num_predicates + 1;
        memset(warp->defined, 0, kernel->num_defined * sizeof *warp->defined);
        warp->defined[EMU_DEFINED_ALWAYS] = EMU_ALL_LANES;
        warp->num_groups = 1;
        warp->groups[0] = (struct emu_group){.mask = warp->live};
    }
    return cta;
}

static struct emu_sm *free_sm(const struct emu_world *world, struct emu_rank *rank,
                              const struct emu_grid *grid)
{
    struct emu_sm *best = NULL;

    for (uint32_t i = 0; i < world->options.sms_per_rank; i++) {
        struct emu_sm *sm = &rank->sms[i];

        if (sm->ctas < EMU_SM_CTAS &&
            sm->threads + num_warps(grid->block) * EMU_LANES <= EMU_SM_THREADS &&
            sm->shared + shared_footprint(grid->shared_bytes) <= sm_shared(world) &&
            (!best || sm->threads < best->threads))
            best = sm;
    }
    return best;
}

/* Places CTAs while there is room, in launch order: a grid begins when all of those before it have
 * been placed.  At random, a CTA may have to wait for another round. */
static bool place_ctas(struct emu_world *world, struct emu_rank *rank)
{
    for (struct emu_grid *grid = rank->grids; grid; grid = grid->next)
        while (grid->placed < grid->num_ctas) {
            struct emu_sm *sm = free_sm(world, rank, grid);
            struct emu_cta *cta, **end = &rank->ctas;

            if (!sm)
                return true;
            if (grid->order && emu_random(world) % 4 == 0) {
                world->deferred = true;
                return true;
            }
            cta = new_cta(grid, grid->order ? grid->order[grid->placed] : grid->placed,
                          sm - rank->sms);
            if (!cta)
                return false;
            emu_tell(world, &(struct emu_event){
                .kind = EMU_EVENT_CTA_BEGIN, .grid = grid, .cta = cta,
            });
            sm->ctas++;
            sm->threads += cta->num_warps * EMU_LANES;
            sm->shared += shared_footprint(cta->shared_bytes);
            while (*end)
                end = &(*end)->next;
            *end = cta;
            grid->placed++;
            world->changed = true;
        }
    return true;
}

/* The CTA, taken out of its rank's list, is no more.  False: a fault. */
static bool retire(struct emu_cta *cta)
{
    struct emu_sm *sm = &cta->grid->rank->sms[cta->sm];
    bool left = emu_bulk_leave(cta);

    sm->ctas--;
    sm->threads -= cta->num_warps * EMU_LANES;
    sm->shared -= shared_footprint(cta->shared_bytes);
    cta->grid->finished++;
    cta->grid->world->changed = true;
    free_cta(cta);
    return left;
}

/* Takes CTAs without live warps out.  False: a fault. */
static bool retire_ctas(struct emu_rank *rank)
{
    for (struct emu_cta **c = &rank->ctas; *c;) {
        struct emu_cta *cta = *c;

        if (cta->live_warps) {
            c = &cta->next;
            continue;
        }
        *c = cta->next;
        if (!retire(cta))
            return false;
    }
    return true;
}

bool emu_place_ctas(struct emu_world *world)
{
    world->deferred = false;
    for (uint32_t r = 0; r < world->options.num_ranks; r++)
        if (!place_ctas(world, &world->ranks[r])) {
            emu_fault_memory(world);
            return false;
        }
    return true;
}

bool emu_retire_ctas(struct emu_world *world)
{
    for (uint32_t r = 0; r < world->options.num_ranks; r++)
        if (!retire_ctas(&world->ranks[r]))
            return false;
    return true;
}

bool emu_any_cta(const struct emu_world *world)
{
    for (uint32_t r = 0; r < world->options.num_ranks; r++) {
        if (world->ranks[r].ctas)
            return true;
        for (const struct emu_grid *grid = world->ranks[r].grids; grid; grid = grid->next)
            if (grid->placed < grid->num_ctas)
                return true;
    }
    return false;
}

void emu_free_grids(struct emu_rank *rank)
{
    while (rank->ctas) {
        struct emu_cta *cta = rank->ctas;

        rank->ctas = cta->next;
        free_cta(cta);
    }
    while (rank->grids) {
        struct emu_grid *grid = rank->grids;

        rank->grids = grid->next;
        free_grid(grid);
    }
}
