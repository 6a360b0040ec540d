/* SPDX-License-Identifier: MIT
 *
 * Worlds and grids: launches, placing CTAs on SMs, rounds, virtual time. */
#include "bits.h"
#include "bulk.h"
#include "interp.h"
#include "kernel.h"
#include "memory.h"
#include "report.h"
#include "warp.h"

#include <stdlib.h>
#include <string.h>

#define LONGEST_PAUSE 200                /* rounds; random scheduler                          */

/* -- worlds ------------------------------------------------------------------------------------ */

struct emu_world *emu_world_create(const struct emu_options *options)
{
    struct emu_world *world = calloc(1, sizeof *world);

    if (!world || options->num_ranks == 0 || options->sms_per_rank == 0 ||
        options->scheduler >= EMU_SCHED_COUNT)
        goto fail;
    world->options = *options;
    world->random = options->seed;
    world->ranks = calloc(options->num_ranks, sizeof *world->ranks);
    if (!world->ranks)
        goto fail;
    for (uint32_t r = 0; r < options->num_ranks; r++) {
        struct emu_rank *rank = &world->ranks[r];

        rank->index = r;
        rank->sms = calloc(options->sms_per_rank, sizeof *rank->sms);
        if (!rank->sms)
            goto fail;
    }
    world->fault.text = calloc(1, 1);    /* a report that gets no memory is empty, not missing */
    if (!world->fault.text || emu_memory_init(world))
        goto fail;
    emu_choose_run_group(world);
    return world;
fail:
    emu_world_destroy(world);
    return NULL;
}

