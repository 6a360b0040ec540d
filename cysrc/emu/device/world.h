/* SPDX-License-Identifier: MIT
 *
 * What the parts of the CPU executor's core share: ranks, grids, CTAs, warps, groups of lanes. */
#ifndef DEEPEP_PTX_EMU_WORLD_H
#define DEEPEP_PTX_EMU_WORLD_H

#include <stdbool.h>
#include <stdint.h>
#include "emu.h"
#include "gen/isa.h"

#define EMU_LANES 32
#define EMU_ALL_LANES UINT32_MAX
#define EMU_NUM_BARRIERS 16

/* One SM of a device.  It has as much shared memory as one CTA with all it can have takes, of which
 * the system reserves 1 KiB. */
#define EMU_SM_THREADS 2048
#define EMU_SM_CTAS 32
#define EMU_CTA_THREADS 1024
#define EMU_CTA_RESERVED 1024

/* Warp instructions that one group executes before it is another group's turn. */
#define EMU_SLICE 128

/* A group that came back to the same strong load (same lanes, same addresses) this often while no
 * byte of the world changed is spinning.  Large enough that a loop which reads a clock only every
 * 64th time around has read it. */
#define EMU_SPIN_REPEATS 256

/* A group is at a poll, as far as bulk copies under late-async go, after so few. */
#define EMU_POLL_REPEATS 4

#define EMU_COPY_UNIT 16                 /* bulk copies: sizes and addresses are multiples    */

struct emu_segment;
struct emu_mapping;
struct emu_exec;

/* -- instructions as the interpreter runs them (kernel.c makes them from struct emu_insn) ------ */

struct emu_instr {
    uint16_t form;           /* enum emu_form: operation and width in one number              */
    uint16_t flags;          /* EMU_F_*                                                       */
    uint8_t  op, type, sub, vec;
    uint8_t  space, sem, scope, proxy;
    uint8_t  elem;           /* bytes of one element in memory                                */
    uint8_t  size;           /* elem * vec                                                    */
    bool     wide;           /* data registers are 64 bits wide                               */
    bool     strong;         /* a load that sees other threads' stores: polls are made of it  */
    int32_t  guard;          /* predicate index or -1                                         */
    int32_t  dst[4], src[4]; /* as in struct emu_insn; absent sources name constant 0         */
    uint32_t target;
    uint16_t use[6];         /* registers read, as indices into the warp's `defined`          */
    uint16_t def[4];         /* registers written, likewise                                   */
    uint16_t guard_use;
    uint16_t chosen[2];      /* selp: of src[0] and src[1]; shfl: of src[0].  Not in `use`: a   */
                             /* lane that is not chosen may be without a value                */
    bool     has_count;      /* bar.sync with a thread count, mbarrier.arrive with a count    */
    bool     has_tx;         /* mbarrier.*.expect_tx                                          */
    uint32_t src_mask, src_sign;   /* x -> ((x & mask) ^ sign) - sign brings a 32-bit register */
    uint32_t dst_mask, dst_sign;   /* to the range of a narrow type; sign is 0 for unsigned    */
    int64_t  imm;
};

/* Indices into `defined`: one always set, one that nobody reads, then a word for every 64 bytes of
 * the register file, then the predicates. */
#define EMU_DEFINED_ALWAYS 0
#define EMU_DEFINED_SINK 1
#define EMU_DEFINED_FIRST 2

struct emu_kernel {
    struct emu_kernel *next;
    char *symbol;
    struct emu_instr *ops;              /* num_ops, the last one an exit                          */
    uint32_t num_ops;
    uint8_t *constants;
    uint32_t register_bytes, num_predicates, num_defined;
    uint32_t param_bytes, shared_bytes, max_threads;
    char **files;           uint32_t num_files;
    struct emu_line *lines; uint32_t num_lines;
    char **texts;                    /* [num_ops]                                              */
    int32_t *line_of;                /* [num_ops]: index into lines, or -1                     */
    bool *ran;                       /* [num_ops]: some lane has executed it                   */
};

/* -- execution --------------------------------------------------------------------------------- */

