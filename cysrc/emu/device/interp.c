/* SPDX-License-Identifier: MIT
 *
 * The interpreter's loop: one instruction, 32 lanes.  Its body is inlined into one function per
 * instruction set of the host, so that each is vectorised for it; and once more for worlds whose
 * observer hears of accesses, so that the others pay nothing for that. */
#include "interp.h"
#include "access.h"
#include "bulk.h"
#include "compute.h"
#include "fault.h"
#include "forms.h"
#include "mbarrier.h"
#include "observe.h"
#include "observe_lanes.h"
#include "sync.h"
#include "warp.h"

/* Bits of `new` in lanes m, of `old` elsewhere. */
EMU_INLINE uint32_t blend(uint32_t old, uint32_t new, uint32_t m)
{
    return (old & ~m) | (new & m);
}

/* -- single operations ------------------------------------------------------------------------- */

EMU_INLINE uint32_t read_special(const struct emu_exec *x, unsigned which, unsigned lane)
{
    switch (which) {
    case EMU_SR_TID_X:       return x->warp->index * EMU_LANES + lane;
    case EMU_SR_NTID_X:      return x->grid->block;
    case EMU_SR_CTAID_X:     return x->cta->index;
    case EMU_SR_NCTAID_X:    return x->grid->num_ctas;
    case EMU_SR_LANEID:      return lane;
    case EMU_SR_WARPID:      return x->warp->index;
    case EMU_SR_LANEMASK_LT: return EMU_BIT(lane) - 1;
    case EMU_SR_LANEMASK_LE: return 2 * EMU_BIT(lane) - 1;
    case EMU_SR_LANEMASK_EQ: return EMU_BIT(lane);
    case EMU_SR_LANEMASK_GE: return ~(EMU_BIT(lane) - 1);
    case EMU_SR_LANEMASK_GT: return ~(2 * EMU_BIT(lane) - 1);
    case EMU_SR_SMID:        return x->cta->sm;
    default:                 return (uint32_t)x->world->now;
    }
}

EMU_INLINE void move_special(const struct emu_exec *x, const struct emu_instr *op, uint32_t m)
{
    void *d = x->warp->registers + op->dst[0];

    for (unsigned l = 0; l < EMU_LANES; l++) {
        if (!(m & emu_lane_bit[l]))
            continue;
        if (!op->wide)
            ((emu_u32 *)d)[l] = read_special(x, op->sub, l);
        else if (op->sub == EMU_SR_GLOBALTIMER || op->sub == EMU_SR_CLOCK64)
            ((emu_u64 *)d)[l] = x->world->now;
        else
            ((emu_u64 *)d)[l] = read_special(x, op->sub, l);
    }
}

EMU_INLINE void load_param(const struct emu_exec *x, const struct emu_instr *op, uint32_t m)
{
    for (unsigned k = 0; k < op->vec; k++) {
        void *d = x->warp->registers + op->dst[k];
        uint64_t value = 0;
        uint32_t narrow;

        memcpy(&value, x->grid->params + op->imm + k * op->elem, op->elem);
        narrow = emu_narrow((uint32_t)value, op->dst_mask, op->dst_sign);
        for (unsigned l = 0; l < EMU_LANES; l++)
            if (m & emu_lane_bit[l]) {
                if (op->wide)
                    ((emu_u64 *)d)[l] = value;
                else
                    ((emu_u32 *)d)[l] = narrow;
            }
    }
}

/* Lane l of d = lane from[l] of a; from[l] is l where the source lane is out of the segment. */
EMU_INLINE uint32_t shuffle_sources(const struct emu_instr *op, const emu_u32 *b, const emu_u32 *c,
                                    uint32_t from[EMU_LANES])
{
    uint32_t inside = 0;

#define SHUFFLE(source, test) \
    for (uint32_t l = 0; l < EMU_LANES; l++) { \
        uint32_t by = b[l] & 31, clamp = c[l] & 31, segment = c[l] >> 8 & 31; \
        int32_t low = l & segment, high = low | (clamp & ~segment); \
        int32_t j = (source); \
        bool in = (test); \
        (void)high; \
        from[l] = in ? (uint32_t)j : l; \
        inside |= in ? emu_lane_bit[l] : 0; \
    }
    switch (op->sub) {
    case EMU_SHFL_IDX:
        SHUFFLE(low | (int32_t)(by & ~segment), j <= high)
        break;
    case EMU_SHFL_UP:
        SHUFFLE((int32_t)(l - by), j >= high)
        break;
    case EMU_SHFL_DOWN:
        SHUFFLE((int32_t)(l + by), j <= high)
        break;
    default:
        SHUFFLE((int32_t)(l ^ by), j <= high)
        break;
    }
#undef SHUFFLE
    return inside;
}

