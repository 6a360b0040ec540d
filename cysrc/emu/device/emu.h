/* SPDX-License-Identifier: MIT
 *
 * The CPU executor's core: virtual GPUs that execute decoded PTX.
 *
 * A world holds the ranks of one run.  Each rank has a 64-bit address space of its own (a peer's
 * memory is mapped at another address there), running grids, and nothing else: streams, host
 * threads and copies live one layer up (emu/host).  One thread at a time may call in here. */
#ifndef DEEPEP_PTX_EMU_H
#define DEEPEP_PTX_EMU_H

#include <stdbool.h>
#include <stdint.h>
#include <stddef.h>

enum emu_result {
    EMU_OK = 0,
    EMU_ERR_MEMORY,          /* no memory                                                     */
    EMU_ERR_ADDRESS,         /* not a mapped address of that rank, or not that many bytes      */
    EMU_ERR_ARGUMENT,        /* launch does not fit the kernel or the device                   */
    EMU_ERR_FAULT            /* the world has a fault                                         */
};

/* What emu_step() found. */
enum emu_progress {
    EMU_IDLE,                /* no grid is running                                            */
    EMU_RUNNING,             /* something changed: memory, a barrier, a grid's end             */
    EMU_STALLED,             /* every group waits or spins and a whole round changed nothing   */
    EMU_FAULTED
};

enum emu_check {             /* bits of emu_options.checks */
    EMU_CHECK_UNINIT = 1     /* reads of bytes and registers that nobody wrote.  Bounds,
                                alignment, mask and barrier checks cannot be switched off      */
};

enum emu_scheduler {
    EMU_SCHED_RR,            /* every warp in turn, equal slices; lanes meet again early; bulk
                                copies are done at the end of the round                       */
    EMU_SCHED_RANDOM,        /* any order, slice, pace of copies, order of CTAs; lanes come apart
                                by chance too, and stay so until a .sync brings them together */
    EMU_SCHED_LATE_ASYNC,    /* as rr, but copies wait until nothing else can run, and lanes stay
                                apart                                                         */
    EMU_SCHED_COUNT
};

struct emu_options {
    uint32_t num_ranks;
    uint32_t sms_per_rank;   /* CTAs are resident while they fit: threads, shared memory, slots */
    uint32_t cta_smem;       /* bytes of shared memory that a CTA can have                    */
    uint32_t scheduler;      /* enum emu_scheduler                                            */
    uint32_t checks;         /* EMU_CHECK_* bits                                              */
    uint64_t seed;
    uint64_t stall_limit;    /* warp instructions a live group may execute while nothing in the
                                world changes, before the run is called never-ending           */
    uint64_t instruction_limit;      /* warp instructions that one launch may execute, before
                                it is called never-ending whatever it changes                 */
};

/* A decoded instruction.  Register operands are byte offsets into the warp's register file;
 * a negative operand ~x is byte offset x into the kernel's constant pool, laid out like
 * registers (32 lanes).  EMU_NONE = operand absent. */
#define EMU_NONE INT32_MIN

struct emu_insn {
    uint16_t op;             /* enum emu_op, generated from deepep_ptx/emu/isa.py              */
    uint8_t  type;           /* enum emu_type of the operation                                */
    uint8_t  type2;          /* cvt: source type                                              */
    uint8_t  vec;            /* elements of ld/st: 1, 2, 4; EMU_F_WHOLE: halves of one        */
    uint8_t  space;          /* enum emu_space                                                */
    uint8_t  sem;            /* enum emu_sem: weak, relaxed, volatile, acquire, release, acq_rel */
    uint8_t  scope;          /* enum emu_scope                                                */
    uint8_t  proxy;          /* enum emu_proxy                                                */
    uint8_t  sub;            /* setp: comparison; atom: operation; mov: special register; ...  */
    uint16_t flags;          /* EMU_F_*                                                       */
    int32_t  pred;           /* guard predicate: index, or -1                                 */
    int32_t  dst[4];
    int32_t  src[4];
    int32_t  target;         /* branch: index of the target instruction                       */
    int32_t  line;           /* index into the kernel's line table                            */
    int64_t  imm;            /* address offset, parameter offset, immediate                   */
};

struct emu_world;
struct emu_kernel;
struct emu_grid;
struct emu_finding;
struct emu_access;
struct emu_event;
struct emu_exec;
struct emu_instr;

/* Whom a world tells what it finds, from inside of the call that finds it. */
struct emu_observer {
    void *self;              /* of `fault`                                                    */
    void *watcher;           /* of the others                                                 */
    /* The first fault: emu_report() describes it now or never.  The world stands still from here
     * on. */
    void (*fault)(void *self, const struct emu_finding *finding);
    /* An access of memory, see observe.h; NULL: nobody hears of them. */
    void (*access)(void *self, const struct emu_access *access);
    /* What orders accesses, likewise; NULL: nobody hears of that. */
    void (*event)(void *self, const struct emu_event *event);
    /* Lanes have executed a load, a copy has read bytes from its source: it may give registers, or
     * the bytes, other values.  NULL: it never does. */
    void (*loaded)(void *self, struct emu_exec *x, const struct emu_instr *op);
    void (*copied)(void *self, uint8_t *bytes);
};

struct emu_world *emu_world_create(const struct emu_options *options,
                                   const struct emu_observer *observer);
void emu_world_destroy(struct emu_world *world);

/* -- memory ---------------------------------------------------------------------------------
 * Every segment lies at its own 2 MiB-aligned address with unmapped space behind it.  Bytes of
 * emu_alloc are uninitialised (and filled with a seed pattern); mapped host memory is whole. */
int emu_alloc(struct emu_world *world, uint32_t rank, uint64_t bytes, const char *name,
              uint64_t *va, void **host);
