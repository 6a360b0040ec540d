/* SPDX-License-Identifier: MIT
 *
 * Turns a kernel's image into what the interpreter runs.  Whatever it cannot run is refused here,
 * so that the interpreter needs no checks of the program itself. */
#include "kernel.h"
#include "forms.h"

#include <stdlib.h>
#include <string.h>

#define REGISTER_GRAIN 64                /* registers start at multiples of it                */
#define SPARE_CONSTANT_BYTES 256         /* an absent operand reads constant 0                */

_Static_assert(sizeof(struct emu_insn) == 64, "struct emu_insn is an array element of Python's");

/* -- types ------------------------------------------------------------------------------------- */

static unsigned type_bytes(unsigned type)
{
    static const uint8_t bytes[EMU_T_COUNT] = {
        [EMU_T_B8] = 1, [EMU_T_U8] = 1, [EMU_T_S8] = 1,
        [EMU_T_B16] = 2, [EMU_T_U16] = 2, [EMU_T_S16] = 2, [EMU_T_BF16] = 2,
        [EMU_T_B32] = 4, [EMU_T_U32] = 4, [EMU_T_S32] = 4, [EMU_T_F32] = 4, [EMU_T_BF16X2] = 4,
        [EMU_T_B64] = 8, [EMU_T_U64] = 8, [EMU_T_S64] = 8, [EMU_T_E4M3X2] = 2,
    };
    return type < EMU_T_COUNT ? bytes[type] : 0;
}

static bool is_signed(unsigned type)
{
    return type == EMU_T_S8 || type == EMU_T_S16 || type == EMU_T_S32 || type == EMU_T_S64;
}

static bool is_wide(unsigned type)
{
    return type_bytes(type) == 8;
}

/* See emu_narrow(). */
static void narrow_to(unsigned type, uint32_t *mask, uint32_t *sign)
{
    unsigned bits = type_bytes(type) * 8;

    *mask = bits < 32 ? (1u << bits) - 1 : UINT32_MAX;
    *sign = bits < 32 && is_signed(type) ? 1u << (bits - 1) : 0;
}

/* -- which form an instruction is -------------------------------------------------------------- */

#define REFUSED EMU_NUM_FORMS

static unsigned by_width(unsigned type, unsigned narrow, unsigned wide)
{
    return type_bytes(type) == 4 ? narrow : type_bytes(type) == 8 ? wide : REFUSED;
}

/* Integer and float forms of 32 bits, integer forms of 64. */
static unsigned by_float(unsigned type, unsigned f32, unsigned narrow, unsigned wide)
{
    return type == EMU_T_F32 ? f32 : by_width(type, narrow, wide);
}

/* Integer forms by sign and width, and a float one. */
static unsigned by_sign(unsigned type, unsigned f32, unsigned u32, unsigned s32, unsigned u64, unsigned s64)
{
    if (type == EMU_T_F32)
        return f32;
    return is_signed(type) ? by_width(type, s32, s64) : by_width(type, u32, u64);
}

static unsigned by_predicate(unsigned type, unsigned pred, unsigned narrow, unsigned wide)
{
    return type == EMU_T_PRED ? pred : by_width(type, narrow, wide);
}

static unsigned compare_form(const struct emu_insn *in)
{
    if (in->sub >= EMU_CMP_COUNT)
        return REFUSED;
    return by_sign(in->type, EMU_FORM_EQ_F32 + in->sub, EMU_FORM_EQ_U32 + in->sub,
                   EMU_FORM_EQ_S32 + in->sub, EMU_FORM_EQ_U64 + in->sub, EMU_FORM_EQ_S64 + in->sub);
}