EMU_INLINE void shuffle(const struct emu_exec *x, const struct emu_instr *op, uint32_t m)
{
    struct emu_warp *warp = x->warp;
    emu_u32 *d = (emu_u32 *)(warp->registers + op->dst[0]);
    uint32_t value[EMU_LANES], from[EMU_LANES];
    uint32_t inside = shuffle_sources(op, emu_operand(x, op->src[1]), emu_operand(x, op->src[2]),
                                      from);

    memcpy(value, emu_operand(x, op->src[0]), sizeof value);
    for (unsigned l = 0; l < EMU_LANES; l++) {
        uint32_t moved = value[from[l]];

        d[l] = m & emu_lane_bit[l] ? moved : d[l];
    }
    if (op->dst[1] != EMU_NONE)
        warp->predicates[op->dst[1]] = blend(warp->predicates[op->dst[1]], inside, m);
    if (x->check_uninit) {
        /* What a lane that does not take part, or has no value, gives is no value either. */
        uint32_t given = m & warp->defined[op->chosen[0]];
        uint32_t got = m;

        if (given != EMU_ALL_LANES) {
            got = 0;
            for (unsigned l = 0; l < EMU_LANES; l++)
                got |= (given >> from[l] & 1) << l;
        }
        warp->defined[op->def[0]] = blend(warp->defined[op->def[0]], got, m);
        warp->defined[op->def[1]] |= m;
    }
}

EMU_INLINE void vote(const struct emu_exec *x, const struct emu_instr *op, uint32_t m)
{
    struct emu_warp *warp = x->warp;
    uint32_t p = warp->predicates[op->src[0]];
    bool result;

    p = (op->flags & EMU_F_SRC_PRED_NEG ? ~p : p) & m;
    if (op->sub == EMU_VOTE_BALLOT) {
        emu_u32 *d = (emu_u32 *)(warp->registers + op->dst[0]);

        for (unsigned l = 0; l < EMU_LANES; l++)
            d[l] = m & emu_lane_bit[l] ? p : d[l];
        return;
    }
    result = op->sub == EMU_VOTE_ALL ? p == m : op->sub == EMU_VOTE_ANY ? p != 0 : p == 0 || p == m;
    warp->predicates[op->dst[0]] = blend(warp->predicates[op->dst[0]], result ? m : 0, m);
}

/* elect.sync: which lane it is depends on the mask alone. */
EMU_INLINE void elect(const struct emu_exec *x, const struct emu_instr *op, uint32_t m)
{
    struct emu_warp *warp = x->warp;
    uint32_t leader = emu_leader(x->world, m);

    warp->predicates[op->dst[1]] = blend(warp->predicates[op->dst[1]], EMU_BIT(leader), m);
    if (op->dst[0] != EMU_NONE) {
        emu_u32 *d = (emu_u32 *)(warp->registers + op->dst[0]);

        for (unsigned l = 0; l < EMU_LANES; l++)
            d[l] = m & emu_lane_bit[l] ? leader : d[l];
    }
}

/* Stores the outcome of a setp. */
EMU_INLINE void set_predicates(struct emu_exec *x, const struct emu_instr *op, uint32_t m,
                               uint32_t holds)
{
    uint32_t *preds = x->warp->predicates;
    uint32_t other = ~holds, p;

    if (op->flags & (EMU_F_BOOL_AND | EMU_F_BOOL_OR | EMU_F_BOOL_XOR)) {
        p = preds[op->src[2]];
        p = op->flags & EMU_F_SRC_PRED_NEG ? ~p : p;
        if (op->flags & EMU_F_BOOL_AND) {
            holds &= p;
            other &= p;
        } else if (op->flags & EMU_F_BOOL_OR) {
            holds |= p;
            other |= p;
        } else {
            holds ^= p;
            other ^= p;
        }
    }
    preds[op->dst[0]] = blend(preds[op->dst[0]], holds, m);
    if (op->dst[1] != EMU_NONE)
        preds[op->dst[1]] = blend(preds[op->dst[1]], other, m);
    if (op->flags & EMU_F_CLOCK_CMP)
        emu_note_clock(x, emu_operand(x, op->src[0]), emu_operand(x, op->src[1]),
                       op->sub == EMU_CMP_GT || op->sub == EMU_CMP_LE);
}

