/* SPDX-License-Identifier: MIT */
#include "mbarrier.h"
#include "access.h"
#include "bits.h"
#include "fault.h"
#include "observe.h"

#include <stdlib.h>
#include <string.h>

#define MOST_ARRIVALS ((1u << 20) - 1)
#define MOST_TX ((1 << 20) - 1)

/* -- the object -------------------------------------------------------------------------------- */

/* expected: bits 0-19, pending: 20-39, tx: 40-60, parity: 63. */
bool emu_mbarrier_read(const struct emu_cta *cta, uint64_t va, struct emu_mbarrier *out)
{
    uint64_t word;

    if (va % EMU_MBARRIER_BYTES || va + EMU_MBARRIER_BYTES > cta->shared_bytes ||
        !cta->mbarriers || !emu_bits_all(cta->mbarriers, va / EMU_MBARRIER_BYTES, 1))
        return false;
    memcpy(&word, cta->shared + va, sizeof word);
    out->expected = word & MOST_ARRIVALS;
    out->pending = word >> 20 & MOST_ARRIVALS;
    out->tx = (int32_t)((int64_t)(word << 3) >> 43);
    out->parity = word >> 63;
    return true;
}

static uint64_t pack(const struct emu_mbarrier *b)
{
    return b->expected | (uint64_t)b->pending << 20 | ((uint64_t)b->tx & 0x1fffff) << 40 |
           (uint64_t)b->parity << 63;
}

void emu_mbarrier_write(struct emu_cta *cta, uint64_t va, const struct emu_mbarrier *object)
{
    uint64_t word = pack(object);

    memcpy(cta->shared + va, &word, sizeof word);
}

const char *emu_mbarrier_count(struct emu_mbarrier *object, int64_t tx, uint32_t arrivals)
{
    int64_t sum = object->tx + tx;

    if (sum > MOST_TX || sum < -MOST_TX)
        return "the tx-count leaves its range";
    if (arrivals > object->pending)
        return "more threads arrive than the phase waits for";
    object->tx = (int32_t)sum;
    object->pending -= arrivals;
    if (object->pending)
        return NULL;
    if (object->tx < 0)
        return "more bytes have come than the phase was told to expect";
    if (object->tx == 0) {
        object->parity ^= 1;
        object->pending = object->expected;
    }
    return NULL;
}

/* -- instructions ------------------------------------------------------------------------------ */

static uint32_t value(const struct emu_exec *x, int32_t operand, unsigned lane)
{
    return ((const emu_u32 *)emu_operand(x, operand))[lane];
}

/* The lane's object; false after a fault. */
static bool find(struct emu_exec *x, const struct emu_instr *op, unsigned lane, uint64_t va,
                 struct emu_mbarrier *object)
{
    if (!emu_aligned(op, va))
        emu_fault_address(x, EMU_FAULT_MISALIGNED, lane, va);
    else if (va + EMU_MBARRIER_BYTES > x->cta->shared_bytes)
        emu_fault_address(x, EMU_FAULT_UNREACHABLE, lane, va);
    else if (!emu_mbarrier_read(x->cta, va, object))
        emu_fault_lane(x, "mbarrier", lane, -1,
                       "no mbarrier is at %#x of shared memory: mbarrier.init has not been "
                       "executed there, or mbarrier.inval after it", (unsigned)va);
    else
        return true;
    return false;
}

static int wrong(struct emu_exec *x, unsigned lane, uint64_t va, const struct emu_mbarrier *object,
                 const char *what)
{
    return emu_fault_lane(x, "mbarrier", lane, -1,
                          "%s: the mbarrier at %#x of shared memory was at phase parity %u, %u of "
                          "%u arrivals pending, tx-count %d bytes", what, (unsigned)va,
                          object->parity, object->pending, object->expected, object->tx);
}

static int init(struct emu_exec *x, const struct emu_instr *op, unsigned lane, uint64_t va)
{
    struct emu_cta *cta = x->cta;
    struct emu_mbarrier object = {0};
    uint32_t count = value(x, op->src[1], lane);

    if (!emu_aligned(op, va))
        return emu_fault_address(x, EMU_FAULT_MISALIGNED, lane, va);
    if (va + EMU_MBARRIER_BYTES > cta->shared_bytes)
        return emu_fault_address(x, EMU_FAULT_UNREACHABLE, lane, va);
    if (emu_mbarrier_read(cta, va, &object))
        return wrong(x, lane, va, &object, "mbarrier.init of an mbarrier without mbarrier.inval");
    if (count == 0 || count > MOST_ARRIVALS)
        return emu_fault_lane(x, "mbarrier", lane, -1, "count %u is not in [1, %u]", count,
                              MOST_ARRIVALS);
    if (!cta->mbarriers) {
        uint64_t words = emu_bitmap_words(cta->shared_bytes / EMU_MBARRIER_BYTES + 1);

        cta->mbarriers = calloc(words, sizeof *cta->mbarriers);
        if (!cta->mbarriers) {
            emu_fault_memory(x->world);
            return EMU_RUN_FAULT;
        }
    }
    emu_bits_set(cta->mbarriers, va / EMU_MBARRIER_BYTES, 1);
    object.expected = object.pending = count;
    emu_mbarrier_write(cta, va, &object);
    return EMU_RUN_ON;
}