static unsigned convert_form(const struct emu_insn *in)
{
    if (in->type == EMU_T_BF16X2)
        return in->type2 == EMU_T_F32 ? EMU_FORM_CVT_BF16X2 : REFUSED;
    if (in->type == EMU_T_E4M3X2)
        return in->type2 == EMU_T_F32 ? EMU_FORM_CVT_E4M3X2 : REFUSED;
    if (in->type == EMU_T_F32)
        return in->type2 == EMU_T_U32 ? EMU_FORM_CVT_F32_U32 :
               in->type2 == EMU_T_S32 ? EMU_FORM_CVT_F32_S32 : REFUSED;
    if (in->type2 == EMU_T_F32)
        return in->type == EMU_T_S32 ? EMU_FORM_CVT_RMI_S32_F32 : REFUSED;
    if (!type_bytes(in->type) || !type_bytes(in->type2))
        return REFUSED;
    if (is_wide(in->type2))
        return is_wide(in->type) ? EMU_FORM_MOV_64 : EMU_FORM_CVT_32_64;
    if (!is_wide(in->type))
        return EMU_FORM_CVT_32_32;
    return is_signed(in->type2) ? EMU_FORM_CVT_64_S32 : EMU_FORM_CVT_64_U32;
}

static unsigned form_of(const struct emu_insn *in)
{
    unsigned t = in->type;

#define WIDTH(name) by_width(t, EMU_FORM_##name##_32, EMU_FORM_##name##_64)
#define FLOAT(name) by_float(t, EMU_FORM_##name##_F32, EMU_FORM_##name##_32, EMU_FORM_##name##_64)
#define SIGN_OR(f32, name) by_sign(t, f32, EMU_FORM_##name##_U32, EMU_FORM_##name##_S32, \
                                   EMU_FORM_##name##_U64, EMU_FORM_##name##_S64)
#define SIGN(name) SIGN_OR(REFUSED, name)
#define LOGIC(name) by_predicate(t, EMU_FORM_##name##_PRED, EMU_FORM_##name##_32, \
                                 EMU_FORM_##name##_64)
#define WIDENING(name) (t == EMU_T_U32 ? EMU_FORM_##name##_U32 : \
                        t == EMU_T_S32 ? EMU_FORM_##name##_S32 : REFUSED)
    switch (in->op) {
    case EMU_OP_NOP:       return EMU_FORM_NOP;
    case EMU_OP_MOV:       return LOGIC(MOV);
    case EMU_OP_MOV_SREG:  return in->sub < EMU_SR_COUNT ? WIDTH(MOV_SREG) : REFUSED;
    case EMU_OP_CVT:       return convert_form(in);
    case EMU_OP_ADD:       return FLOAT(ADD);
    case EMU_OP_SUB:       return FLOAT(SUB);
    case EMU_OP_MUL_LO:    return FLOAT(MUL);
    case EMU_OP_MUL_WIDE:  return WIDENING(MUL_WIDE);
    case EMU_OP_MAD_LO:    return t == EMU_T_F32 ? REFUSED : WIDTH(MAD);
    case EMU_OP_MAD_WIDE:  return WIDENING(MAD_WIDE);
    case EMU_OP_MIN:       return SIGN_OR(EMU_FORM_MIN_F32, MIN);
    case EMU_OP_MAX:       return SIGN_OR(EMU_FORM_MAX_F32, MAX);
    case EMU_OP_AND:       return LOGIC(AND);
    case EMU_OP_OR:        return LOGIC(OR);
    case EMU_OP_XOR:       return LOGIC(XOR);
    case EMU_OP_NOT:       return LOGIC(NOT);
    case EMU_OP_NEG:       return FLOAT(NEG);
    case EMU_OP_SHL:       return WIDTH(SHL);
    case EMU_OP_SHR:       return SIGN(SHR);
    case EMU_OP_DIV:       return SIGN_OR(EMU_FORM_DIV_F32, DIV);
    case EMU_OP_REM:       return SIGN(REM);
    case EMU_OP_POPC:      return WIDTH(POPC);
    case EMU_OP_CLZ:       return WIDTH(CLZ);
    case EMU_OP_BREV:      return WIDTH(BREV);
    case EMU_OP_SELP:      return WIDTH(SELP);
    case EMU_OP_SETP:      return compare_form(in);
    case EMU_OP_FMA:       return t == EMU_T_F32 ? EMU_FORM_FMA_F32 : REFUSED;
    case EMU_OP_LD_PARAM:  return EMU_FORM_LD_PARAM;
    case EMU_OP_LD:        return EMU_FORM_LD;
    case EMU_OP_ST:        return EMU_FORM_ST;
    case EMU_OP_ATOM:
    case EMU_OP_RED:
        return in->sub < EMU_AT_COUNT && t != EMU_T_F32 ? EMU_FORM_ATOM : REFUSED;
    case EMU_OP_PREFETCH:  return EMU_FORM_NOP;
    case EMU_OP_FENCE:     return EMU_FORM_FENCE;
    case EMU_OP_BAR_SYNC:  return EMU_FORM_BAR_SYNC;
    case EMU_OP_BAR_WARP:  return EMU_FORM_BAR_WARP;
    case EMU_OP_SHFL:      return in->sub < EMU_SHFL_COUNT ? EMU_FORM_SHFL : REFUSED;
    case EMU_OP_VOTE:      return in->sub < EMU_VOTE_COUNT ? EMU_FORM_VOTE : REFUSED;
    case EMU_OP_BRA:       return EMU_FORM_BRA;
    case EMU_OP_EXIT:      return EMU_FORM_EXIT;
    case EMU_OP_NANOSLEEP: return EMU_FORM_NANOSLEEP;
    case EMU_OP_MBAR_INIT: case EMU_OP_MBAR_INVAL: case EMU_OP_MBAR_ARRIVE:
    case EMU_OP_MBAR_EXPECT_TX:
        return in->space == EMU_SP_SHARED ? EMU_FORM_MBARRIER : REFUSED;
    case EMU_OP_MBAR_WAIT:
        return in->space == EMU_SP_SHARED && in->sub < EMU_MBAR_COUNT ? EMU_FORM_MBARRIER : REFUSED;
    case EMU_OP_BULK_LOAD: case EMU_OP_BULK_STORE:
        return in->space == EMU_SP_GLOBAL ? EMU_FORM_BULK : REFUSED;
    case EMU_OP_BULK_COMMIT: return EMU_FORM_BULK_COMMIT;
    case EMU_OP_BULK_WAIT: return in->imm >= 0 ? EMU_FORM_BULK_WAIT : REFUSED;
    case EMU_OP_ELECT:     return EMU_FORM_ELECT;
    case EMU_OP_CREATEPOLICY: return EMU_FORM_CREATEPOLICY;
    case EMU_OP_PACK:      return WIDTH(PACK);
    case EMU_OP_UNPACK:    return in->sub < 2 ? WIDTH(UNPACK) : REFUSED;
    case EMU_OP_MUL_HI:    return t == EMU_T_U32 ? EMU_FORM_MUL_HI_U32 : REFUSED;
    case EMU_OP_ABS:       return t == EMU_T_F32 ? EMU_FORM_ABS_F32 : REFUSED;
    case EMU_OP_EX2:       return t == EMU_T_F32 ? EMU_FORM_EX2_F32 : REFUSED;
    case EMU_OP_LG2:       return t == EMU_T_F32 ? EMU_FORM_LG2_F32 : REFUSED;
    case EMU_OP_PRMT:      return t == EMU_T_B32 ? EMU_FORM_PRMT : REFUSED;
    case EMU_OP_BFE:       return t == EMU_T_U32 ? EMU_FORM_BFE_U32 : REFUSED;
    case EMU_OP_MATCH:     return t == EMU_T_B32 ? EMU_FORM_MATCH : REFUSED;
    default:               return REFUSED;
    }
}