/* Lanes of m whose divisor is zero. */
EMU_INLINE uint32_t zero_divisors(const struct emu_exec *x, const struct emu_instr *op, uint32_t m)
{
    const void *b = emu_operand(x, op->src[1]);
    uint32_t zero = 0;

    for (unsigned l = 0; l < EMU_LANES; l++)
        zero |= (op->wide ? ((const emu_u64 *)b)[l] : ((const emu_u32 *)b)[l]) ? 0 : emu_lane_bit[l];
    return zero & m;
}

EMU_INLINE uint64_t longest_sleep(const struct emu_exec *x, const struct emu_instr *op, uint32_t m)
{
    const emu_u32 *ns = emu_operand(x, op->src[0]);
    uint32_t most = 0;

    for (unsigned l = 0; l < EMU_LANES; l++)
        if (m & emu_lane_bit[l] && ns[l] > most)
            most = ns[l];
    return most;
}

/* Whether the lanes m are the whole group and name one mask, of which nobody is missing. */
EMU_INLINE bool all_members_here(const struct emu_exec *x, const struct emu_instr *op, uint32_t m)
{
    const emu_u32 *named = emu_operand(x, op->src[3]);
    const uint32_t member = named[__builtin_ctz(m)];
    uint32_t differ = 0;

    for (unsigned l = 0; l < EMU_LANES; l++)
        differ |= m & emu_lane_bit[l] ? named[l] ^ member : 0;
    return differ == 0 && m == x->group->mask && (member & x->warp->live) == m;
}

/* Lanes that a .sync operation, which lanes m have just passed, has brought together. */
EMU_INLINE uint32_t members_of(const struct emu_exec *x, const struct emu_instr *op, uint32_t m)
{
    return ((const emu_u32 *)emu_operand(x, op->src[3]))[__builtin_ctz(m)] & x->warp->live;
}

/* -- the loop ---------------------------------------------------------------------------------- */

#define LANE_CASE(name, TD, TA, TB, TC, expr) \
    case EMU_FORM_##name: { \
        EMU_COMPUTE_LANES(TD, TA, TB, TC, expr) \
        break; \
    }

#define CALLED_CASE(name, ...) case EMU_FORM_##name:

#define DIVIDE_CASE(name, TD, TA, TB, TC, expr) \
    case EMU_FORM_##name: { \
        uint32_t zero = zero_divisors(x, op, m); \
        if (zero) { \
            end = emu_fault_lane(x, "divide-by-zero", __builtin_ctz(zero), -1, \
                                 "lanes %#x divide by zero", zero); \
            goto out; \
        } \
        EMU_COMPUTE_LANES(TD, TA, TB, TC, expr) \
        break; \
    }

#define COMPARE_CASE(name, T, condition) \
    case EMU_FORM_##name: { \
        const T *at_a = emu_pick(regs, consts, op->src[0]); \
        const T *at_b = emu_pick(regs, consts, op->src[1]); \
        uint32_t holds = 0; \
        for (unsigned l = 0; l < EMU_LANES; l++) { \
            const T a = at_a[l], b = at_b[l]; \
            holds |= (condition) ? emu_lane_bit[l] : 0; \
        } \
        compared = holds; \
        goto compare; \
    }

#define PREDICATE_CASE(name, expr) \
    case EMU_FORM_##name: { \
        const uint32_t p = preds[op->src[0]], q = preds[op->src[1] < 0 ? 0 : op->src[1]]; \
        (void)q; \
        preds[op->dst[0]] = blend(preds[op->dst[0]], (expr), m); \
        break; \
    }

#define SELECT_CASE(name, T) \
    case EMU_FORM_##name: { \
        const T *at_a = emu_pick(regs, consts, op->src[0]); \
        const T *at_b = emu_pick(regs, consts, op->src[1]); \
        const uint32_t chosen = preds[op->src[2]]; \
        T *to = (T *)(regs + op->dst[0]); \
        if (x->check_uninit) { \
            uint32_t bad = m & ((chosen & ~defined[op->chosen[0]]) | \
                                (~chosen & ~defined[op->chosen[1]])); \
            if (bad) { \
                end = emu_fault_register(x, bad); \
                goto out; \
            } \
        } \
        EMU_IVDEP for (unsigned l = 0; l < EMU_LANES; l++) { \
            T r = chosen & emu_lane_bit[l] ? at_a[l] : at_b[l]; \
            to[l] = m & emu_lane_bit[l] ? r : to[l]; \
        } \
        break; \
    }

