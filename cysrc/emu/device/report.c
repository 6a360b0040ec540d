/* SPDX-License-Identifier: MIT
 *
 * What went wrong, where, in the words of the person who wrote the kernel. */
#include "bits.h"
#include "bulk.h"
#include "fault.h"
#include "mbarrier.h"
#include "memory.h"
#include "warp.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Lines of a list of groups: of those that wait, each may be the one that explains the others. */
#define MOST_WAITING 64
#define MOST_GOING_ON 16
#define PLACES 8                         /* for which a list has room, with differing lines   */
#define MOST_SPANS 4                     /* runs of CTAs in one of them                       */
#define MOST_POLLS 4                     /* polled addresses of one group                     */

/* -- text -------------------------------------------------------------------------------------- */

/* A report whose memory runs out stays short. */
static void vappend(struct emu_fault *fault, const char *format, va_list args)
{
    size_t used = fault->text ? strlen(fault->text) : 0;
    va_list again;
    char *grown;
    int length;

    va_copy(again, args);
    length = vsnprintf(NULL, 0, format, again);
    va_end(again);
    grown = length < 0 ? NULL : realloc(fault->text, used + length + 1);
    if (!grown)
        return;
    vsnprintf(grown + used, length + 1, format, args);
    fault->text = grown;
}