enum emu_state {
    EMU_READY,
    EMU_WAIT_WARP,           /* at a .sync warp operation, for lanes of `member`              */
    EMU_WAIT_GATHER,         /* at bar.sync, for the rest of the warp                         */
    EMU_WAIT_BARRIER,        /* the warp has arrived at CTA barrier `barrier`                 */
    EMU_WAIT_COPIES,         /* at a wait_group, for bulk copies of lanes `member`            */
    EMU_SLEEPING             /* until `wake`                                                  */
};

/* Lanes of a warp that are at one place. */
struct emu_group {
    uint32_t pc, mask;
    uint32_t member;
    uint32_t budget;         /* instructions left in this round                               */
    uint8_t  state;          /* enum emu_state                                                */
    uint8_t  barrier;
    bool     polled;         /* this round: repeated a strong load and changed nothing        */
    uint64_t wake;
    uint64_t quiet;          /* instructions since change `quiet_at`                          */
    uint64_t quiet_at;
};

/* What a lane polls.  Kept by lane, not by group: groups split and merge inside of poll loops. */
struct emu_poll {
    uint64_t mark;           /* a load seen earlier; loads are compared with it               */
    uint64_t repeats_at;     /* change that `repeats` counts from                             */
    uint64_t deadline;       /* value that %globaltimer is compared with                      */
    uint32_t repeats;
    uint32_t power, count;   /* Brent's cycle search: the mark moves after 1, 2, 4, ... loads  */
    uint32_t pc, mask;       /* of the load                                                   */
};

struct emu_warp {
    struct emu_cta *cta;
    uint32_t index;
    uint32_t live;           /* lanes that have not exited                                    */
    uint8_t  *registers;
    uint32_t *predicates;
    uint32_t *defined;       /* per register: lanes that have a value                         */
    uint32_t num_groups;
    struct emu_group groups[EMU_LANES];
    struct emu_poll polls[EMU_LANES];
    uint64_t poll_address[EMU_LANES];
    uint32_t bulk_groups[EMU_LANES]; /* bulk groups that the lane has committed               */
    uint32_t pause;          /* random scheduler: rounds until its next turn                  */
    void *watched;           /* the observer's own                                            */
};

struct emu_barrier {
    uint32_t arrived, expected;      /* threads; expected is 0 while nobody waits              */
    uint32_t pc;                     /* of the last arrival                                    */
};

/* A bulk copy under way: see bulk.h. */
struct emu_copy {
    struct emu_copy *next;
    struct emu_grid *grid;
    struct emu_cta *cta;     /* NULL once it has exited                                       */
    uint64_t global;         /* address on its rank                                           */
    uint32_t shared, bytes;
    uint32_t barrier;        /* load: address of the mbarrier                                 */
    uint32_t group;          /* store: which bulk group of its lane                           */
    uint32_t first, moved;   /* units moved so far, from unit `first` on around the end       */
    uint32_t pace;           /* random scheduler: it makes a step in one of so many rounds    */
    uint32_t pc, cta_index, warp, lane;   /* who issued it, where                             */
    bool     load;
    bool     read;           /* store: `data` has the source's bytes, then their valid bits   */
    uint8_t  *data;
    void     *watched;       /* the observer's own                                            */
};

struct emu_cta {
    struct emu_cta *next;
    struct emu_grid *grid;
    uint32_t index, sm;
    uint32_t pause;                  /* as a warp's                                            */
    uint32_t num_warps, live_warps;
    uint32_t shared_bytes;
    uint8_t  *shared;
    uint64_t *shared_valid;
    uint64_t *mbarriers;             /* per 8 bytes: an mbarrier object; NULL: none so far     */
    struct emu_copy *copies;         /* in the order they were issued                          */
    struct emu_barrier barriers[EMU_NUM_BARRIERS];
    struct emu_warp *warps;
    uint8_t  *register_files;        /* of all warps; predicates and `defined` lie in them too */
    void     *watched;               /* the observer's own                                     */
};

