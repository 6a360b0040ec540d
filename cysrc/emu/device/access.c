/* SPDX-License-Identifier: MIT */
#include "access.h"
#include "fault.h"
#include "forms.h"

/* One lane's bytes, at most 16. */
struct lane_bytes { uint64_t word[2]; };

/* `size` is 1, 2, 4, 8 or 16; each is a move or two, where a memcpy of that size were a call. */
EMU_INLINE void copy_bytes(void *dst, const void *src, unsigned size)
{
    switch (size) {
    case 1: memcpy(dst, src, 1); break;
    case 2: memcpy(dst, src, 2); break;
    case 4: memcpy(dst, src, 4); break;
    case 8: memcpy(dst, src, 8); break;
    default: memcpy(dst, src, 16); break;
    }
}

EMU_INLINE uint64_t get_element(const void *p, unsigned bytes)
{
    struct lane_bytes value = {{0}};

    copy_bytes(&value, p, bytes);        /* little endian, as the GPU */
    return value.word[0];
}

EMU_INLINE void put_lane(struct emu_exec *x, const struct emu_span *span,
                         const struct lane_bytes *new, unsigned size)
{
    struct lane_bytes old = {{0}};

    copy_bytes(&old, span->host, size);
    emu_note_write(x, emu_first_store(span, size) || old.word[0] != new->word[0] ||
                      old.word[1] != new->word[1]);
    copy_bytes(span->host, new, size);
    if (span->valid)
        emu_bits_set(span->valid, span->offset, size);
}

EMU_INLINE void set_register(struct emu_exec *x, const struct emu_instr *op, int32_t at,
                             unsigned lane, uint64_t value)
{
    uint8_t *reg = x->warp->registers + at;

    if (op->wide)
        ((emu_u64 *)reg)[lane] = value;
    else
        ((emu_u32 *)reg)[lane] = emu_narrow((uint32_t)value, op->dst_mask, op->dst_sign);
}

EMU_INLINE uint64_t get_register(const struct emu_exec *x, const struct emu_instr *op, int32_t at,
                                 unsigned lane)
{
    const void *reg = emu_operand(x, at);

    return op->wide ? ((const emu_u64 *)reg)[lane] : ((const emu_u32 *)reg)[lane];
}

/* 1 where a lane's access is in another sector than that of the lane before, which it updates. */
EMU_INLINE uint64_t transactions(uint64_t va, uint64_t *last)
{
    uint64_t before = *last;

    *last = va / EMU_SECTOR;
    return *last != before;
}

/* Whether the bytes are in memory, and the lane may do with them what it is about to. */
EMU_INLINE bool reach_lane(const struct emu_exec *x, const struct emu_instr *op, uint64_t va,
                           bool writes, struct emu_span *span)
{
    return emu_aligned(op, va) && emu_reach(x, op->space, va, op->size, span) &&
           !(writes && span->mapping && !span->mapping->writable);
}

static void load_registers(struct emu_exec *x, const struct emu_instr *op, unsigned lane,
                           const struct emu_mapping *m, uint64_t va)
{
    for (unsigned k = 0; k < op->vec; k++)
        set_register(x, op, op->dst[k], lane,
                     m->mmio->load(m->mmio->self, va - m->va + k * op->elem, op->elem));
}

static void store_registers(struct emu_exec *x, const struct emu_instr *op, unsigned lane,
                            const struct emu_mapping *m, uint64_t va)
{
    for (unsigned k = 0; k < op->vec; k++) {
        uint64_t value = get_register(x, op, op->dst[k], lane);

        m->mmio->store(m->mmio->self, va - m->va + k * op->elem, op->elem,
                       value & emu_bits_mask(0, 8 * op->elem));
    }
    emu_note_write(x, true);
}

/* The first of the lanes `left` does not reach memory: it accesses a device's registers, or it is a
 * fault.  Then the others, from here, so that the loops over lanes keep nothing for this. */
__attribute__((cold, noinline))
static int pass_by(struct emu_exec *x, const struct emu_instr *op, uint32_t left)
{
    unsigned lane = __builtin_ctz(left);
    uint64_t va = emu_lane_address(x, op, lane);
    const struct emu_mapping *m = op->space == EMU_SP_GLOBAL ? emu_mapping_at(x->rank, va) : NULL;
    struct emu_span span;

    if (!emu_aligned(op, va))
        return emu_fault_address(x, EMU_FAULT_MISALIGNED, lane, va);
    if (emu_reach(x, op->space, va, op->size, &span))
        return emu_fault_address(x, EMU_FAULT_READ_ONLY, lane, va);
    if (!m || !emu_mapping_has_registers(m, va, op->size) || op->form == EMU_FORM_ATOM ||
        op->flags & EMU_F_WHOLE)
        return emu_fault_address(x, EMU_FAULT_UNREACHABLE, lane, va);
    left &= left - 1;
    if (op->form == EMU_FORM_LD) {
        load_registers(x, op, lane, m, va);
        return emu_load_lanes(x, op, left);
    }
    store_registers(x, op, lane, m, va);
    return emu_store_lanes(x, op, left);
}