static void free_cta(struct emu_cta *cta)
{
    emu_bulk_free(cta->grid->world, cta->copies);
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

void emu_world_destroy(struct emu_world *world)
{
    if (!world)
        return;
    for (uint32_t r = 0; world->ranks && r < world->options.num_ranks; r++) {
        struct emu_rank *rank = &world->ranks[r];

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
        free(rank->sms);
    }
    if (world->ranks)
        emu_memory_free(world);
    while (world->kernels) {
        struct emu_kernel *kernel = world->kernels;
        world->kernels = kernel->next;
        emu_kernel_free(kernel);
    }
    free(world->ranks);
    free(world->turns);
    free(world->fault.text);
    free(world);
}

const struct emu_fault *emu_world_fault(const struct emu_world *world)
{
    return world->faulted ? &world->fault : NULL;
}

void emu_rank_counters(const struct emu_world *world, uint32_t rank, struct emu_counters *out)
{
    *out = world->ranks[rank].counters;
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

/* -- rounds ------------------------------------------------------------------------------------ */

static bool cta_awake(const struct emu_cta *cta)
{
    for (uint32_t w = 0; w < cta->num_warps; w++)
        for (uint32_t i = 0; i < cta->warps[w].num_groups; i++)
            if (!emu_blocked(&cta->warps[w].groups[i]))
                return true;
    return false;
}

/* Whether the group ran on and on, without polling anything, while nothing changed. */
static bool runs_for_ever(const struct emu_world *world, const struct emu_warp *warp,
                          const struct emu_group *group)
{
    return group->quiet > world->options.stall_limit && group->quiet_at == world->changes &&
           !world->changed && !emu_group_spins(warp, group, EMU_SPIN_REPEATS);
}

/* Random scheduler: whether a warp or CTA is passed over in this round.  Mostly that is for a round
 * or two, now and then for many: enough for others to run far ahead. */
static bool passed_over(struct emu_world *world, uint32_t *pause)
{
    uint64_t random = emu_random(world);

    if (*pause == 0 && random % 4 == 0)
        *pause = 1 + (random >> 8) % (random % 64 ? 2 : LONGEST_PAUSE);
    if (*pause == 0)
        return false;
    --*pause;
    return true;
}

/* One turn of each warp; at random, from any warp on, and some are passed over.  False: a fault. */
static bool run_cta(struct emu_world *world, struct emu_cta *cta)
{
    bool random = world->options.scheduler == EMU_SCHED_RANDOM;
    uint32_t first = random ? emu_random(world) % cta->num_warps : 0;
    struct emu_exec x = {
        .world = world, .rank = cta->grid->rank, .grid = cta->grid, .kernel = cta->grid->kernel,
        .cta = cta, .check_uninit = world->options.checks & EMU_CHECK_UNINIT,
    };

    for (uint32_t w = 0; w < cta->num_warps; w++) {
        struct emu_warp *warp = &cta->warps[(first + w) % cta->num_warps];

        if (!warp->live || (random && passed_over(world, &warp->pause)))
            continue;
        x.warp = warp;
        x.executed = 0;
        if (emu_warp_turn(&x) == EMU_RUN_FAULT)
            return false;
        if (x.executed > world->round_length)
            world->round_length = x.executed;
        if (!warp->live)
            cta->live_warps--;
        cta->grid->executed += x.executed;
        if (cta->grid->executed > world->options.instruction_limit) {
            emu_fault_instruction_limit(&x);
            return false;
        }
        for (uint32_t i = 0; i < warp->num_groups; i++)
            if (runs_for_ever(world, warp, &warp->groups[i])) {
                emu_fault_never_ending(world, warp, &warp->groups[i]);
                return false;
            }
    }
    if (cta->live_warps && !cta_awake(cta)) {
        emu_fault_deadlock(cta);
        return false;
    }
    return true;
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

static bool run_in_order(struct emu_world *world)
{
    for (uint32_t r = 0; r < world->options.num_ranks; r++)
        for (struct emu_cta *cta = world->ranks[r].ctas; cta; cta = cta->next)
            if (!run_cta(world, cta))
                return false;
    return true;
}

static bool run_shuffled(struct emu_world *world)
{
    uint32_t n = 0;

    for (uint32_t r = 0; r < world->options.num_ranks; r++)
        for (struct emu_cta *cta = world->ranks[r].ctas; cta; cta = cta->next) {
            uint32_t j = emu_random(world) % (n + 1);

            if (n == world->max_turns) {
                uint32_t max = n ? 2 * n : 64;
                struct emu_cta **grown = realloc(world->turns, max * sizeof *grown);

                if (!grown) {
                    emu_fault_memory(world);
                    return false;
                }
                world->turns = grown;
                world->max_turns = max;
            }
            world->turns[n] = world->turns[j];
            world->turns[j] = cta;
            n++;
        }
    for (uint32_t i = 0; i < n; i++)
        if (!passed_over(world, &world->turns[i]->pause) && !run_cta(world, world->turns[i]))
            return false;
    return true;
}

/* A turn of every CTA, then what follows from it.  False: a fault. */
static bool run_round(struct emu_world *world)
{
    bool ran = world->options.scheduler == EMU_SCHED_RANDOM ? run_shuffled(world)
                                                            : run_in_order(world);

    for (uint32_t r = 0; ran && r < world->options.num_ranks; r++)
        ran = retire_ctas(&world->ranks[r]);
    return ran && (!world->copies_in_flight || emu_bulk_round(world));
}

/* -- waiting ----------------------------------------------------------------------------------- */

/* A place in the list of all groups; starts as zeros. */
struct cursor {
    uint32_t rank, warp, group;
    struct emu_cta *cta;
};

static struct emu_group *next_live(const struct emu_world *world, struct cursor *at,
                                   struct emu_warp **warp)
{
    for (; at->rank < world->options.num_ranks; at->rank++, at->cta = NULL) {
        if (!at->cta)
            at->cta = world->ranks[at->rank].ctas;
        for (; at->cta; at->cta = at->cta->next, at->warp = 0)
            for (; at->warp < at->cta->num_warps; at->warp++, at->group = 0)
                if (at->group < at->cta->warps[at->warp].num_groups) {
                    *warp = &at->cta->warps[at->warp];
                    return &(*warp)->groups[at->group++];
                }
    }
    return NULL;
}

uint64_t emu_next_deadline(const struct emu_world *world)
{
    uint64_t next = UINT64_MAX;
    struct cursor at = {0};
    struct emu_warp *warp;
    struct emu_group *g;

    while ((g = next_live(world, &at, &warp)))
        for (uint32_t left = emu_blocked(g) ? 0 : g->mask; left; left &= left - 1) {
            uint64_t deadline = warp->polls[__builtin_ctz(left)].deadline;

            if (deadline > world->now && deadline < next)
                next = deadline;
        }
    return next;
}

/* What has to be known of a group before it counts as waiting. */
enum patience {
    FOR_COPIES,              /* late-async: that it came back to its poll                     */
    FOR_TIME,                /* some group has a deadline, to which time may jump             */
    FOR_EVER                 /* nothing would ever happen again                               */
};

/* Whether nothing but time, a copy or another's store can get the group further.  A poll loop may
 * count its turns and give up by itself, so without a clock in sight it is watched for longer; a
 * loop that waits for the time by way of other warps polls nothing itself. */
static bool waits(const struct emu_world *world, const struct emu_warp *warp,
                  const struct emu_group *group, enum patience patience)
{
    uint64_t limit = world->options.stall_limit;

    if (emu_blocked(group))
        return true;
    if (group->state == EMU_WAIT_COPIES)
        return emu_bulk_waits(warp, group);
    if (patience == FOR_COPIES)
        return emu_group_spins(warp, group, EMU_POLL_REPEATS);
    if (emu_group_spins(warp, group, EMU_SPIN_REPEATS))
        return patience == FOR_TIME || group->quiet >= limit / 64;
    return patience == FOR_TIME && group->quiet >= limit / 4;
}

/* Whether some group, not asleep, is on the way; *wake becomes the first sleeper's time. */
static bool somebody_runs(const struct emu_world *world, enum patience patience, uint64_t *wake)
{
    struct cursor at = {0};
    struct emu_warp *warp;
    struct emu_group *g;

    *wake = UINT64_MAX;
    while ((g = next_live(world, &at, &warp))) {
        if (waits(world, warp, g, patience))
            continue;
        if (g->state != EMU_SLEEPING)
            return true;
        if (g->wake < *wake)
            *wake = g->wake;
    }
    return false;
}

/* What a round without a change means: somebody is still on the way, or everybody waits.  If all
 * but sleepers wait, the first sleeper wakes now; if all wait, late copies go on. */
static enum emu_progress judge_quiet_round(struct emu_world *world)
{
    uint64_t wake;

    if (world->deferred ||
        (world->copies_in_flight && world->options.scheduler == EMU_SCHED_RANDOM))
        return EMU_RUNNING;
    if (world->copies_in_flight) {
        if (somebody_runs(world, FOR_COPIES, &wake))
            return EMU_RUNNING;
        if (wake == UINT64_MAX)
            return emu_bulk_force(world) ? EMU_RUNNING : EMU_FAULTED;
    } else {
        /* Deadlines take longer to look for than a group that runs. */
        if (somebody_runs(world, FOR_TIME, &wake) ||
            (emu_next_deadline(world) == UINT64_MAX && somebody_runs(world, FOR_EVER, &wake)))
            return EMU_RUNNING;
        if (wake == UINT64_MAX)
            return EMU_STALLED;
    }
    if (wake > world->now)
        world->now = wake;
    return EMU_RUNNING;
}

enum emu_progress emu_step(struct emu_world *world)
{
    enum emu_progress found = EMU_RUNNING;
    bool busy = false;

    if (world->faulted)
        return EMU_FAULTED;
    world->round_length = 1;
    world->deferred = false;
    for (uint32_t r = 0; r < world->options.num_ranks; r++) {
        struct emu_rank *rank = &world->ranks[r];

        if (!place_ctas(world, rank)) {
            emu_fault_memory(world);
            return EMU_FAULTED;
        }
        busy |= rank->ctas != NULL;
    }
    if (!busy && !world->copies_in_flight && !world->deferred)
        return EMU_IDLE;
    if (!run_round(world))
        return EMU_FAULTED;
    world->now += world->round_length;
    if (!world->changed)
        found = judge_quiet_round(world);
    if (world->changed) {
        world->changed = false;
        world->changes++;
    }
    return found;
}

uint64_t emu_now(const struct emu_world *world)
{
    return world->now;
}

void emu_advance(struct emu_world *world, uint64_t to)
{
    if (to > world->now)
        world->now = to;
    emu_touch(world);
}

void emu_touch(struct emu_world *world)
{
    world->changes++;
}

void emu_stall(struct emu_world *world)
{
    if (!world->faulted)
        emu_fault_livelock(world);
}
