/* SPDX-License-Identifier: MIT
 *
 * Every form that the interpreter executes.  The lane-wise ones are written here once: name, types
 * of d, a, b, c, and d in terms of a, b, c. */
#ifndef DEEPEP_PTX_EMU_FORMS_H
#define DEEPEP_PTX_EMU_FORMS_H

#include "lanes.h"

#define EMU_MINMAX_FORMS(X, N, T) \
    X(MIN_##N, T, T, T, T, a < b ? a : b) \
    X(MAX_##N, T, T, T, T, a > b ? a : b)

#define EMU_LANE_FORMS(X) \
    X(MOV_32,       emu_u32, emu_u32, emu_u32, emu_u32, a) \
    X(MOV_64,       emu_u64, emu_u64, emu_u64, emu_u64, a) \
    X(ADD_32,       emu_u32, emu_u32, emu_u32, emu_u32, a + b) \
    X(ADD_64,       emu_u64, emu_u64, emu_u64, emu_u64, a + b) \
    X(ADD_F32,      emu_u32, emu_u32, emu_u32, emu_u32, emu_f32_bits(emu_f32(a) + emu_f32(b))) \
    X(SUB_32,       emu_u32, emu_u32, emu_u32, emu_u32, a - b) \
    X(SUB_64,       emu_u64, emu_u64, emu_u64, emu_u64, a - b) \
    X(MUL_32,       emu_u32, emu_u32, emu_u32, emu_u32, a * b) \
    X(MUL_64,       emu_u64, emu_u64, emu_u64, emu_u64, a * b) \
    X(MUL_F32,      emu_u32, emu_u32, emu_u32, emu_u32, emu_f32_bits(emu_f32(a) * emu_f32(b))) \
    X(MUL_WIDE_U32, emu_u64, emu_u32, emu_u32, emu_u64, (uint64_t)a * b) \
    X(MUL_WIDE_S32, emu_s64, emu_s32, emu_s32, emu_s64, (int64_t)a * b) \
    X(MAD_32,       emu_u32, emu_u32, emu_u32, emu_u32, a * b + c) \
    X(MAD_64,       emu_u64, emu_u64, emu_u64, emu_u64, a * b + c) \
    X(MAD_WIDE_U32, emu_u64, emu_u32, emu_u32, emu_u64, (uint64_t)a * b + c) \
    X(MAD_WIDE_S32, emu_u64, emu_s32, emu_s32, emu_u64, (uint64_t)((int64_t)a * b) + c) \
    X(FMA_F32,      emu_u32, emu_u32, emu_u32, emu_u32, \
      emu_f32_bits(__builtin_fmaf(emu_f32(a), emu_f32(b), emu_f32(c)))) \
    EMU_MINMAX_FORMS(X, U32, emu_u32) \
    EMU_MINMAX_FORMS(X, S32, emu_s32) \
    EMU_MINMAX_FORMS(X, U64, emu_u64) \
    EMU_MINMAX_FORMS(X, S64, emu_s64) \
    X(AND_32,       emu_u32, emu_u32, emu_u32, emu_u32, a & b) \
    X(AND_64,       emu_u64, emu_u64, emu_u64, emu_u64, a & b) \
    X(OR_32,        emu_u32, emu_u32, emu_u32, emu_u32, a | b) \
    X(OR_64,        emu_u64, emu_u64, emu_u64, emu_u64, a | b) \
    X(XOR_32,       emu_u32, emu_u32, emu_u32, emu_u32, a ^ b) \
    X(XOR_64,       emu_u64, emu_u64, emu_u64, emu_u64, a ^ b) \
    X(NOT_32,       emu_u32, emu_u32, emu_u32, emu_u32, ~a) \
    X(NOT_64,       emu_u64, emu_u64, emu_u64, emu_u64, ~a) \
    X(NEG_32,       emu_u32, emu_u32, emu_u32, emu_u32, 0u - a) \
    X(NEG_64,       emu_u64, emu_u64, emu_u64, emu_u64, 0u - a) \
    X(SHL_32,       emu_u32, emu_u32, emu_u32, emu_u32, b < 32 ? a << (b & 31) : 0) \
    X(SHL_64,       emu_u64, emu_u64, emu_u32, emu_u64, b < 64 ? a << (b & 63) : 0) \
    X(SHR_U32,      emu_u32, emu_u32, emu_u32, emu_u32, b < 32 ? a >> (b & 31) : 0) \
    X(SHR_S32,      emu_s32, emu_s32, emu_u32, emu_s32, a >> (b < 31 ? b : 31)) \
    X(SHR_U64,      emu_u64, emu_u64, emu_u32, emu_u64, b < 64 ? a >> (b & 63) : 0) \
    X(SHR_S64,      emu_s64, emu_s64, emu_u32, emu_s64, a >> (b < 63 ? b : 63)) \
    X(POPC_32,      emu_u32, emu_u32, emu_u32, emu_u32, (uint32_t)__builtin_popcount(a)) \
    X(POPC_64,      emu_u32, emu_u64, emu_u32, emu_u32, (uint32_t)__builtin_popcountll(a)) \
    X(CLZ_32,       emu_u32, emu_u32, emu_u32, emu_u32, emu_clz32(a)) \
    X(CLZ_64,       emu_u32, emu_u64, emu_u32, emu_u32, emu_clz64(a)) \
    X(BREV_32,      emu_u32, emu_u32, emu_u32, emu_u32, emu_brev32(a)) \
    X(BREV_64,      emu_u64, emu_u64, emu_u64, emu_u64, emu_brev64(a)) \
    X(CREATEPOLICY, emu_u64, emu_u32, emu_u32, emu_u32, emu_cache_policy(op->sub)) \
    X(CVT_32_32,    emu_u32, emu_u32, emu_u32, emu_u32, \
      emu_narrow(emu_narrow(a, src_mask, src_sign), dst_mask, dst_sign)) \
    X(CVT_32_64,    emu_u32, emu_u64, emu_u32, emu_u32, \
      emu_narrow((uint32_t)a, dst_mask, dst_sign)) \
    X(CVT_64_U32,   emu_u64, emu_u32, emu_u32, emu_u32, emu_narrow(a, src_mask, src_sign)) \
    X(CVT_64_S32,   emu_s64, emu_u32, emu_u32, emu_u32, \
      (int32_t)emu_narrow(a, src_mask, src_sign)) \
    X(CVT_BF16X2,   emu_u32, emu_u32, emu_u32, emu_u32, \
      emu_bf16_bits(a) << 16 | emu_bf16_bits(b))

/* As above, computed out of line (compute.c): what is there for few kernels must not make the loop
 * of all others longer. */
#define EMU_CALLED_FORMS(X) \
    X(SUB_F32,      emu_u32, emu_u32, emu_u32, emu_u32, emu_f32_bits(emu_f32(a) - emu_f32(b))) \
    X(DIV_F32,      emu_u32, emu_u32, emu_u32, emu_u32, emu_f32_bits(emu_f32(a) / emu_f32(b))) \
    X(MIN_F32,      emu_u32, emu_u32, emu_u32, emu_u32, emu_min_f32(a, b)) \
    X(MAX_F32,      emu_u32, emu_u32, emu_u32, emu_u32, emu_max_f32(a, b)) \
    X(ABS_F32,      emu_u32, emu_u32, emu_u32, emu_u32, emu_whole_f32(a & 0x7fffffff)) \
    X(NEG_F32,      emu_u32, emu_u32, emu_u32, emu_u32, emu_whole_f32(a ^ 0x80000000)) \
    X(EX2_F32,      emu_u32, emu_u32, emu_u32, emu_u32, emu_f32_bits(emu_ex2(emu_f32(a)))) \
    X(LG2_F32,      emu_u32, emu_u32, emu_u32, emu_u32, emu_f32_bits(emu_lg2(emu_f32(a)))) \
    X(CVT_F32_U32,  emu_u32, emu_u32, emu_u32, emu_u32, emu_f32_bits((float)a)) \
    X(CVT_F32_S32,  emu_u32, emu_s32, emu_u32, emu_u32, emu_f32_bits((float)a)) \
    X(CVT_RMI_S32_F32, emu_s32, emu_u32, emu_u32, emu_u32, emu_floor_s32(emu_f32(a))) \
    X(CVT_E4M3X2,   emu_u32, emu_u32, emu_u32, emu_u32, \
      emu_e4m3_bits(a) << 8 | emu_e4m3_bits(b)) \
    X(MUL_HI_U32,   emu_u32, emu_u32, emu_u32, emu_u32, (uint32_t)((uint64_t)a * b >> 32)) \
    X(PRMT,         emu_u32, emu_u32, emu_u32, emu_u32, emu_permute(a, b, c)) \
    X(BFE_U32,      emu_u32, emu_u32, emu_u32, emu_u32, emu_bit_field(a, b & 0xff, c & 0xff)) \
    X(PACK_32,      emu_u32, emu_u32, emu_u32, emu_u32, (a & 0xffff) | b << 16) \
    X(UNPACK_32,    emu_u32, emu_u32, emu_u32, emu_u32, a >> 16 * op->sub & 0xffff) \
    X(PACK_64,      emu_u64, emu_u32, emu_u32, emu_u32, a | (uint64_t)b << 32) \
    X(UNPACK_64,    emu_u32, emu_u64, emu_u32, emu_u32, (uint32_t)(a >> 32 * op->sub))

/* As above; a lane whose b is zero is a fault, so b is looked at first. */
#define EMU_DIVIDE_FORMS(X) \
    X(DIV_U32,      emu_u32, emu_u32, emu_u32, emu_u32, b ? a / b : 0) \
    X(REM_U32,      emu_u32, emu_u32, emu_u32, emu_u32, b ? a % b : 0) \
    X(DIV_S32,      emu_s32, emu_s32, emu_s32, emu_s32, emu_div_s32(a, b)) \
    X(REM_S32,      emu_s32, emu_s32, emu_s32, emu_s32, emu_rem_s32(a, b)) \
    X(DIV_U64,      emu_u64, emu_u64, emu_u64, emu_u64, b ? a / b : 0) \
    X(REM_U64,      emu_u64, emu_u64, emu_u64, emu_u64, b ? a % b : 0) \
    X(DIV_S64,      emu_s64, emu_s64, emu_s64, emu_s64, emu_div_s64(a, b)) \
    X(REM_S64,      emu_s64, emu_s64, emu_s64, emu_s64, emu_rem_s64(a, b))

/* setp: name, type of a and b, condition.  A comparison with a NaN is false, .ne too. */
#define EMU_COMPARE_TYPE(X, N, T) \
    X(EQ_##N, T, a == b) X(NE_##N, T, a != b) X(LT_##N, T, a < b) \
    X(LE_##N, T, a <= b) X(GT_##N, T, a > b) X(GE_##N, T, a >= b)

#define EMU_COMPARE_FORMS(X) \
    EMU_COMPARE_TYPE(X, U32, emu_u32) \
    EMU_COMPARE_TYPE(X, S32, emu_s32) \
    EMU_COMPARE_TYPE(X, U64, emu_u64) \
    EMU_COMPARE_TYPE(X, S64, emu_s64) \
    X(EQ_F32, emu_u32, emu_f32(a) == emu_f32(b)) \
    X(NE_F32, emu_u32, emu_f32(a) < emu_f32(b) || emu_f32(a) > emu_f32(b)) \
    X(LT_F32, emu_u32, emu_f32(a) < emu_f32(b)) \
    X(LE_F32, emu_u32, emu_f32(a) <= emu_f32(b)) \
    X(GT_F32, emu_u32, emu_f32(a) > emu_f32(b)) \
    X(GE_F32, emu_u32, emu_f32(a) >= emu_f32(b))

/* On predicates, which are masks of lanes. */
#define EMU_PREDICATE_FORMS(X) \
    X(MOV_PRED, p) X(NOT_PRED, ~p) X(AND_PRED, p & q) X(OR_PRED, p | q) X(XOR_PRED, p ^ q)

#define EMU_OTHER_FORMS(X) \
    X(NOP) X(MOV_SREG_32) X(MOV_SREG_64) X(SELP_32) X(SELP_64) X(LD_PARAM) X(LD) X(ST) X(ATOM) \
    X(FENCE) X(BAR_SYNC) X(BAR_WARP) X(SHFL) X(VOTE) X(BRA) X(EXIT) X(NANOSLEEP) \
    X(MBARRIER) X(BULK) X(BULK_COMMIT) X(BULK_WAIT) X(ELECT) X(MATCH)

enum emu_form {
#define EMU_NAME_FORM(name, ...) EMU_FORM_##name,
    EMU_LANE_FORMS(EMU_NAME_FORM)
    EMU_CALLED_FORMS(EMU_NAME_FORM)
    EMU_DIVIDE_FORMS(EMU_NAME_FORM)
    EMU_COMPARE_FORMS(EMU_NAME_FORM)
    EMU_PREDICATE_FORMS(EMU_NAME_FORM)
    EMU_OTHER_FORMS(EMU_NAME_FORM)
#undef EMU_NAME_FORM
    EMU_NUM_FORMS
};

#endif
