/* SPDX-License-Identifier: MIT
 *
 * Loads, stores and atomics.  The case that moves nearly all bytes, 32 lanes side by side, is
 * inlined into the interpreter; any other, and any that fails a check, goes lane by lane. */
#ifndef DEEPEP_PTX_EMU_ACCESS_H
#define DEEPEP_PTX_EMU_ACCESS_H

#include "bits.h"
#include "exec.h"
#include "lanes.h"
#include "memory.h"

#include <string.h>

enum { EMU_SECTOR = 32 };       /* bytes of a memory transaction */

/* Bytes that passed the bounds check. */
struct emu_span {
    uint8_t  *host;
    uint64_t *valid;         /* bitmap of the whole segment; NULL: all bytes count as written */
    uint64_t offset;         /* of the first byte in the segment                              */
    const struct emu_mapping *mapping;   /* NULL: shared memory                               */
};

EMU_INLINE bool emu_reach(const struct emu_exec *x, unsigned space, uint64_t va, uint64_t bytes,
                          struct emu_span *span)
{
    if (space == EMU_SP_SHARED) {
        const struct emu_cta *cta = x->cta;

        if (va > cta->shared_bytes || bytes > cta->shared_bytes - va)
            return false;
        if (cta->mbarriers && bytes &&
            emu_bits_any(cta->mbarriers, va / 8, (va + bytes - 1) / 8 - va / 8 + 1))
            return false;
        *span = (struct emu_span){cta->shared + va, cta->shared_valid, va, NULL};
        return true;
    }
    const struct emu_mapping *m = emu_mapping_at(x->rank, va);

    if (!m || !emu_mapping_holds(m, va, bytes))
        return false;
    *span = (struct emu_span){m->host + (va - m->va), m->valid, va - m->va, m};
    return true;
}

/* Where an access is for the counters: as if its segment began on a page, whatever the alignment of
 * the caller's memory happens to be.  Two runs count the same. */
EMU_INLINE uint64_t emu_place(const struct emu_mapping *m, uint64_t va)
{
    return m ? va - m->skew : va;
}

/* 32-byte sectors of `bytes` from `va` on. */
EMU_INLINE uint64_t emu_sectors(const struct emu_mapping *m, uint64_t va, uint64_t bytes)
{
    return (emu_place(m, va) % EMU_SECTOR + bytes + EMU_SECTOR - 1) / EMU_SECTOR;
}

EMU_INLINE void emu_count_load(struct emu_exec *x, const struct emu_span *span, uint64_t bytes,
                               uint64_t transactions)
{
    if (span->mapping) {
        x->rank->counters.global_load_bytes += bytes;
        x->rank->counters.global_load_transactions += transactions;
        if (span->mapping->peer)
            x->rank->counters.peer_load_bytes += bytes;
    }
}

EMU_INLINE void emu_count_store(struct emu_exec *x, const struct emu_span *span, uint64_t bytes,
                                uint64_t transactions)
{
    if (span->mapping) {
        x->rank->counters.global_store_bytes += bytes;
        x->rank->counters.global_store_transactions += transactions;
        if (span->mapping->peer)
            x->rank->counters.peer_store_bytes += bytes;
    }
}

/* The world changes if the bytes about to be written differ from what is there. */
EMU_INLINE void emu_note_write(struct emu_exec *x, bool differ)
{
    if (differ) {
        x->world->changed = true;
        x->group->polled = false;
    }
}

/* Whether the caller's memory gets one of these bytes from a kernel for the first time.  That is a
 * change whatever was there: a run must not depend on what an empty array happened to hold. */
EMU_INLINE bool emu_first_store(const struct emu_span *span, uint64_t bytes)
{
    uint64_t *stored = span->mapping ? span->mapping->segment->stored : NULL;

    if (!stored || emu_bits_all(stored, span->offset, bytes))
        return false;
    emu_bits_set(stored, span->offset, bytes);
    return true;
}

EMU_INLINE bool emu_aligned(const struct emu_instr *op, uint64_t va)
{
    return (va & (op->size - 1u)) == 0;  /* sizes are powers of two */
}