/* The bytes are nobody's from here on. */
static void invalidate(struct emu_cta *cta, uint64_t va)
{
    emu_bits_clear(cta->mbarriers, va / EMU_MBARRIER_BYTES, 1);
    emu_bits_clear(cta->shared_valid, va, EMU_MBARRIER_BYTES);
}

static int arrive(struct emu_exec *x, const struct emu_instr *op, unsigned lane, uint64_t va,
                  const struct emu_mbarrier *before)
{
    struct emu_mbarrier object = *before;
    uint32_t tx = op->has_tx ? value(x, op->src[1], lane) : 0;
    uint32_t arrivals = op->op == EMU_OP_MBAR_EXPECT_TX ? 0 :
                        op->has_count ? value(x, op->src[2], lane) : 1;
    const char *what;

    if (tx > MOST_TX)
        what = "the bytes to expect are above 1048575";
    else if (op->has_count && arrivals == 0)
        what = "an arrival counts at least 1";
    else
        what = emu_mbarrier_count(&object, tx, arrivals);
    if (what)
        return wrong(x, lane, va, before, what);
    emu_mbarrier_write(x->cta, va, &object);
    emu_tell(x->world, &(struct emu_event){
        .kind = EMU_EVENT_MBAR_ARRIVE, .completes = object.parity != before->parity,
        .grid = x->grid, .cta = x->cta, .warp = x->warp, .op = op, .lanes = 1u << lane,
        .pc = x->pc, .va = va,
    });
    if (op->dst[0] != EMU_NONE)
        ((emu_u64 *)(x->warp->registers + op->dst[0]))[lane] = pack(before);
    return EMU_RUN_ON;
}

static int wait(struct emu_exec *x, const struct emu_instr *op, unsigned lane,
                const struct emu_mbarrier *object)
{
    uint32_t parity = value(x, op->src[1], lane), *p = &x->warp->predicates[op->dst[0]];

    if (parity > 1)
        return emu_fault_lane(x, "mbarrier", lane, -1, "phase parity %u is neither 0 nor 1",
                              parity);
    *p = (*p & ~(1u << lane)) | (uint32_t)(object->parity != parity) << lane;
    return EMU_RUN_ON;
}

/* Those of the lanes that have found a phase over, by mbarrier. */
static void tell_passed(const struct emu_exec *x, const struct emu_instr *op, uint32_t lanes)
{
    while (lanes) {
        uint64_t va = emu_lane_address(x, op, __builtin_ctz(lanes));
        uint32_t same = 0;

        for (uint32_t left = lanes; left; left &= left - 1)
            if (emu_lane_address(x, op, __builtin_ctz(left)) == va)
                same |= left & -left;
        emu_tell_lanes(x, EMU_EVENT_MBAR_PASS, op, same, va);
        lanes &= ~same;
    }
}

int emu_mbarrier_run(struct emu_exec *x, const struct emu_instr *op, uint32_t m)
{
    for (uint32_t left = m; left; left &= left - 1) {
        unsigned lane = __builtin_ctz(left);
        uint64_t va = emu_lane_address(x, op, lane);
        struct emu_mbarrier object;
        int end = EMU_RUN_ON;

        if (op->op != EMU_OP_MBAR_INIT && !find(x, op, lane, va, &object))
            return EMU_RUN_FAULT;
        switch (op->op) {
        case EMU_OP_MBAR_INIT:
            end = init(x, op, lane, va);
            break;
        case EMU_OP_MBAR_INVAL:
            invalidate(x->cta, va);
            break;
        case EMU_OP_MBAR_WAIT:
            end = wait(x, op, lane, &object);
            break;
        default:
            end = arrive(x, op, lane, va, &object);
            break;
        }
        if (end != EMU_RUN_ON)
            return end;
    }
    if (op->op != EMU_OP_MBAR_WAIT)
        emu_note_write(x, true);
    else if (emu_observed(x->world))
        tell_passed(x, op, m & x->warp->predicates[op->dst[0]]);
    return EMU_RUN_ON;
}