/* `observed`: accesses are told to the world's observer. */
EMU_INLINE int interpret(struct emu_exec *x, struct emu_group *g, uint32_t limit,
                         const bool observed)
{
    struct emu_warp *warp = x->warp;
    const struct emu_instr *ops = x->kernel->ops;
    const uint8_t *consts = x->kernel->constants;
    uint8_t *regs = warp->registers;
    uint32_t *preds = warp->predicates, *defined = warp->defined;
    bool *ran = x->kernel->ran;
    uint32_t pc = g->pc, budget = g->budget, compared, m;
    uint64_t executed = 0, threads = 0;
    const bool checks = x->check_uninit;
    int end = EMU_RUN_BUDGET;

    for (;; pc++) {
        const struct emu_instr *op;

again:
        op = &ops[pc];
        if (pc == limit) {
            end = EMU_RUN_LIMIT;
            break;
        }
        if (budget == 0)
            break;
        budget--;
        executed++;
        m = g->mask;
        x->pc = pc;
        if (op->guard >= 0) {
            uint32_t p = preds[op->guard];

            if (checks && (m & ~defined[op->guard_use])) {
                end = emu_fault_guard(x, m & ~defined[op->guard_use]);
                break;
            }
            m &= op->flags & EMU_F_PRED_NEG ? ~p : p;
            if (!m)
                continue;
        }
        threads += __builtin_popcount(m);
        ran[pc] = true;
        x->mask = m;
        if (checks) {
            uint32_t have = defined[op->use[0]] & defined[op->use[1]] & defined[op->use[2]] &
                            defined[op->use[3]] & defined[op->use[4]] & defined[op->use[5]];

            if (m & ~have) {
                end = emu_fault_register(x, m & ~have);
                break;
            }
        }
        switch (op->form) {
        EMU_LANE_FORMS(LANE_CASE)
        EMU_CALLED_FORMS(CALLED_CASE)
            emu_compute(x, op, m);
            break;
        EMU_DIVIDE_FORMS(DIVIDE_CASE)
        EMU_COMPARE_FORMS(COMPARE_CASE)
        compare:
            set_predicates(x, op, m, compared);
            break;
        EMU_PREDICATE_FORMS(PREDICATE_CASE)
        SELECT_CASE(SELP_32, emu_u32)
        SELECT_CASE(SELP_64, emu_u64)
        case EMU_FORM_NOP:
            break;
        case EMU_FORM_FENCE:             /* memory is sequentially consistent here */
            if (observed)
                emu_tell_lanes(x, EMU_EVENT_FENCE, op, m, 0);
            break;
        case EMU_FORM_MOV_SREG_32:
        case EMU_FORM_MOV_SREG_64:
            move_special(x, op, m);
            break;
        case EMU_FORM_LD_PARAM:
            load_param(x, op, m);
            break;
        case EMU_FORM_LD:
            if (op->strong)
                emu_note_poll(x, op);
            if (observed)
                emu_observe_lanes(x, op, m);
            if (emu_load(x, op, m)) {
                end = EMU_RUN_FAULT;
                goto out;
            }
            if (observed && x->world->observer.loaded)
                x->world->observer.loaded(x->world->observer.watcher, x, op);
            break;
        case EMU_FORM_ST:
            if (observed)
                emu_observe_lanes(x, op, m);
            if (emu_store(x, op, m)) {
                end = EMU_RUN_FAULT;
                goto out;
            }
            break;
        case EMU_FORM_ATOM:
            if (op->strong)
                emu_note_poll(x, op);
            if (observed)
                emu_observe_lanes(x, op, m);
            if (emu_atomic(x, op, m)) {
                end = EMU_RUN_FAULT;
                goto out;
            }
            break;
        case EMU_FORM_MBARRIER:
            if (op->op == EMU_OP_MBAR_WAIT)
                emu_note_poll(x, op);
            if (observed)
                emu_observe_lanes(x, op, m);
            if (emu_mbarrier_run(x, op, m)) {
                end = EMU_RUN_FAULT;
                goto out;
            }
            break;
        case EMU_FORM_BULK:
            if (emu_bulk_issue(x, op, m)) {
                end = EMU_RUN_FAULT;
                goto out;
            }
            break;
        case EMU_FORM_BULK_COMMIT:
            emu_bulk_commit(x, m);
            break;
        case EMU_FORM_BULK_WAIT:
            if (emu_bulk_wait(x, op, m)) {
                end = EMU_RUN_BLOCKED;
                goto out;
            }
            if (observed)
                emu_tell_lanes(x, EMU_EVENT_GROUPS_WAITED, op, m, 0);
            break;
        case EMU_FORM_SHFL:
        case EMU_FORM_VOTE:
        case EMU_FORM_ELECT:
        case EMU_FORM_MATCH:
        case EMU_FORM_BAR_WARP:
        case EMU_FORM_BAR_SYNC:
            if (op->form == EMU_FORM_BAR_SYNC || !all_members_here(x, op, m)) {
                g->pc = pc;
                g->budget = budget;
                end = op->form == EMU_FORM_BAR_SYNC ? emu_sync_barrier(x, op)
                                                    : emu_sync_members(x, op);
                if (end != EMU_RUN_ON)
                    goto out;
                budget = g->budget;
                m = x->mask;
                if (warp->num_groups > 1)
                    limit = emu_group_limit(warp, g, pc + 1);
            }
            if (observed && op->form == EMU_FORM_BAR_WARP)
                emu_tell_lanes(x, EMU_EVENT_WARP_SYNC, op, members_of(x, op, m), 0);
            if (op->form == EMU_FORM_SHFL) {
                shuffle(x, op, m);
                continue;                /* it has its own idea of what is defined */
            }
            if (op->form == EMU_FORM_VOTE)
                vote(x, op, m);
            else if (op->form == EMU_FORM_ELECT)
                elect(x, op, m);
            else if (op->form == EMU_FORM_MATCH)
                emu_match(x, op, m);
            break;
        case EMU_FORM_BRA: {
            bool back = op->target <= pc;

            if (m != g->mask && op->target != pc + 1) {
                if (op->flags & EMU_F_UNIFORM) {
                    end = emu_fault_lane(x, "mask-mismatch", __builtin_ctz(m), -1,
                                         "bra.uni is taken by lanes %#x, not by lanes %#x", m,
                                         g->mask & ~m);
                    goto out;
                }
                g->budget = budget;
                emu_group_split(warp, g, m, op->target);
                pc++;
                end = EMU_RUN_SPLIT;
                goto out;
            }
            pc = op->target;
            if (back && g->polled) {
                end = EMU_RUN_POLLED;
                goto out;
            }
            if (warp->num_groups > 1)
                limit = emu_group_limit(warp, g, pc);
            goto again;
        }
        case EMU_FORM_EXIT:
            emu_lanes_exit(x, m);
            g->mask &= ~m;
            if (!g->mask) {
                end = EMU_RUN_EXITED;
                goto out;
            }
            break;
        case EMU_FORM_NANOSLEEP:
            g->state = EMU_SLEEPING;
            g->wake = x->world->now + longest_sleep(x, op, m);
            pc++;
            end = EMU_RUN_BLOCKED;
            goto out;
        default:
            __builtin_unreachable();     /* kernel.c lets no other form in */
        }
        if (checks) {
            defined[op->def[0]] |= m;
            defined[op->def[1]] |= m;
            defined[op->def[2]] |= m;
            defined[op->def[3]] |= m;
        }
    }
out:
    g->pc = pc;
    g->budget = budget;
    g->quiet += executed;
    x->executed += executed;
    x->rank->counters.warp_instructions += executed;
    x->rank->counters.thread_instructions += threads;
    return end;
}

static int interpret_portable(struct emu_exec *x, struct emu_group *group, uint32_t limit)
{
    return interpret(x, group, limit, false);
}

static int interpret_portable_observed(struct emu_exec *x, struct emu_group *group, uint32_t limit)
{
    return interpret(x, group, limit, true);
}

#if defined(__x86_64__) && defined(__GNUC__)
#define AVX2 __attribute__((target("avx2,fma,bmi,bmi2,popcnt")))

AVX2 static int interpret_avx2(struct emu_exec *x, struct emu_group *group, uint32_t limit)
{
    return interpret(x, group, limit, false);
}

AVX2 static int interpret_avx2_observed(struct emu_exec *x, struct emu_group *group, uint32_t limit)
{
    return interpret(x, group, limit, true);
}

static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt");
}
#else
#define interpret_avx2 interpret_portable
#define interpret_avx2_observed interpret_portable_observed

static bool has_avx2(void)
{
    return false;
}
#endif

void emu_choose_run_group(struct emu_world *world)
{
    if (emu_observed(world))
        world->run_group = has_avx2() ? interpret_avx2_observed : interpret_portable_observed;
    else
        world->run_group = has_avx2() ? interpret_avx2 : interpret_portable;
}