int emu_load_lanes(struct emu_exec *x, const struct emu_instr *op, uint32_t m)
{
    uint64_t sector = UINT64_MAX;

    for (uint32_t left = m; left; left &= left - 1) {
        unsigned lane = __builtin_ctz(left);
        uint64_t va = emu_lane_address(x, op, lane);
        struct emu_span span;

        if (!reach_lane(x, op, va, false, &span))
            return pass_by(x, op, left);
        if (!emu_readable(x, &span, op->size))
            return emu_fault_address(x, EMU_FAULT_UNWRITTEN, lane, va);
        for (unsigned k = 0; k < op->vec; k++)
            set_register(x, op, op->dst[k], lane, get_element(span.host + k * op->elem, op->elem));
        emu_count_load(x, &span, op->size, transactions(emu_place(span.mapping, va), &sector));
    }
    return EMU_RUN_ON;
}

int emu_store_lanes(struct emu_exec *x, const struct emu_instr *op, uint32_t m)
{
    uint64_t sector = UINT64_MAX;

    for (uint32_t left = m; left; left &= left - 1) {
        unsigned lane = __builtin_ctz(left);
        uint64_t va = emu_lane_address(x, op, lane);
        struct lane_bytes bytes = {{0}};
        struct emu_span span;

        if (!reach_lane(x, op, va, true, &span))
            return pass_by(x, op, left);
        for (unsigned k = 0; k < op->vec; k++) {
            struct lane_bytes value = {{get_register(x, op, op->dst[k], lane)}};

            copy_bytes((uint8_t *)&bytes + k * op->elem, &value, op->elem);
        }
        put_lane(x, &span, &bytes, op->size);
        emu_count_store(x, &span, op->size, transactions(emu_place(span.mapping, va), &sector));
    }
    return EMU_RUN_ON;
}

/* The value that an atomic leaves in memory. */
static uint64_t combine(const struct emu_instr *op, uint64_t old, uint64_t b, uint64_t c)
{
    bool is_signed = op->type == EMU_T_S32 || op->type == EMU_T_S64;
    int64_t s_old = op->wide ? (int64_t)old : (int32_t)old;
    int64_t s_b = op->wide ? (int64_t)b : (int32_t)b;
    bool less = is_signed ? s_old < s_b : old < b;

    switch (op->sub) {
    case EMU_AT_ADD:  return old + b;
    case EMU_AT_INC:  return old >= b ? 0 : old + 1;
    case EMU_AT_DEC:  return old == 0 || old > b ? b : old - 1;
    case EMU_AT_EXCH: return b;
    case EMU_AT_CAS:  return old == b ? c : old;
    case EMU_AT_MIN:  return less ? old : b;
    case EMU_AT_MAX:  return less ? b : old;
    case EMU_AT_AND:  return old & b;
    case EMU_AT_OR:   return old | b;
    default:          return old ^ b;
    }
}

int emu_atomic(struct emu_exec *x, const struct emu_instr *op, uint32_t m)
{
    uint64_t sector = UINT64_MAX;

    for (uint32_t left = m; left; left &= left - 1) {
        unsigned lane = __builtin_ctz(left);
        uint64_t va = emu_lane_address(x, op, lane), old, another;
        struct lane_bytes new = {{0}};
        struct emu_span span;

        if (!reach_lane(x, op, va, true, &span))
            return pass_by(x, op, left);
        if (!emu_readable(x, &span, op->size))
            return emu_fault_address(x, EMU_FAULT_UNWRITTEN, lane, va);
        old = get_element(span.host, op->elem);
        new.word[0] = combine(op, old, get_register(x, op, op->src[1], lane),
                              get_register(x, op, op->src[2], lane));
        if (!op->wide)
            new.word[0] = (uint32_t)new.word[0];
        put_lane(x, &span, &new, op->size);
        if (op->dst[0] != EMU_NONE)
            set_register(x, op, op->dst[0], lane, old);
        another = transactions(emu_place(span.mapping, va), &sector);
        emu_count_load(x, &span, op->size, another);
        emu_count_store(x, &span, op->size, another);
    }
    return EMU_RUN_ON;
}