/* -- operands ---------------------------------------------------------------------------------- */

enum kind { NOTHING, NARROW, WIDE, PREDICATE };

struct operands { enum kind dst[4], src[4]; };

static enum kind data_kind(unsigned type)
{
    return type == EMU_T_PRED ? PREDICATE : is_wide(type) ? WIDE : NARROW;
}

static struct operands operands_of(const struct emu_insn *in)
{
    struct operands o = {0};
    enum kind data = data_kind(in->type), address = in->flags & EMU_F_ADDR32 ? NARROW : WIDE;
    unsigned vec = in->vec > 4 ? 4 : in->vec;

    switch (in->op) {
    case EMU_OP_MOV: case EMU_OP_NOT: case EMU_OP_NEG: case EMU_OP_BREV: case EMU_OP_ABS:
    case EMU_OP_EX2: case EMU_OP_LG2:
        return (struct operands){{data}, {data}};
    case EMU_OP_MOV_SREG:
        return (struct operands){{data}, {0}};
    case EMU_OP_CVT:
        o = (struct operands){{data}, {data_kind(in->type2)}};
        if (in->type == EMU_T_BF16X2 || in->type == EMU_T_E4M3X2)
            o.src[1] = NARROW;
        return o;
    case EMU_OP_ADD: case EMU_OP_SUB: case EMU_OP_MUL_LO: case EMU_OP_MIN: case EMU_OP_MAX:
    case EMU_OP_AND: case EMU_OP_OR: case EMU_OP_XOR: case EMU_OP_DIV: case EMU_OP_REM:
    case EMU_OP_MUL_HI:
        return (struct operands){{data}, {data, data}};
    case EMU_OP_SHL: case EMU_OP_SHR:
        return (struct operands){{data}, {data, NARROW}};
    case EMU_OP_MUL_WIDE:
        return (struct operands){{WIDE}, {NARROW, NARROW}};
    case EMU_OP_MAD_WIDE:
        return (struct operands){{WIDE}, {NARROW, NARROW, WIDE}};
    case EMU_OP_MAD_LO: case EMU_OP_FMA: case EMU_OP_PRMT: case EMU_OP_BFE:
        return (struct operands){{data}, {data, data, data}};
    case EMU_OP_POPC: case EMU_OP_CLZ:
        return (struct operands){{NARROW}, {data}};
    case EMU_OP_SELP:
        return (struct operands){{data}, {data, data, PREDICATE}};
    case EMU_OP_SETP:
        o = (struct operands){{PREDICATE}, {data, data}};
        o.dst[1] = in->dst[1] == EMU_NONE ? NOTHING : PREDICATE;
        o.src[2] = in->src[2] == EMU_NONE ? NOTHING : PREDICATE;
        return o;
    case EMU_OP_LD_PARAM: case EMU_OP_LD: case EMU_OP_ST:
        o.src[0] = in->op == EMU_OP_LD_PARAM ? NOTHING : address;
        for (unsigned k = 0; k < vec; k++)
            o.dst[k] = data;
        return o;
    case EMU_OP_ATOM: case EMU_OP_RED:
        o = (struct operands){{0}, {address, data}};
        o.dst[0] = in->op == EMU_OP_ATOM && in->dst[0] != EMU_NONE ? data : NOTHING;
        o.src[2] = in->sub == EMU_AT_CAS ? data : NOTHING;
        return o;
    case EMU_OP_SHFL:
        o = (struct operands){{NARROW}, {NARROW, NARROW, NARROW, NARROW}};
        o.dst[1] = in->dst[1] == EMU_NONE ? NOTHING : PREDICATE;
        return o;
    case EMU_OP_VOTE:
        o = (struct operands){{0}, {PREDICATE, 0, 0, NARROW}};
        o.dst[0] = in->sub == EMU_VOTE_BALLOT ? NARROW : PREDICATE;
        return o;
    case EMU_OP_PACK:
        return (struct operands){{data}, {NARROW, NARROW}};
    case EMU_OP_UNPACK:
        return (struct operands){{NARROW}, {data}};
    case EMU_OP_MATCH:
        return (struct operands){{NARROW}, {NARROW, 0, 0, NARROW}};
    case EMU_OP_BAR_SYNC:
        o.src[0] = NARROW;
        o.src[1] = in->src[1] == EMU_NONE ? NOTHING : NARROW;
        return o;
    case EMU_OP_BAR_WARP:
        o.src[3] = NARROW;
        return o;
    case EMU_OP_NANOSLEEP:
        o.src[0] = NARROW;
        return o;
    case EMU_OP_MBAR_INIT:
        return (struct operands){{0}, {address, NARROW}};
    case EMU_OP_MBAR_INVAL: case EMU_OP_PREFETCH:
        return (struct operands){{0}, {address}};
    case EMU_OP_MBAR_ARRIVE: case EMU_OP_MBAR_EXPECT_TX:
        o = (struct operands){{WIDE}, {address, NARROW, NARROW}};
        o.dst[0] = in->dst[0] == EMU_NONE ? NOTHING : WIDE;
        o.src[1] = in->src[1] == EMU_NONE ? NOTHING : NARROW;
        o.src[2] = in->src[2] == EMU_NONE ? NOTHING : NARROW;
        return o;
    case EMU_OP_MBAR_WAIT:
        o = (struct operands){{PREDICATE}, {address, NARROW}};
        o.src[2] = in->src[2] == EMU_NONE ? NOTHING : NARROW;
        return o;
    case EMU_OP_BULK_LOAD: case EMU_OP_BULK_STORE:
        o = (struct operands){{0}, {WIDE, NARROW, NARROW}};
        o.src[3] = in->op == EMU_OP_BULK_LOAD ? NARROW : NOTHING;
        o.dst[0] = in->flags & EMU_F_CACHE_HINT ? WIDE : NOTHING;
        return o;
    case EMU_OP_ELECT:
        o = (struct operands){{0, PREDICATE}, {0, 0, 0, NARROW}};
        o.dst[0] = in->dst[0] == EMU_NONE ? NOTHING : NARROW;
        return o;
    case EMU_OP_CREATEPOLICY:
        o.dst[0] = WIDE;
        o.src[0] = in->src[0] == EMU_NONE ? NOTHING : NARROW;
        return o;
    default:
        return o;
    }
}