struct emu_grid {
    struct emu_grid *next;
    struct emu_world *world;
    struct emu_rank *rank;
    struct emu_kernel *kernel;
    uint8_t *params;
    uint32_t num_ctas, block, shared_bytes;
    uint32_t placed, finished;       /* CTAs                                                   */
    uint64_t executed;               /* warp instructions                                      */
    uint32_t *order;                 /* [num_ctas]: which CTA is placed next; NULL: in order   */
    struct emu_copy *copies;         /* stores of CTAs that have exited                        */
    uint32_t copies_in_flight;       /* these, and the CTAs' own                               */
    void *watched;                   /* the observer's own                                     */
};

struct emu_sm { uint32_t threads, ctas, shared; };

/* -- agents ------------------------------------------------------------------------------------ */

/* What has to be known of an agent before it counts as idle. */
enum emu_patience {
    EMU_FOR_AGENTS,          /* another may be forced to go on: that it came back to its poll */
    EMU_FOR_TIME,            /* somebody has a deadline, to which time may jump               */
    EMU_FOR_EVER             /* nothing would ever happen again                               */
};

/* Who acts in a world: all its warps, all its bulk copies.  Each makes a step in every round, in
 * the order in which they joined. */
struct emu_agent {
    struct emu_agent *next;
    void *self;              /* what its functions are given                                  */
    /* Whether it will ever do anything, as things are. */
    bool (*live)(const void *self);
    /* Its part of a round; says what it changes in world->changed.  False: a fault. */
    bool (*step)(void *self);
    /* A round has changed nothing.  Whether nothing but time, another agent or force() gets it
     * further; it lowers *wake to the time at which it goes on by itself. */
    bool (*idle)(const void *self, enum emu_patience patience, uint64_t *wake);
    /* All are idle: something that a live agent has put off happens now.  False: a fault.  NULL: it
     * puts nothing off. */
    bool (*force)(void *self);
};

struct emu_rank {
    uint32_t index;
    uint64_t va_base;
    uint32_t *pages;                 /* what each 2 MiB page holds, see memory.h               */
    uint64_t num_pages, max_pages;
    uint64_t next_page;              /* where room for the next mapping is looked for first    */
    struct emu_mapping **mappings;
    uint32_t num_mappings, max_mappings;
    struct emu_mapping *unmapped, *last_unmapped;    /* kept for reports, oldest first         */
    uint32_t num_unmapped;
    struct emu_mapping *spare;       /* to be used again                                       */
    struct emu_sm *sms;
    struct emu_grid *grids;          /* in launch order                                        */
    struct emu_cta *ctas;            /* resident, in the order they were placed                */
    struct emu_counters counters;
};

struct emu_world {
    struct emu_options options;
    struct emu_rank *ranks;
    struct emu_kernel *kernels;
    uint64_t now;
    bool changed;                    /* a byte or a CTA changed in this round                  */
    uint64_t changes;                /* rounds (and host calls) that changed something         */
    uint64_t round_length;           /* longest slice of this round                            */
    uint64_t pattern;                /* fills fresh memory; no byte of it is zero              */
    uint64_t random;                 /* state of emu_random()                                  */
    struct emu_agent *agents;        /* in the order of their steps                            */
    struct emu_agent warps, copies;
    uint32_t copies_in_flight;
    bool deferred;                   /* this round: a CTA with room was not placed             */
    struct emu_cta **turns;          /* random scheduler: room to shuffle CTAs in              */
    uint32_t max_turns;
    int (*run_group)(struct emu_exec *, struct emu_group *, uint32_t limit);  /* enum emu_run */
    struct emu_observer observer;
    bool faulted;
};

/* The agent is its maker's, and stays as long as the world. */
void emu_add_agent(struct emu_world *world, struct emu_agent *agent);

/* The next number of the world's sequence, which the seed begins (splitmix64). */
static inline uint64_t emu_random(struct emu_world *world)
{
    uint64_t z = world->random += 0x9e3779b97f4a7c15;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

/* Whether lanes that came apart meet again where they happen to be at one place. */
static inline bool emu_lanes_meet(const struct emu_world *world)
{
    return world->options.scheduler == EMU_SCHED_RR;
}

/* Waits for other threads.  (EMU_WAIT_COPIES does not: a copy's end always comes.) */
static inline bool emu_blocked(const struct emu_group *g)
{
    return g->state == EMU_WAIT_WARP || g->state == EMU_WAIT_GATHER || g->state == EMU_WAIT_BARRIER;
}

#endif