/* Lane by lane; these find the lane at fault.  EMU_RUN_ON or EMU_RUN_FAULT. */
int emu_load_lanes(struct emu_exec *x, const struct emu_instr *op, uint32_t m);
int emu_store_lanes(struct emu_exec *x, const struct emu_instr *op, uint32_t m);
int emu_atomic(struct emu_exec *x, const struct emu_instr *op, uint32_t m);

/* Whether 32 lanes access `size` bytes each, one after the other, from *first on. */
EMU_INLINE bool emu_side_by_side(const struct emu_exec *x, const struct emu_instr *op,
                                 uint64_t *first)
{
    const void *operand = emu_operand(x, op->src[0]);
    uint32_t size = op->size;

    *first = emu_lane_address(x, op, 0);
    if (op->flags & EMU_F_ADDR32) {
        const emu_u32 *a = operand;
        uint32_t apart = 0;

        for (uint32_t l = 0; l < EMU_LANES; l++)
            apart |= (a[l] - a[0]) ^ l * size;
        return apart == 0;
    }
    const emu_u64 *a = operand;
    uint64_t apart = 0;

    for (uint32_t l = 0; l < EMU_LANES; l++)
        apart |= (a[l] - a[0]) ^ (uint64_t)(l * size);
    return apart == 0;
}

EMU_INLINE bool emu_same_address(const struct emu_exec *x, const struct emu_instr *op)
{
    const void *operand = emu_operand(x, op->src[0]);

    if (op->flags & EMU_F_ADDR32) {
        const emu_u32 *a = operand;
        uint32_t apart = 0;

        for (uint32_t l = 0; l < EMU_LANES; l++)
            apart |= a[l] ^ a[0];
        return apart == 0;
    }
    const emu_u64 *a = operand;
    uint64_t apart = 0;

    for (uint32_t l = 0; l < EMU_LANES; l++)
        apart |= a[l] ^ a[0];
    return apart == 0;
}

/* Memory to registers: lane l's element k to d[k][l]. */
EMU_INLINE void emu_spread_32(const emu_u32 *restrict p, unsigned vec, emu_u32 *restrict d0,
                              emu_u32 *restrict d1, emu_u32 *restrict d2, emu_u32 *restrict d3)
{
    if (vec == 1)
        memcpy(d0, p, 4 * EMU_LANES);
    else if (vec == 2)
        for (unsigned l = 0; l < EMU_LANES; l++) {
            d0[l] = p[2 * l];
            d1[l] = p[2 * l + 1];
        }
    else
        for (unsigned l = 0; l < EMU_LANES; l++) {
            d0[l] = p[4 * l];
            d1[l] = p[4 * l + 1];
            d2[l] = p[4 * l + 2];
            d3[l] = p[4 * l + 3];
        }
}

EMU_INLINE void emu_spread_64(const emu_u64 *restrict p, unsigned vec, emu_u64 *restrict d0,
                              emu_u64 *restrict d1)
{
    if (vec == 1)
        memcpy(d0, p, 8 * EMU_LANES);
    else
        for (unsigned l = 0; l < EMU_LANES; l++) {
            d0[l] = p[2 * l];
            d1[l] = p[2 * l + 1];
        }
}

/* Registers to memory. */
EMU_INLINE void emu_collect_32(emu_u32 *restrict p, unsigned vec, const emu_u32 *d0,
                               const emu_u32 *d1, const emu_u32 *d2, const emu_u32 *d3)
{
    if (vec == 1)
        memcpy(p, d0, 4 * EMU_LANES);
    else if (vec == 2)
        for (unsigned l = 0; l < EMU_LANES; l++) {
            p[2 * l] = d0[l];
            p[2 * l + 1] = d1[l];
        }
    else
        for (unsigned l = 0; l < EMU_LANES; l++) {
            p[4 * l] = d0[l];
            p[4 * l + 1] = d1[l];
            p[4 * l + 2] = d2[l];
            p[4 * l + 3] = d3[l];
        }
}