/* Whether operand `at` lies inside of what it names; constants only where `constant`. */
static bool in_range(const struct emu_kernel_image *image, enum kind kind, int32_t at,
                     bool constant)
{
    uint64_t bytes = kind == WIDE ? 8 * EMU_LANES : 4 * EMU_LANES;

    if (kind == NOTHING)
        return true;
    if (at == EMU_NONE)
        return false;
    if (kind == PREDICATE)
        return at >= 0 && (uint32_t)at < image->num_predicates;
    if (at < 0)
        return constant && (uint64_t)~at % 4 == 0 && ~at + bytes <= image->constant_bytes;
    return at % REGISTER_GRAIN == 0 && at + bytes <= image->register_bytes;
}

/* Index into a warp's `defined` of operand `at`. */
static uint16_t defined_index(const struct emu_kernel_image *image, enum kind kind, int32_t at)
{
    if (kind == NOTHING || (kind != PREDICATE && at < 0))
        return EMU_DEFINED_ALWAYS;
    if (kind == PREDICATE)
        return EMU_DEFINED_FIRST + image->register_bytes / REGISTER_GRAIN + at;
    return EMU_DEFINED_FIRST + at / REGISTER_GRAIN;
}

/* Reads of which the interpreter judges the lanes itself: see struct emu_instr. */
static bool judged_later(const struct emu_insn *in, unsigned k)
{
    return (in->op == EMU_OP_SELP && k < 2) || (in->op == EMU_OP_SHFL && k == 0);
}