int emu_map_host(struct emu_world *world, uint32_t rank, void *host, uint64_t bytes, int writable,
                 const char *name, uint64_t *va);
int emu_map_peer(struct emu_world *world, uint32_t rank, uint32_t owner, uint64_t owner_va,
                 uint64_t *va);
/* Registers of a device, a doorbell say, in place of memory: what a lane loads or stores there is a
 * call, of `bytes` (1 to 8) at `offset`, element by element and lane by lane.  No other access, and
 * none of a .b128, which must not come in pieces.
 * Who changes what a kernel may poll there calls emu_touch(). */
struct emu_mmio {
    void *self;
    uint64_t (*load)(void *self, uint64_t offset, unsigned bytes);
    void (*store)(void *self, uint64_t offset, unsigned bytes, uint64_t value);
};
int emu_map_mmio(struct emu_world *world, uint32_t rank, const struct emu_mmio *mmio,
                 uint64_t bytes, const char *name, uint64_t *va);
/* Unmaps; the owner's unmap frees.  A later access of the address is reported as use after free,
 * with the name of what was there while that is among the last ones that the rank has unmapped, and
 * as long as the address has not been given to another segment. */
int emu_unmap(struct emu_world *world, uint32_t rank, uint64_t va);
/* Host access: [va, va + bytes) must lie in one segment. */
int emu_host_read(struct emu_world *world, uint32_t rank, void *dst, uint64_t va, uint64_t bytes);
int emu_host_write(struct emu_world *world, uint32_t rank, uint64_t va, const void *src,
                   uint64_t bytes);
int emu_host_fill(struct emu_world *world, uint32_t rank, uint64_t va, uint8_t value,
                  uint64_t bytes);
int emu_host_address(struct emu_world *world, uint32_t rank, uint64_t va, uint64_t bytes,
                     void **host);
/* The host reads these bytes through an address it holds; `acquires`: one word, as by an acquiring
 * load of system scope. */
int emu_host_reads(struct emu_world *world, uint32_t rank, uint64_t va, uint64_t bytes,
                   bool acquires);
/* The host wrote these bytes through an address it holds: they count as initialised. */
int emu_host_written(struct emu_world *world, uint32_t rank, uint64_t va, uint64_t bytes);

/* -- kernels -------------------------------------------------------------------------------- */
struct emu_kernel_image {
    const char *symbol;
    const struct emu_insn *insns;   uint32_t num_insns;
    const uint8_t *constants;       uint32_t constant_bytes;
    uint32_t register_bytes;        /* register file of one warp                              */
    uint32_t num_predicates;
    uint32_t param_bytes;
    uint32_t shared_bytes;          /* static                                                 */
    uint32_t local_bytes;           /* per thread                                             */
    uint32_t max_threads;           /* .maxntid, 0 = not given                                */
    const char *const *files;       uint32_t num_files;
    const struct emu_line { uint32_t file, line, ptx_line; } *lines;  uint32_t num_lines;
    const char *const *texts;       /* [num_insns]: the statement, for reports                */
};
/* Copies everything it needs. */
struct emu_kernel *emu_kernel_load(struct emu_world *world, const struct emu_kernel_image *image);
/* [num_insns]: whether any lane of any rank has executed the instruction, its guard being true. */
const bool *emu_kernel_ran(const struct emu_kernel *kernel, uint32_t *num_insns);

/* -- grids ---------------------------------------------------------------------------------- */
int emu_launch(struct emu_world *world, uint32_t rank, struct emu_kernel *kernel,
               const void *params, uint32_t param_bytes,
               uint32_t grid, uint32_t block, uint32_t smem, struct emu_grid **out);
int  emu_grid_done(const struct emu_grid *grid);
/* Of a finished grid, or of any in a faulted world. */
void emu_grid_free(struct emu_grid *grid);
int  emu_max_resident(const struct emu_world *world, const struct emu_kernel *kernel,
                      uint32_t block, uint32_t smem, uint32_t *ctas);

/* -- time and scheduling --------------------------------------------------------------------
 * One step = one scheduling round over all live groups of all ranks.  Virtual time (ns, what
 * %globaltimer reads) advances with every round. */
enum emu_progress emu_step(struct emu_world *world);
uint64_t emu_now(const struct emu_world *world);
void     emu_advance(struct emu_world *world, uint64_t to);
/* The smallest value above now that a spinning group compares %globaltimer with; UINT64_MAX if
 * none. */
uint64_t emu_next_deadline(const struct emu_world *world);
/* Something outside of the grids changed memory that they may poll. */
void     emu_touch(struct emu_world *world);

/* Turn a stall that nothing can end into a fault that lists every waiting group. */
void emu_stall(struct emu_world *world);

struct emu_fault {
    char kind[32];           /* "out-of-bounds", "deadlock", ...                              */
    char kernel[96], file[160];
    uint32_t line;           /* of file; 0 when the fault has no single place                 */
    uint32_t ptx_line;       /* of the rendered text                                          */
    int32_t  rank, cta, warp, lane;     /* -1 = none                                          */
    char *text;              /* the whole report; from malloc, the caller's to free           */
};
bool emu_faulted(const struct emu_world *world);
/* Puts the finding into words.  `fault` is zero but for `text`, which is "" or NULL; a report that
 * gets no memory stays short. */
void emu_report(struct emu_fault *fault, const struct emu_finding *finding);

/* Totals since the world was made or reset. */
struct emu_counters {
    uint64_t warp_instructions, thread_instructions;
    uint64_t global_load_bytes, global_store_bytes, peer_load_bytes, peer_store_bytes;
    uint64_t global_load_transactions, global_store_transactions;   /* of 32 bytes */
};
void emu_rank_counters(const struct emu_world *world, uint32_t rank, struct emu_counters *out);

#endif