static void append(struct emu_fault *fault, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void append(struct emu_fault *fault, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vappend(fault, format, args);
    va_end(args);
}

static const struct emu_line *line_at(const struct emu_kernel *kernel, uint32_t pc)
{
    int32_t line = kernel->line_of[pc];

    return line < 0 ? NULL : &kernel->lines[line];
}

static const char *file_at(const struct emu_kernel *kernel, uint32_t pc)
{
    const struct emu_line *line = line_at(kernel, pc);

    return line && line->file < kernel->num_files ? kernel->files[line->file] : kernel->symbol;
}

static uint32_t source_line(const struct emu_kernel *kernel, uint32_t pc)
{
    const struct emu_line *line = line_at(kernel, pc);

    return line ? line->line : 0;
}

static void append_place(struct emu_fault *fault, const struct emu_kernel *kernel, uint32_t pc)
{
    const struct emu_line *line = line_at(kernel, pc);

    append(fault, "%s:%u (line %u of the rendered text): %s", file_at(kernel, pc),
           source_line(kernel, pc), line ? line->ptx_line : 0, kernel->texts[pc]);
}

/* -- the place of a fault ---------------------------------------------------------------------- */

static void begin(struct emu_fault *fault, const char *kind)
{
    fault->rank = fault->cta = fault->warp = fault->lane = -1;
    snprintf(fault->kind, sizeof fault->kind, "%s", kind);
    append(fault, "%s: ", kind);
}

static void set_thread(struct emu_fault *fault, const struct emu_grid *grid, uint32_t pc,
                       uint32_t cta, uint32_t warp, int lane)
{
    const struct emu_line *line = line_at(grid->kernel, pc);

    snprintf(fault->kernel, sizeof fault->kernel, "%s", grid->kernel->symbol);
    snprintf(fault->file, sizeof fault->file, "%s", file_at(grid->kernel, pc));
    fault->line = source_line(grid->kernel, pc);
    fault->ptx_line = line ? line->ptx_line : 0;
    fault->rank = grid->rank->index;
    fault->cta = cta;
    fault->warp = warp;
    fault->lane = lane;
}

static void set_place(struct emu_fault *fault, const struct emu_warp *warp, uint32_t pc, int lane)
{
    set_thread(fault, warp->cta->grid, pc, warp->cta->index, warp->index, lane);
}

/* The lines that every fault of one lane ends with. */
static void end_at_lane(struct emu_fault *fault, const struct emu_finding *f)
{
    append(fault, "\n  at ");
    append_place(fault, f->exec->kernel, f->exec->pc);
    if (f->other >= 0) {
        append(fault, "\n  and ");
        append_place(fault, f->exec->kernel, f->other);
    }
    append(fault, "\n  kernel %s, rank %d, CTA %d, warp %d, lane %d, active lanes %#x",
           fault->kernel, fault->rank, fault->cta, fault->warp, fault->lane, f->exec->mask);
}

static void report_lane(struct emu_fault *fault, const struct emu_finding *f)
{
    begin(fault, f->kind);
    set_place(fault, f->exec->warp, f->exec->pc, f->lane);
    append(fault, "%s", f->text);
    end_at_lane(fault, f);
}

static void report_copy(struct emu_fault *fault, const struct emu_finding *f)
{
    const struct emu_copy *copy = f->copy;

    begin(fault, f->kind);
    set_thread(fault, copy->grid, copy->pc, copy->cta_index, copy->warp, copy->lane);
    append(fault, "bulk %s of %u bytes %s %#" PRIx64 " %s %#x of shared memory: %s",
           copy->load ? "load" : "store", copy->bytes, copy->load ? "from" : "to", copy->global,
           copy->load ? "to" : "from", copy->shared, f->text);
    append(fault, "\n  issued at ");
    append_place(fault, copy->grid->kernel, copy->pc);
    append(fault, "\n  kernel %s, rank %d, CTA %d, warp %d, lane %d", fault->kernel, fault->rank,
           fault->cta, fault->warp, fault->lane);
}

/* -- addresses --------------------------------------------------------------------------------- */

static void append_segment(struct emu_fault *fault, const struct emu_mapping *m, uint32_t rank)
{
    append(fault, "'%s'", m->segment->name);
    if (m->segment->owner != rank)
        append(fault, " of rank %u", m->segment->owner);
}

/* Where `va` is: segment and offset, or what lies before it. */
static void append_address(struct emu_fault *fault, const struct emu_rank *rank, unsigned space,
                           const struct emu_cta *cta, uint64_t va)
{
    const struct emu_mapping *m;

    if (space == EMU_SP_SHARED) {
        append(fault, "%#" PRIx64 " of %u bytes of shared memory", va, cta->shared_bytes);
        return;
    }
    append(fault, "%#" PRIx64 ", ", va);
    m = emu_mapping_at(rank, va);
    if (!m)
        m = emu_mapping_below(rank, va);
    if (m) {
        uint64_t offset = va - m->va, bytes = m->segment->bytes;

        append_segment(fault, m, rank->index);
        if (va < m->va)
            append(fault, ", %" PRIu64 " bytes before its start", m->va - va);
        else
            append(fault, " + %#" PRIx64, offset);
        if (va >= m->va && offset >= bytes)
            append(fault, ", %" PRIu64 " bytes behind its end", offset - bytes);
        append(fault, " (%" PRIu64 " bytes)", bytes);
        return;
    }
    if (emu_page_at(rank, va) == EMU_PAGE_FREED) {
        append(fault, "where rank %u had memory that it freed or unmapped", rank->index);
        return;
    }
    append(fault, "which is no address of rank %u", rank->index);
    for (uint32_t r = 0; r < cta->grid->world->options.num_ranks; r++) {
        const struct emu_rank *other = &cta->grid->world->ranks[r];

        if (r != rank->index && (m = emu_mapping_at(other, va))) {
            append(fault, ": rank %u has '%s' there", r, m->segment->name);
            return;
        }
    }
}

static const char *access_name(const struct emu_instr *op)
{
    switch (op->op) {
    case EMU_OP_LD:         return "load";
    case EMU_OP_ST:         return "store";
    case EMU_OP_BULK_LOAD:  return "bulk load";
    case EMU_OP_BULK_STORE: return "bulk store";
    case EMU_OP_ATOM:
    case EMU_OP_RED:        return "atomic";
    default:                return "mbarrier operation";
    }
}

static void report_address(struct emu_fault *fault, const struct emu_finding *f)
{
    const struct emu_exec *x = f->exec;
    const struct emu_mapping *m = f->space == EMU_SP_SHARED ? NULL : emu_mapping_at(x->rank, f->va);
    bool mmio = m && f->address == EMU_FAULT_UNREACHABLE &&
                emu_mapping_has_registers(m, f->va, f->bytes);
    bool dead = m && !m->host && !m->mmio;
    bool freed = dead || (f->space != EMU_SP_SHARED &&
                          emu_page_at(x->rank, f->va) == EMU_PAGE_FREED);
    /* Shared memory that is there and yet out of reach is an mbarrier. */
    bool object = f->space == EMU_SP_SHARED && f->address == EMU_FAULT_UNREACHABLE &&
                  f->va + f->bytes <= x->cta->shared_bytes;

    begin(fault, f->address == EMU_FAULT_MISALIGNED ? "misaligned" :
                 f->address == EMU_FAULT_READ_ONLY ? "read-only" :
                 f->address == EMU_FAULT_UNWRITTEN ? "uninitialised" :
                 mmio ? "mmio" : object ? "mbarrier" : freed ? "use-after-free" : "out-of-bounds");
    set_place(fault, x->warp, x->pc, f->lane);
    append(fault, "%s of %" PRIu64 " bytes at ", access_name(emu_exec_op(x)), f->bytes);
    append_address(fault, x->rank, f->space, x->cta, f->va);
    if (f->address == EMU_FAULT_UNWRITTEN) {
        const uint64_t *valid = m ? m->valid : x->cta->shared_valid;

        append(fault, ": nobody wrote byte %" PRIu64 " of it",
               emu_bits_run(valid, m ? f->va - m->va : f->va, f->bytes));
    } else if (mmio) {
        append(fault, ": registers of a device are there, which lanes load and store, no more");
    } else if (object) {
        append(fault, ": an mbarrier is there, which only mbarrier instructions may use");
    } else if (f->address == EMU_FAULT_READ_ONLY) {
        append(fault, ": the memory is read-only");
    } else if (f->address == EMU_FAULT_UNREACHABLE && dead) {
        append(fault, ": %s", m->unmapped ? "it was unmapped" : "its owner freed it");
    }
    end_at_lane(fault, f);
}

/* -- waiting ----------------------------------------------------------------------------------- */

/* Whether a lane below `lane` polls the same address. */
static bool shown_already(const struct emu_warp *warp, uint32_t lanes, unsigned lane)
{
    for (uint32_t left = lanes & ((1u << lane) - 1); left; left &= left - 1)
        if (warp->poll_address[__builtin_ctz(left)] == warp->poll_address[lane])
            return true;
    return false;
}

/* What is there now; it is what the lane last saw, as nothing changed since. */
static void append_seen(struct emu_fault *fault, const struct emu_warp *warp,
                        const struct emu_instr *op, uint64_t va)
{
    const struct emu_rank *rank = warp->cta->grid->rank;
    const struct emu_mapping *m = emu_mapping_at(rank, va);
    unsigned bytes = op->flags & EMU_F_WHOLE ? op->size : op->elem;
    struct emu_mbarrier object;
    uint64_t value[2] = {0};

    if (op->op == EMU_OP_MBAR_WAIT && emu_mbarrier_read(warp->cta, va, &object)) {
        append(fault, "the mbarrier at %#" PRIx64 " of shared memory (phase parity %u, %u of %u "
               "arrivals pending, tx-count %d bytes, %u bulk copies in flight)", va, object.parity,
               object.pending, object.expected, object.tx, warp->cta->grid->copies_in_flight);
        return;
    }
    append_address(fault, rank, op->space, warp->cta, va);
    if (op->space == EMU_SP_SHARED && va + bytes <= warp->cta->shared_bytes)
        memcpy(value, warp->cta->shared + va, bytes);
    else if (op->space == EMU_SP_GLOBAL && m && emu_mapping_holds(m, va, bytes))
        memcpy(value, m->host + (va - m->va), bytes);
    else
        return;                          /* freed since */
    if (value[1])
        append(fault, " = %#" PRIx64 "%016" PRIx64, value[1], value[0]);
    else
        append(fault, " = %#" PRIx64, value[0]);
}

static void append_polls(struct emu_fault *fault, const struct emu_warp *warp, int lane)
{
    const struct emu_kernel *kernel = warp->cta->grid->kernel;
    const struct emu_poll *poll = &warp->polls[lane];
    const struct emu_instr *op = &kernel->ops[poll->pc];
    unsigned shown = 0;

    append(fault, "poll ");
    if (op->op == EMU_OP_SETP)
        append(fault, "%%globaltimer, ");
    else
        for (uint32_t left = poll->mask; left && shown <= MOST_POLLS; left &= left - 1) {
            unsigned l = __builtin_ctz(left);

            if (shown_already(warp, poll->mask, l))
                continue;
            if (shown++ == MOST_POLLS)
                append(fault, "..., ");
            else {
                append_seen(fault, warp, op, warp->poll_address[l]);
                append(fault, ", ");
            }
        }
    append(fault, "at ");
    append_place(fault, kernel, poll->pc);
}

/* The lane whose poll is what the group does; -1: it does not poll. */
static int polling(const struct emu_warp *warp, const struct emu_group *group)
{
    int lane = emu_polling_lane(warp, group);

    return lane >= 0 && !emu_blocked(group) && group->state != EMU_WAIT_COPIES &&
                   emu_group_spins(warp, group, EMU_SPIN_REPEATS)
               ? lane
               : -1;
}

static void append_waiter(struct emu_fault *fault, const struct emu_warp *warp,
                          const struct emu_group *group)
{
    const struct emu_cta *cta = warp->cta;
    const struct emu_barrier *barrier = &cta->barriers[group->barrier];
    int lane = polling(warp, group);

    append(fault, "lanes %#x ", group->mask);
    if (lane >= 0) {
        append_polls(fault, warp, lane);
        return;
    }
    switch (group->state) {
    case EMU_WAIT_WARP:
        append(fault, "wait for lanes %#x at ", group->member & warp->live & ~group->mask);
        break;
    case EMU_WAIT_GATHER:
        append(fault, "wait for lanes %#x of their warp at ", warp->live & ~group->mask);
        break;
    case EMU_WAIT_BARRIER:
        append(fault, "wait at barrier %u (%u of %u threads are there, %u warps have exited), ",
               group->barrier, barrier->arrived, barrier->expected,
               cta->num_warps - cta->live_warps);
        break;
    case EMU_WAIT_COPIES:
        append(fault, "wait for %u bulk stores at ", emu_bulk_in_flight(warp, group));
        break;
    default:
        append(fault, group->state == EMU_SLEEPING ? "sleep at " : "run at ");
        break;
    }
    append_place(fault, cta->grid->kernel, group->pc);
}

/* -- all groups -------------------------------------------------------------------------------- */

struct cta_warps { uint32_t cta, warps; };

/* Groups of one grid that one line describes. */
struct alike {
    const struct emu_grid *grid;
    uint32_t pc;             /* where they are                                                */
    char *text;              /* what they do there                                            */
    struct cta_warps *where;
    uint32_t num_where, max_where;
};

struct list {
    struct alike rows[MOST_WAITING];
    unsigned num_rows, most_rows;
    uint32_t left_out;       /* groups                                                        */
};

static struct alike *find_row(struct list *list, const struct emu_grid *grid, uint32_t pc,
                              const char *text)
{
    for (unsigned i = 0; i < list->num_rows; i++) {
        struct alike *row = &list->rows[i];

        if (row->grid == grid && row->pc == pc && strcmp(row->text, text) == 0)
            return row;
    }
    return NULL;
}

/* Takes `text` over.  NULL: the list is full. */
static struct alike *add_row(struct list *list, const struct emu_grid *grid, uint32_t pc,
                             char *text)
{
    struct alike *row;

    if (list->num_rows == list->most_rows) {
        free(text);
        return NULL;
    }
    row = &list->rows[list->num_rows++];
    *row = (struct alike){.grid = grid, .pc = pc, .text = text};
    return row;
}

/* The row of a group; NULL: the list, or the memory, has no room for it.  What is different in each
 * of many groups at one place (addresses and values, mostly) is shown of the first few. */
static struct alike *row_of(struct list *list, const struct emu_warp *warp,
                            const struct emu_group *group)
{
    const struct emu_grid *grid = warp->cta->grid;
    int lane = polling(warp, group);
    uint32_t pc = lane < 0 ? group->pc : warp->polls[lane].pc;
    struct emu_fault waiter = {0}, more = {0};
    struct alike *row;
    unsigned there = 0;

    append_waiter(&waiter, warp, group);
    if (!waiter.text)
        return NULL;
    row = find_row(list, grid, pc, waiter.text);
    if (row) {
        free(waiter.text);
        return row;
    }
    for (unsigned i = 0; i < list->num_rows; i++)
        there += list->rows[i].grid == grid && list->rows[i].pc == pc;
    if (there < list->most_rows / PLACES)
        return add_row(list, grid, pc, waiter.text);
    free(waiter.text);
    append(&more, "more lanes at ");
    append_place(&more, grid->kernel, pc);
    if (!more.text)
        return NULL;
    row = find_row(list, grid, pc, more.text);
    if (!row)
        return add_row(list, grid, pc, more.text);
    free(more.text);
    return row;
}

/* Of one row, the warps of a CTA come one after the other. */
static void list_group(struct list *list, const struct emu_warp *warp,
                       const struct emu_group *group)
{
    struct alike *row = row_of(list, warp, group);
    uint32_t cta = warp->cta->index;

    if (!row) {
        list->left_out++;
        return;
    }
    if (!row->num_where || row->where[row->num_where - 1].cta != cta) {
        if (row->num_where == row->max_where) {
            uint32_t most = row->max_where ? 2 * row->max_where : 8;
            struct cta_warps *grown = realloc(row->where, most * sizeof *grown);

            if (!grown)
                return;
            row->where = grown;
            row->max_where = most;
        }
        row->where[row->num_where++] = (struct cta_warps){.cta = cta};
    }
    row->where[row->num_where - 1].warps |= 1u << warp->index;
}

static void append_range(struct emu_fault *fault, uint32_t first, uint32_t last)
{
    append(fault, " %u", first);
    if (last != first)
        append(fault, " to %u", last);
}

static void append_warps(struct emu_fault *fault, uint32_t warps)
{
    append(fault, ", warp");
    for (uint32_t first = 0, end; warps >> first; first = end) {
        first += __builtin_ctz(warps >> first);
        end = first;
        while (end < 32 && warps >> end & 1)
            end++;
        append_range(fault, first, end - 1);
        if (end == 32)
            break;
        if (warps >> end)
            append(fault, ",");
    }
}

static int by_cta(const void *a, const void *b)
{
    const struct cta_warps *one = a, *other = b;

    return (one->cta > other->cta) - (one->cta < other->cta);
}

static void append_row(struct emu_fault *fault, struct alike *row)
{
    unsigned spans = 0;

    append(fault, "\n  %s, rank %u", row->grid->kernel->symbol, row->grid->rank->index);
    if (row->where)
        qsort(row->where, row->num_where, sizeof *row->where, by_cta);
    for (uint32_t first = 0, end; first < row->num_where; first = end) {
        const struct cta_warps *where = &row->where[first];

        if (spans++ == MOST_SPANS) {
            append(fault, "; and %u more CTAs", row->num_where - first);
            break;
        }
        end = first + 1;
        while (end < row->num_where && row->where[end].warps == where->warps &&
               row->where[end].cta == where->cta + (end - first))
            end++;
        append(fault, "%s CTA", spans == 1 ? "," : ";");
        append_range(fault, where->cta, row->where[end - 1].cta);
        append_warps(fault, where->warps);
    }
    append(fault, ": %s", row->text);
}

static void list_cta(struct list *list, const struct emu_cta *cta)
{
    for (uint32_t w = 0; w < cta->num_warps; w++)
        for (uint32_t i = 0; i < cta->warps[w].num_groups; i++)
            if (cta->warps[w].groups[i].mask)
                list_group(list, &cta->warps[w], &cta->warps[w].groups[i]);
}

/* Every group that is live: those of `first`, if given, of its grid, then the others'. */
static void list_all(struct emu_fault *fault, const struct emu_world *world,
                     const struct emu_cta *first, unsigned most_rows)
{
    struct list list = {.most_rows = most_rows};

    for (int turn = 0; turn < 3; turn++)
        for (uint32_t r = 0; r < world->options.num_ranks; r++)
            for (const struct emu_cta *cta = world->ranks[r].ctas; cta; cta = cta->next)
                if (turn == (cta == first ? 0 : first && cta->grid == first->grid ? 1 : 2))
                    list_cta(&list, cta);
    for (unsigned i = 0; i < list.num_rows; i++) {
        append_row(fault, &list.rows[i]);
        free(list.rows[i].text);
        free(list.rows[i].where);
    }
    if (list.left_out)
        append(fault, "\n  ... and %u more groups of lanes", list.left_out);
    for (uint32_t r = 0; r < world->options.num_ranks; r++)
        for (const struct emu_grid *g = world->ranks[r].grids; g; g = g->next)
            if (g->placed < g->num_ctas)
                append(fault, "\n  %s, rank %u: %u of %u CTAs wait for a free SM",
                       g->kernel->symbol, r, g->num_ctas - g->placed, g->num_ctas);
}

static void report_deadlock(struct emu_fault *fault, const struct emu_cta *cta)
{
    uint32_t w = 0;

    begin(fault, "deadlock");
    while (!cta->warps[w].live)
        w++;
    set_place(fault, &cta->warps[w], cta->warps[w].groups[0].pc, -1);
    append(fault, "all of CTA %u of %s on rank %u waits for lanes that never come", cta->index,
           cta->grid->kernel->symbol, cta->grid->rank->index);
    list_all(fault, cta->grid->world, cta, MOST_WAITING);
}

static void report_livelock(struct emu_fault *fault, const struct emu_world *world)
{
    begin(fault, "livelock");
    append(fault, "nothing can end the waiting");
    for (uint32_t r = 0; r < world->options.num_ranks && fault->rank < 0; r++)
        for (struct emu_cta *cta = world->ranks[r].ctas; cta && fault->rank < 0; cta = cta->next)
            for (uint32_t w = 0; w < cta->num_warps && fault->rank < 0; w++) {
                struct emu_warp *warp = &cta->warps[w];

                for (uint32_t i = 0; i < warp->num_groups && fault->rank < 0; i++)
                    if (!emu_blocked(&warp->groups[i]) &&
                        emu_group_spins(warp, &warp->groups[i], EMU_SPIN_REPEATS))
                        set_place(fault, warp,
                                  warp->polls[emu_polling_lane(warp, &warp->groups[i])].pc, -1);
            }
    list_all(fault, world, NULL, MOST_WAITING);
}

static void report_endless_group(struct emu_fault *fault, const struct emu_warp *warp,
                                 const struct emu_group *group)
{
    begin(fault, "never-ending");
    set_place(fault, warp, group->pc, -1);
    append(fault, "lanes %#x of warp %u of CTA %u of %s on rank %u executed %" PRIu64
           " instructions while nothing changed", group->mask, warp->index, warp->cta->index,
           fault->kernel, fault->rank, group->quiet);
    append(fault, "\n  they are at ");
    append_place(fault, warp->cta->grid->kernel, group->pc);
    list_all(fault, warp->cta->grid->world, warp->cta, MOST_GOING_ON);
}

static void report_endless_grid(struct emu_fault *fault, const struct emu_exec *x)
{
    begin(fault, "never-ending");
    set_place(fault, x->warp, x->pc, -1);
    append(fault, "a launch of %s on rank %u executed %" PRIu64
           " warp instructions; instruction_limit is %" PRIu64, fault->kernel, fault->rank,
           x->grid->executed, x->world->options.instruction_limit);
    append(fault, "\n  the last by warp %u of CTA %u, at ", x->warp->index, x->cta->index);
    append_place(fault, x->kernel, x->pc);
    list_all(fault, x->world, x->cta, MOST_GOING_ON);
}

void emu_report(struct emu_fault *fault, const struct emu_finding *f)
{
    switch (f->about) {
    case EMU_ABOUT_LANE:
        report_lane(fault, f);
        break;
    case EMU_ABOUT_ADDRESS:
        report_address(fault, f);
        break;
    case EMU_ABOUT_COPY:
        report_copy(fault, f);
        break;
    case EMU_ABOUT_MEMORY:
        begin(fault, "memory");
        append(fault, "no memory for another CTA or bulk copy");
        break;
    case EMU_ABOUT_DEADLOCK:
        report_deadlock(fault, f->cta);
        break;
    case EMU_ABOUT_LIVELOCK:
        report_livelock(fault, f->world);
        break;
    case EMU_ABOUT_ENDLESS_GROUP:
        report_endless_group(fault, f->warp, f->group);
        break;
    case EMU_ABOUT_ENDLESS_GRID:
        report_endless_grid(fault, f->exec);
        break;
    }
}