static bool convert_operands(struct emu_instr *op, const struct emu_insn *in,
                             const struct emu_kernel_image *image)
{
    struct operands o = operands_of(in);
    bool store = in->op == EMU_OP_ST || in->op == EMU_OP_BULK_LOAD || in->op == EMU_OP_BULK_STORE;
    unsigned uses = 0;

    for (unsigned k = 0; k < 6; k++)
        op->use[k] = EMU_DEFINED_ALWAYS;
    for (unsigned k = 0; k < 4; k++) {
        if (!in_range(image, o.src[k], in->src[k], true) ||
            !in_range(image, o.dst[k], in->dst[k], store))
            return false;
        op->src[k] = o.src[k] == NOTHING ? ~0 : in->src[k];
        op->dst[k] = o.dst[k] == NOTHING ? (store ? ~0 : EMU_NONE) : in->dst[k];
        if (judged_later(in, k))
            op->chosen[k] = defined_index(image, o.src[k], in->src[k]);
        else if (o.src[k] != NOTHING)
            op->use[uses++] = defined_index(image, o.src[k], in->src[k]);
        op->def[k] = EMU_DEFINED_SINK;
        if (o.dst[k] != NOTHING && store)
            op->use[uses++] = defined_index(image, o.dst[k], in->dst[k]);
        else if (o.dst[k] != NOTHING)
            op->def[k] = defined_index(image, o.dst[k], in->dst[k]);
    }
    op->guard_use = EMU_DEFINED_ALWAYS;
    if (in->pred >= 0) {
        if (!in_range(image, PREDICATE, in->pred, false))
            return false;
        op->guard_use = defined_index(image, PREDICATE, in->pred);
    }
    return true;
}

