/* SPDX-License-Identifier: MIT */
#include "observe_lanes.h"
#include "access.h"
#include "forms.h"
#include "observe.h"

static uint8_t kind_of(const struct emu_instr *op)
{
    switch (op->op) {
    case EMU_OP_LD: case EMU_OP_MBAR_WAIT:
        return EMU_ACCESS_LOAD;
    case EMU_OP_ST: case EMU_OP_MBAR_INIT: case EMU_OP_MBAR_INVAL:
        return EMU_ACCESS_STORE;
    default:
        return EMU_ACCESS_ATOMIC;
    }
}

/* Where the bytes are.  False: nowhere, the access is a fault. */
static bool find(const struct emu_exec *x, const struct emu_instr *op, struct emu_access *a)
{
    const struct emu_mapping *m;
    struct emu_span span;

    if (op->form == EMU_FORM_MBARRIER) {
        if (a->va > x->cta->shared_bytes || a->bytes > x->cta->shared_bytes - a->va)
            return false;
        a->host = x->cta->shared + a->va;
        return true;
    }
    if (emu_reach(x, a->space, a->va, a->bytes, &span)) {
        a->host = span.host;
        a->segment = span.mapping ? span.mapping->segment : NULL;
        a->offset = span.offset;
        return true;
    }
    m = a->space == EMU_SP_GLOBAL ? emu_mapping_at(x->rank, a->va) : NULL;
    a->host = NULL;
    return m && emu_mapping_has_registers(m, a->va, a->bytes);
}

void emu_observe_lanes(const struct emu_exec *x, const struct emu_instr *op, uint32_t m)
{
    bool single = op->op == EMU_OP_LD || op->op == EMU_OP_ST;
    struct emu_access a = {
        .kind = kind_of(op), .space = op->space, .sem = op->sem, .scope = op->scope,
        .proxy = op->proxy, .rank = x->rank->index, .grid = x->grid, .cta = x->cta->index,
        .warp = x->warp->index, .lanes = m, .lane_bytes = op->size, .pc = x->pc,
        .bytes = op->size, .by = x->warp, .shared_of = op->space == EMU_SP_SHARED ? x->cta : NULL,
        .elem = op->flags & EMU_F_WHOLE ? op->size : op->elem, .nc = op->flags & EMU_F_NC, .mbarrier = op->form == EMU_FORM_MBARRIER,
    };

    if (m == EMU_ALL_LANES && single) {
        if (emu_side_by_side(x, op, &a.va))
            a.bytes *= EMU_LANES;
        if ((a.bytes > op->size || (op->op == EMU_OP_LD && emu_same_address(x, op))) &&
            find(x, op, &a)) {
            emu_observe(x->world, &a);
            return;
        }
    }
    for (uint32_t left = m; left; left &= left - 1) {
        unsigned lane = __builtin_ctz(left);

        a.va = emu_lane_address(x, op, lane);
        a.bytes = op->size;
        a.lanes = 1u << lane;
        if (find(x, op, &a))
            emu_observe(x->world, &a);
    }
}