EMU_INLINE void emu_collect_64(emu_u64 *restrict p, unsigned vec, const emu_u64 *d0,
                               const emu_u64 *d1)
{
    if (vec == 1)
        memcpy(p, d0, 8 * EMU_LANES);
    else
        for (unsigned l = 0; l < EMU_LANES; l++) {
            p[2 * l] = d0[l];
            p[2 * l + 1] = d1[l];
        }
}

EMU_INLINE bool emu_readable(const struct emu_exec *x, const struct emu_span *span, uint64_t bytes)
{
    return !x->check_uninit || !span->valid || emu_bits_all(span->valid, span->offset, bytes);
}

EMU_INLINE int emu_load(struct emu_exec *x, const struct emu_instr *op, uint32_t m)
{
    uint8_t *regs = x->warp->registers;
    struct emu_span span;
    uint64_t first, bytes = (uint64_t)op->size * EMU_LANES;

    if (m != EMU_ALL_LANES || op->elem < 4)
        return emu_load_lanes(x, op, m);
    if (emu_side_by_side(x, op, &first)) {
        if (!emu_aligned(op, first) || !emu_reach(x, op->space, first, bytes, &span) ||
            !emu_readable(x, &span, bytes))
            return emu_load_lanes(x, op, m);
        if (op->wide)
            emu_spread_64((const void *)span.host, op->vec, (void *)(regs + op->dst[0]),
                          (void *)(regs + (op->vec > 1 ? op->dst[1] : 0)));
        else
            emu_spread_32((const void *)span.host, op->vec, (void *)(regs + op->dst[0]),
                          (void *)(regs + (op->vec > 1 ? op->dst[1] : 0)),
                          (void *)(regs + (op->vec > 2 ? op->dst[2] : 0)),
                          (void *)(regs + (op->vec > 2 ? op->dst[3] : 0)));
        emu_count_load(x, &span, bytes, emu_sectors(span.mapping, first, bytes));
        return EMU_RUN_ON;
    }
    if (!emu_same_address(x, op) || !emu_aligned(op, first) ||
        !emu_reach(x, op->space, first, op->size, &span) || !emu_readable(x, &span, op->size))
        return emu_load_lanes(x, op, m);
    for (unsigned k = 0; k < op->vec; k++) {
        if (op->wide) {
            emu_u64 *d = (emu_u64 *)(regs + op->dst[k]);
            uint64_t value = ((const emu_u64 *)span.host)[k];

            for (unsigned l = 0; l < EMU_LANES; l++)
                d[l] = value;
        } else {
            emu_u32 *d = (emu_u32 *)(regs + op->dst[k]);
            uint32_t value = ((const emu_u32 *)span.host)[k];

            for (unsigned l = 0; l < EMU_LANES; l++)
                d[l] = value;
        }
    }
    emu_count_load(x, &span, bytes, 1);
    return EMU_RUN_ON;
}

EMU_INLINE int emu_store(struct emu_exec *x, const struct emu_instr *op, uint32_t m)
{
    struct emu_span span;
    uint64_t first, bytes = (uint64_t)op->size * EMU_LANES;
    uint8_t row[16 * EMU_LANES] __attribute__((aligned(64)));

    if (m != EMU_ALL_LANES || op->elem < 4 || !emu_side_by_side(x, op, &first) ||
        !emu_aligned(op, first) || !emu_reach(x, op->space, first, bytes, &span) ||
        (span.mapping && !span.mapping->writable))
        return emu_store_lanes(x, op, m);
    if (op->wide)
        emu_collect_64((void *)row, op->vec, emu_operand(x, op->dst[0]),
                       emu_operand(x, op->dst[1]));
    else
        emu_collect_32((void *)row, op->vec, emu_operand(x, op->dst[0]),
                       emu_operand(x, op->dst[1]), emu_operand(x, op->dst[2]),
                       emu_operand(x, op->dst[3]));
    emu_note_write(x, x->world->changed || emu_first_store(&span, bytes) ||
                      memcmp(span.host, row, bytes) != 0);
    memcpy(span.host, row, bytes);
    if (span.valid)
        emu_bits_set(span.valid, span.offset, bytes);
    emu_count_store(x, &span, bytes, emu_sectors(span.mapping, first, bytes));
    return EMU_RUN_ON;
}

#endif