static bool is_strong(unsigned sem)
{
    return sem == EMU_SEM_RELAXED || sem == EMU_SEM_VOLATILE || sem == EMU_SEM_ACQUIRE;
}

static bool convert(struct emu_instr *op, const struct emu_insn *in,
                    const struct emu_kernel_image *image)
{
    unsigned form = form_of(in);
    bool memory = in->op == EMU_OP_LD || in->op == EMU_OP_ST || in->op == EMU_OP_ATOM ||
                  in->op == EMU_OP_RED;

    if (form == REFUSED)
        return false;
    *op = (struct emu_instr){
        .form = form, .flags = in->flags, .op = in->op, .type = in->type, .sub = in->sub,
        .vec = in->vec, .space = in->space, .sem = in->sem, .scope = in->scope, .proxy = in->proxy,
        .guard = in->pred, .target = in->target, .imm = in->imm, .elem = type_bytes(in->type),
        .wide = is_wide(in->type), .has_count = in->op == EMU_OP_BAR_SYNC && in->src[1] != EMU_NONE,
    };
    if (in->op == EMU_OP_MBAR_ARRIVE || in->op == EMU_OP_MBAR_EXPECT_TX) {
        op->has_tx = in->src[1] != EMU_NONE;
        op->has_count = in->src[2] != EMU_NONE;
    }
    op->size = op->elem * op->vec;
    op->strong = in->op == EMU_OP_ATOM || (in->op == EMU_OP_LD && is_strong(in->sem));
    narrow_to(in->type2, &op->src_mask, &op->src_sign);
    narrow_to(in->type, &op->dst_mask, &op->dst_sign);
    if (in->op == EMU_OP_BRA && (in->target < 0 || (uint32_t)in->target >= image->num_insns))
        return false;
    if (memory && (in->space != EMU_SP_GLOBAL && in->space != EMU_SP_SHARED))
        return false;
    if (memory || in->op == EMU_OP_LD_PARAM) {
        if (!op->elem || !(in->vec == 1 || in->vec == 2 || in->vec == 4) || op->size > 16)
            return false;
    }
    if (in->flags & EMU_F_WHOLE &&
        (!(in->op == EMU_OP_LD || in->op == EMU_OP_ST) || op->elem != 8 || in->vec != 2))
        return false;
    if ((in->op == EMU_OP_ATOM || in->op == EMU_OP_RED) && (op->elem < 4 || in->vec != 1))
        return false;
    if (in->op == EMU_OP_LD_PARAM &&
        (in->imm < 0 || in->imm + op->size > (int64_t)image->param_bytes))
        return false;
    return convert_operands(op, in, image);
}

/* -- the image's copy -------------------------------------------------------------------------- */

static bool copy_strings(char ***out, const char *const *from, uint32_t count)
{
    *out = calloc(count + 1, sizeof **out);
    if (!*out)
        return false;
    for (uint32_t i = 0; i < count; i++) {
        (*out)[i] = strdup(from && from[i] ? from[i] : "");
        if (!(*out)[i])
            return false;
    }
    return true;
}

static void free_strings(char **strings, uint32_t count)
{
    for (uint32_t i = 0; strings && i < count; i++)
        free(strings[i]);
    free(strings);
}

void emu_kernel_free(struct emu_kernel *k)
{
    free(k->symbol);
    free(k->ops);
    free(k->constants);
    free(k->lines);
    free(k->line_of);
    free(k->ran);
    free_strings(k->files, k->num_files);
    free_strings(k->texts, k->num_ops);
    free(k);
}

static bool copy_image(struct emu_kernel *k, const struct emu_kernel_image *image)
{
    k->symbol = strdup(image->symbol);
    k->ops = calloc(k->num_ops, sizeof *k->ops);
    k->constants = calloc(1, image->constant_bytes + SPARE_CONSTANT_BYTES);
    k->lines = calloc(image->num_lines + 1, sizeof *k->lines);
    k->line_of = calloc(k->num_ops, sizeof *k->line_of);
    k->ran = calloc(k->num_ops, sizeof *k->ran);
    if (!k->symbol || !k->ops || !k->constants || !k->lines || !k->line_of || !k->ran ||
        !copy_strings(&k->files, image->files, k->num_files) ||
        !copy_strings(&k->texts, image->texts, k->num_ops))
        return false;
    if (image->constant_bytes)
        memcpy(k->constants, image->constants, image->constant_bytes);
    if (image->num_lines)
        memcpy(k->lines, image->lines, image->num_lines * sizeof *k->lines);
    return true;
}

/* Whether no path runs off the end. */
static bool ends(const struct emu_kernel_image *image)
{
    const struct emu_insn *last = &image->insns[image->num_insns - 1];

    return image->num_insns && last->pred < 0 &&
           (last->op == EMU_OP_EXIT || last->op == EMU_OP_BRA);
}

struct emu_kernel *emu_kernel_load(struct emu_world *world, const struct emu_kernel_image *image)
{
    uint64_t defined = EMU_DEFINED_FIRST + image->register_bytes / REGISTER_GRAIN +
                       (uint64_t)image->num_predicates + 1;
    struct emu_kernel *k;

    if (image->num_insns >= INT32_MAX || !ends(image) || defined > UINT16_MAX ||
        !(k = calloc(1, sizeof *k)))
        return NULL;
    k->num_ops = image->num_insns;
    k->num_files = image->num_files;
    k->num_lines = image->num_lines;
    k->register_bytes = image->register_bytes;
    k->num_predicates = image->num_predicates;
    k->num_defined = defined;
    k->param_bytes = image->param_bytes;
    k->shared_bytes = image->shared_bytes;
    k->max_threads = image->max_threads;
    if (!copy_image(k, image)) {
        emu_kernel_free(k);
        return NULL;
    }
    for (uint32_t i = 0; i < image->num_insns; i++) {
        int32_t line = image->insns[i].line;

        k->line_of[i] = line >= 0 && (uint32_t)line < image->num_lines ? line : -1;
        if (!convert(&k->ops[i], &image->insns[i], image)) {
            emu_kernel_free(k);
            return NULL;
        }
    }
    k->next = world->kernels;
    world->kernels = k;
    return k;
}

const bool *emu_kernel_ran(const struct emu_kernel *kernel, uint32_t *num_insns)
{
    *num_insns = kernel->num_ops;
    return kernel->ran;
}
