/* SPDX-License-Identifier: MIT
 *
 * Parameter blocks of the kernels and every structure that host and device, or two ranks, share:
 * the one place a layout is written.  PTX offsets (ptx/gen/params.inc), Cython declarations and
 * static asserts are generated from this file by deepep_ptx/toolchain/params.py.
 *
 * Form, checked by the generator: fixed-width scalars, arrays of them, or structures declared
 * above; widest first; no implicit padding.  The comment after a structure's opening brace gives
 * its prefix in PTX.  A structure nested as first field is reached in PTX under its own prefix.  `#define EP_NAME number` lines are passed on to PTX and Cython.
 * A structure of EP_REGION fields lays memory out: see struct ep_heap. */
#ifndef DEEPEP_PTX_PARAMS_H
#define DEEPEP_PTX_PARAMS_H

#include <stdint.h>

typedef uint64_t ep_dptr_t;                  /* device address, valid on one rank only */

/* -- limits ------------------------------------------------------------------------------- */
#define EP_MAX_TOPK 32                       /* one lane per top-k entry                     */
#define EP_MAX_RANKS 64                      /* ranks of one NVLink domain                   */
#define EP_MAX_LOCAL_EXPERTS 1024
#define EP_MAX_TOKENS 33554431               /* of a rank, below 2^25: kernels count its tokens
                                              * times ranks, and times choices, below 2^31  */
#define EP_MAX_CHOICE_ROWS 67108863          /* rows with choices, below 2^26: likewise times
                                              * EP_MAX_TOPK                                  */
#define EP_MAX_HIDDEN 16777215               /* values of a row, below 2^24: what is left of
                                              * the word EP_AGREE_TOPK_IDX_BYTES             */
#define EP_MAX_SEGMENTS 8                    /* arena segments: the arena grows by segments  */
#define EP_PEER_ENTRIES 576                  /* of ep_comm.peers: 1 + EP_MAX_SEGMENTS per rank,
                                              * behind them EP_MAX_RANKS for low latency, and */
#define EP_LL_HALF_ENTRY 640                 /* the bytes of a half of that memory,           */
#define EP_LL_WORDS_ENTRY 641                /* and where in it the words begin               */
#define EP_LL_RAW_ENTRY 642                  /* and what is stored as it is                    */
#define EP_STATUS_RECORDS 16
#define EP_ROW_ALIGN 16                      /* bytes: a row is a whole number of vectors    */
#define EP_SLOT_ALIGN 128                    /* bytes: each array of a slot starts on a line */
#define EP_FOREVER 0xffffffffffffffff        /* time limit: none                             */

/* -- operations: the low byte of a flag; word 0 of a call record's `agree` ------------------- */
#define EP_OP_DISPATCH 1
#define EP_OP_COMBINE 2
#define EP_OP_CACHED_DISPATCH 3              /* with the handle of an earlier dispatch        */
#define EP_OP_LL_DISPATCH 4                  /* low latency                                   */
#define EP_OP_LL_COMBINE 5

/* -- words of a call record that must be equal on all ranks ---------------------------------- */
#define EP_AGREE_OP 0
#define EP_AGREE_NUM_EXPERTS 1
#define EP_AGREE_HIDDEN_BYTES 2
#define EP_AGREE_DTYPE 3
#define EP_AGREE_NUM_TOPK 4
#define EP_AGREE_TOPK_IDX_BYTES 5            /* 0 without top-k, | combine_hidden << 8;
                                              * combine: 1 with weights                      */
#define EP_AGREE_HANDLE 6                    /* number of the call that made the handle      */
#define EP_AGREE_SCALE_BYTES 7               /* 0 without scales                             */
#define EP_AGREE_WORST_ROWS 8                /* dispatch: num_worst_tokens, 0 = the host waits;
                                              * low latency: num_max_dispatch_tokens_per_rank */
#define EP_AGREE_WORDS 9

/* -- modes of a call record ------------------------------------------------------------------ */
#define EP_MODE_PULL_X 1                     /* combine: my expert output lies in my arena   */
#define EP_MODE_PULL_WEIGHTS 2               /* combine: so do my weights                    */

/* -- codes of a status record, verdicts of a call -------------------------------------------- */
#define EP_CODE_OK 0
#define EP_CODE_TIMEOUT 1                    /* a wait reached its time limit                */
#define EP_CODE_PEER_ABORT 2                 /* a peer aborted while this rank waited        */
#define EP_CODE_MISMATCH 3                   /* ranks called different things                */
#define EP_CODE_CAPACITY 4                   /* a rank's arena has no room for its rows      */
#define EP_CODE_IN_CALL 5                    /* two calls of one buffer overlap              */
#define EP_CODE_TOPK_RANGE 6                 /* an expert id is outside [-1, num_experts)    */
#define EP_CODE_RANK_COUNTS 7                /* num_tokens_per_rank is not is_token_in_rank's */
#define EP_CODE_PEER_FAULT 8                 /* a peer reported bad arguments in its record  */
#define EP_CODE_ABORTED 9                    /* the buffer was aborted before this call      */
#define EP_CODE_DEAD_HANDLE 10               /* the dispatch that made the handle was refused */
#define EP_CODE_TOPK_ROWS 11                 /* low latency: a rank's tokens name an expert more
                                              * than num_max_dispatch_tokens_per_rank times   */
#define EP_CODE_MASKED 12                    /* of a wait alone: nothing comes of that rank, which
                                              * is masked                                     */

/* -- `what` of a capacity record: what has no room --------------------------------------------- */
#define EP_CAPACITY_ROWS 0                   /* rows received, or pushed in a combine        */
#define EP_CAPACITY_WORST 1                  /* more rows than num_worst_tokens              */
#define EP_CAPACITY_ARRAY 2                  /* an array of the caller's                     */

/* -- what a wait waits for --------------------------------------------------------------------- */
#define EP_WAIT_CALL 1                       /* the peer's call record                       */
#define EP_WAIT_PUSH 2                       /* the peer's pushed rows                       */
#define EP_WAIT_DONE 3                       /* the end of the peer's CTAs                   */
#define EP_WAIT_NUMBERS 4                    /* this rank's CTAs, which number its tokens    */
#define EP_WAIT_LOAD 5                       /* a bulk load of this thread's own             */

#define EP_MAX_CTAS 512                      /* of a dispatch or a combine                   */

/* -- rings of stages for bulk copies ------------------------------------------------------------ */
#define EP_MIN_STAGES 2                      /* one is filled while another drains           */
#define EP_STAGE_EXTRA 16                    /* bytes beside a stage: its mbarrier, aligned  */
#define EP_MAX_SMEM 193536                   /* dynamic shared memory of a CTA, where a device has
                                              * 227 KiB for it: less 38 that are static */

#define EP_SLOT_ARRAYS 5                     /* x, scales, topk_idx, topk_weights, src_idx    */

/* -- pushed rows ------------------------------------------------------------------------------ */
#define EP_MAX_PUSHERS 1024                  /* warps of a rank that push rows               */
#define EP_PUSH_COUNT_BITS 24                /* of a progress word: rows pushed              */

/* -- low latency --------------------------------------------------------------------------------
 * A word of 16 bytes that is stored and loaded as one: 12 of data, and the lower half of the epoch
 * of its call.  Nothing is cleared: who reads a word waits until it is of the call that runs.      */
#define EP_LL_WORD_BYTES 16
#define EP_LL_DATA_BYTES 12
#define EP_LL_GROUP 128                      /* values of a row that share an FP8 scale        */
#define EP_LL_GROUP_WORDS 11                 /* of such a group: 128 bytes and the scale       */

/* Words of a head: the EP_AGREE_WORDS, and */
#define EP_LL_HEAD_TOKENS 9                  /* dispatch: tokens of the writer                 */
#define EP_LL_HEAD_USED 10                   /* words that there are                           */
#define EP_LL_HEAD_WORDS 16

#define EP_LL_TEAMS 3                        /* of a CTA's warps, at most                      */

#define EP_LL_SEND 1                         /* phases: what a launch does of its call         */
#define EP_LL_RECEIVE 2
#define EP_LL_MASK_NS 2000000                /* between masking a rank and the call's end: far more
                                              * than a kernel that waits for nobody takes      */

#define EP_LL_CAST_FP8 1                     /* casts of a dispatch                            */
#define EP_LL_CAST_ROUND 2                   /* scales are powers of two                       */
#define EP_LL_CAST_UE8M0 4                   /* and are returned as four exponents in a word   */

#define EP_LL_MAX_PARTS 8                    /* of a row that crosses as it is                 */

#define EP_LL_PIECE 512                      /* values of a row that a warp encodes at once:
                                              * combine's rows in LogFMT-10                  */
#define EP_LL_PIECE_WORDS 96                 /* of such a piece as words, at most            */
#define EP_LL_PIECE_RANGES 4                 /* numbers of 32 bits, one of each 128 values   */

#define EP_LL_REDUCE_EXACT 1                 /* combine: rows cross, summed in the order of k  */
#define EP_LL_REDUCE_RANK 2                  /* sums of each rank's rows cross, in FP32        */

/* ============================================================================================
 * The symmetric heap of one rank, alike on all: struct ep_heap, below, lists its regions.
 * ============================================================================================ */

struct ep_control {                          /* ptx: CTL */
    uint64_t epoch;          /* collective calls completed                                      */
    uint64_t abort;          /* 0, or epoch << 8 | blamed peer + 1: sticky until reset()         */
    uint64_t numbered;       /* CTAs of the running dispatch that have numbered their tokens    */
    uint64_t ll_epoch;       /* epoch of the newest low-latency call that was completed          */
    uint32_t in_call;        /* 1 from a call's first CTA to its end                            */
    uint32_t verdict;        /* EP_CODE_* of the newest exchange                                */
    uint32_t ticket;         /* CTAs of the running call that have started; wraps to 0          */
    uint32_t arrived;        /* CTAs of the running layout that have ended; wraps to 0           */
    uint32_t fault;          /* EP_CODE_* that layout found; the next dispatch tells it to all  */
    uint32_t unused;
    uint32_t masked[2];      /* u64: a bit for each rank that low-latency calls do without, until
                              * reset()                                                         */
    uint32_t reserved[16];
};

struct ep_flags {                            /* ptx: FLAG */
    uint64_t abort;          /* epoch << 8 | blamed peer + 1: the writer has aborted, or left   */
    uint64_t left;           /* 1: the writer has left; it writes nothing here any more         */
    uint64_t ll_free;        /* epoch of its newest low-latency call: its kernels before are over */
    uint64_t reserved[13];
};

/* Of each CTA of a peer: epoch << 8 | op: it needs nothing more of this rank. */
struct ep_done {                             /* ptx: DONE */
    uint64_t cta[EP_MAX_CTAS];
};

/* Progress of each warp of a peer that pushes rows: epoch << EP_PUSH_COUNT_BITS | rows. */
struct ep_pushed {                           /* ptx: PUSHED */
    uint64_t warp[EP_MAX_PUSHERS];
};

/* What a rank says of its low-latency call: each word is epoch << 32 | value. */
struct ep_ll_head {                          /* ptx: LLH */
    uint64_t word[EP_LL_HEAD_WORDS];
};

/* Whether a rank takes part in a low-latency dispatch, as the CTAs of this rank have agreed:
 * epoch << 1 | 1 if it does. */
struct ep_ll_presence {                      /* ptx: LLP */
    uint64_t decision;
};

/* 32 words: a warp writes and reads a record with one word per lane. */
struct ep_call_record {                      /* ptx: REC */
    uint64_t slot_offset;    /* dispatch: result extent; combine: staging extent; in the segment */
    uint64_t slot_bytes;     /* bytes of that extent                                            */
    uint64_t held_bytes;     /* bytes of the arena outside of that extent and of landing         */
    uint64_t landing_bytes;  /* dispatch: the extent that no result keeps: pushed rows land there */
    uint64_t landing_want;   /* dispatch: bytes of it that do whatever the routing is            */
    uint64_t x_offset;       /* combine, PULL_X: expert output, in x_segment                    */
    uint64_t weights_offset; /* combine, PULL_WEIGHTS: weights, in weights_segment              */
    uint32_t slot_segment;
    uint32_t x_segment;
    uint32_t weights_segment;
    uint32_t mode;           /* EP_MODE_*                                                       */
    uint32_t agree[EP_AGREE_WORDS];
    uint32_t fault;          /* EP_CODE_* that the writer found in its own arguments, else 0    */
    uint32_t ctas;           /* of the writer's kernel                                          */
    uint32_t pushers;        /* combine: warps of the writer that push rows                     */
    uint32_t reserved[2];
};

/* A record as it is written to a peer, in words that say themselves of which call they are, epoch <<
 * 32 | word, whose lower halves are
 *     struct ep_call_record
 *     uint32_t rank_counts[num_ranks]                 dispatch: writer's tokens to each rank
 *     uint32_t expert_counts[num_local_experts]       likewise to each of MY experts, if not cached */
struct ep_sent_record {                      /* ptx: RECS */
    uint64_t word[32 + EP_MAX_RANKS + EP_MAX_LOCAL_EXPERTS];
};

/* Regions of the heap in their order, EP_REGION(element, count, name): an array of so many elements
 * that starts at a multiple of EP_SLOT_ALIGN, the field its offset in bytes.  ep_heap_layout
 * (gen/heap_layout.h) is generated of this list; kernels have the offsets from ep_comm. */
#define EP_REGION(element, count, name) uint64_t name
struct ep_heap {                             /* ptx: HEAP */
    EP_REGION(struct ep_control, 1, control);              /* first: at the heap's own address  */
    EP_REGION(struct ep_flags, num_ranks, flags);          /* of each writing peer: one line    */
    EP_REGION(struct ep_done, num_ranks, done);            /* likewise                          */
    EP_REGION(struct ep_pushed, num_ranks, pushed);        /* likewise                          */
    EP_REGION(struct ep_sent_record, 2 * num_ranks, records);      /* two parities of the epoch */
    EP_REGION(struct ep_ll_head, 2 * num_ranks, ll_heads);         /* likewise                  */
    EP_REGION(struct ep_ll_presence, num_ranks, ll_presence);      /* of each rank              */
};

/* A record as a CTA keeps it in shared memory once it has come. */
struct ep_came {                             /* ptx: CAME */
    struct ep_call_record record;
    uint32_t counts[EP_MAX_RANKS];           /* dispatch: rank_counts; combine: rows that ranks
                                              * 0 .. the writer sent to each, out of the handle  */
};

/* A rank's rows of one array set, as seen by one sender: addresses of the sender's FIRST row. */
struct ep_dest {                             /* ptx: DEST */
    ep_dptr_t x;             /* [rows][hidden_bytes]                                            */
    ep_dptr_t topk_idx;      /* [rows][num_topk]                                                */
    ep_dptr_t topk_weights;  /* f32[rows][num_topk]                                             */
    ep_dptr_t src_idx;       /* i32[rows]                                                       */
    ep_dptr_t scales;        /* [rows][scale_bytes]                                             */
};

/* Why a thread of a low-latency call has aborted its rank, as its CTA keeps it until it leaves. */
struct ep_fault {                            /* ptx: FAULT */
    uint64_t word;           /* of the abort, for the peers; 0: no thread of this CTA was the first */
    uint64_t expected;       /* this and all below of the status record                         */
    uint64_t seen;
    uint32_t code;
    uint32_t peer;
    uint32_t what;
    uint32_t reserved;
};

/* Where combine's reducer finds the rows of one contributing rank, and whether it must wait. */
struct ep_source {                           /* ptx: SRC */
    ep_dptr_t x;             /* row 0 of those that rank holds for me                           */
    ep_dptr_t weights;       /* the same for the weights                                        */
    uint32_t  pushers;       /* warps of that rank that push, whose progress to wait for; 0     */
    uint32_t  count;         /* rows that rank holds for me                                     */
};

/* Where combine's pusher puts the rows that came from one source. */
struct ep_push {                             /* ptx: PUSH */
    ep_dptr_t x;             /* row 0 of mine in that rank's staging                            */
    ep_dptr_t weights;
    uint32_t  first;         /* my first row that came from that rank                           */
    uint32_t  count;         /* how many did                                                    */
};

/* -- pinned host memory --------------------------------------------------------------------- */

struct ep_status_record {                    /* ptx: STAT */
    uint64_t epoch;
    uint64_t expected;       /* flag value, needed bytes, upper bound; by code                  */
    uint64_t seen;
    uint32_t code;           /* EP_CODE_*                                                       */
    uint32_t kernel;         /* EP_KERNEL_* of gen/kernels.h: its place in ptx/variants.toml    */
    uint32_t peer;
    uint32_t what;           /* EP_WAIT_*, EP_AGREE_*, or a row; by code                        */
    uint32_t valid;          /* 1 once the record is whole; stored last                         */
    uint32_t reserved[5];
};

struct ep_status_ring {                      /* ptx: RING */
    uint32_t next;           /* records ever written                                            */
    uint32_t aborted;        /* 1: the rank has aborted, whether there was room for a record    */
    uint32_t stop;           /* 1, by the host: it has given up, the rank's waits shall end      */
    uint32_t reserved[13];
    struct ep_status_record record[EP_STATUS_RECORDS];
};

/* Followed by uint32_t expert_counts[EP_MAX_LOCAL_EXPERTS]: tokens my experts receive.           */
struct ep_totals {                           /* ptx: TOT */
    uint64_t ticket;         /* the host's call number, stored last                             */
    uint64_t started;        /* the same, stored first: the call runs                           */
    uint32_t verdict;        /* EP_CODE_*                                                       */
    uint32_t num_recv;       /* rows this rank receives                                         */
    uint32_t landing_rows;   /* that its landing must hold                                      */
    uint32_t reserved;
};

/* ============================================================================================
 * Parameter blocks, one per kernel.
 * ============================================================================================ */

struct ep_comm {                             /* ptx: COMM */
    ep_dptr_t heap;          /* my heap: control words                                          */
    ep_dptr_t peers;         /* u64[1 + EP_MAX_SEGMENTS][EP_MAX_RANKS]: each rank's heap as mapped
                              * here, mine included; likewise each segment of its arena          */
    ep_dptr_t status;        /* struct ep_status_ring, pinned                                   */
    uint64_t  timeout_ns;    /* limit of each wait, EP_FOREVER = none                           */
    struct ep_heap regions;  /* offsets in every rank's heap                                    */
    uint32_t  rank;
    uint32_t  num_ranks;
};

/* What the exchange at the start of a call takes. */
struct ep_exchange {                         /* ptx: XCHG */
    struct ep_comm comm;
    struct ep_call_record record;            /* written at every peer; fault, ctas and pushers are
                                              * the kernel's own */
};

struct ep_layout_params {                    /* ptx: LAYOUT */
    struct ep_comm comm;
    ep_dptr_t topk_idx;      /* in  i32|i64[num_tokens][num_topk], -1 = unused                  */
    ep_dptr_t rank_counts;   /* out i32[num_ranks]: tokens to each rank                         */
    ep_dptr_t expert_counts; /* out i32[num_experts]: tokens to each expert                     */
    ep_dptr_t in_rank;       /* out u8[num_tokens][num_ranks]                                   */
    ep_dptr_t tally;         /* u32[num_ranks + num_experts]: zero before and after              */
    uint32_t  num_tokens;
    uint32_t  num_topk;
    uint32_t  num_experts;
    uint32_t  topk_idx_bytes;                /* 4 or 8                                          */
};

/* A cached dispatch, which has an earlier one's pos and rank_prefix, looks at no counts. */
struct ep_dispatch_params {                  /* ptx: DISP */
    struct ep_exchange exchange;
    ep_dptr_t x;             /* in  [num_tokens][hidden_bytes], nobody writes it meanwhile       */
    ep_dptr_t scales;        /* in  [num_tokens][scale_bytes / scale_width] in these strides    */
    int64_t   scale_row_stride;              /* bytes from a token's scales to the next token's */
    int64_t   scale_stride;                  /* bytes from one of its words to the next         */
    ep_dptr_t topk_idx;      /* in  i32|i64[num_tokens][num_topk], or 0                         */
    ep_dptr_t topk_weights;  /* in  f32[num_tokens][num_topk], or 0                             */
    ep_dptr_t in_rank;       /* in  u8[num_tokens][num_ranks]                                   */
    ep_dptr_t rank_counts;   /* in  i32[num_ranks]: what the caller says; checked               */
    ep_dptr_t expert_counts; /* in  i32[num_experts]                                            */
    ep_dptr_t pos;           /* out i32[num_tokens][num_ranks]: index among my rows there, -1   */
    ep_dptr_t rank_prefix;   /* out i32[num_ranks][num_ranks]: [s][d] = rows of ranks 0..s to d;
                              * all -1 when the call is refused                                  */
    ep_dptr_t worst_idx;     /* out my recv_topk_idx, for the rows past the total; 0 = none     */
    ep_dptr_t totals;        /* out struct ep_totals, pinned                                    */
    uint64_t  ticket;        /* stored to totals last                                           */
    uint32_t  num_tokens;
    uint32_t  hidden_bytes;
    uint32_t  scale_bytes;   /* of a row, a multiple of scale_width; 0 without scales           */
    uint32_t  num_topk;      /* 0 without top-k                                                 */
    uint32_t  topk_idx_bytes;                /* 0, 4 or 8                                       */
    uint32_t  num_local_experts;
    uint32_t  worst_rows;    /* 0, or rows of the result                                        */
    uint32_t  landing_bytes; /* of a row in landing; 0: room was made before                     */
    uint32_t  land_received; /* 1: landing must hold the rows received as well                  */
    uint32_t  num_stages;    /* bulk: of each warp's ring                                       */
    uint32_t  stage_bytes;   /* bulk: a multiple of 16                                          */
    uint32_t  block_tokens;  /* tokens that each CTA numbers, in the order of the CTAs          */
    uint32_t  scale_width;   /* bytes of a word of scales, 1, 2 or 4; 0 without scales          */
    uint32_t  reserved;
};

struct ep_combine_params {                   /* ptx: COMB */
    struct ep_exchange exchange;
    ep_dptr_t x;             /* in  [num_recv][hidden_bytes], or 0 when it is pulled             */
    ep_dptr_t weights;       /* in  f32[num_recv][num_topk], or 0                               */
    ep_dptr_t out;           /* out bf16[num_tokens][hidden]                                    */
    ep_dptr_t out_weights;   /* out f32[num_tokens][num_topk], or 0                             */
    ep_dptr_t bias0;         /* in  bf16[num_tokens][hidden], or 0                              */
    ep_dptr_t bias1;
    ep_dptr_t pos;           /* in  i32[num_tokens][num_ranks], of the dispatch                 */
    ep_dptr_t rank_prefix;   /* in  i32[num_ranks][num_ranks], likewise                         */
    uint32_t  num_tokens;
    uint32_t  hidden_bytes;
    uint32_t  num_topk;      /* 0 without weights                                               */
    uint32_t  num_stages;    /* bulk: of each pushing warp's ring                               */
    uint32_t  stage_bytes;   /* bulk: a multiple of 16                                          */
    uint32_t  reserved;
};

/* One array of a slot, in the order in which they lie there. */
struct ep_copy {                             /* ptx: CPY */
    ep_dptr_t dst;           /* out [rows][row_bytes], 16-byte aligned; 0: it stays             */
    uint32_t  row_bytes;     /* 0: the slot has no such array                                   */
    uint32_t  whole;         /* 1: rows past the total too, which were filled                    */
};

struct ep_copy_params {                      /* ptx: COPY */
    struct ep_comm comm;
    struct ep_copy copy[EP_SLOT_ARRAYS];
    ep_dptr_t slot;          /* in  the result, in my arena                                     */
    ep_dptr_t rank_prefix;   /* in  i32[num_ranks][num_ranks], of the dispatch                  */
    uint32_t  slot_rows;     /* that the slot is made for; 0: those received                    */
    uint32_t  rows;          /* that the copies have room for                                   */
};

/* What both low-latency calls take.  Every rank's low-latency memory has two halves, for the parity
 * of the epoch, and each half three areas: numbers, u64 of which the upper half is the lower half of
 * an epoch; words, of EP_LL_WORD_BYTES, which end with it; and what is stored as it is.  The areas are
 * the same for all calls and shapes, so no bytes of a row can ever lie where an epoch is looked for.
 * Where they are is not a parameter: memory may be replaced by larger memory between the replays of a
 * graph. */
struct ep_ll_params {                        /* ptx: LL */
    struct ep_comm comm;
    uint32_t  agree[EP_AGREE_WORDS];         /* must be equal on all ranks                      */
    uint32_t  phases;        /* EP_LL_SEND | EP_LL_RECEIVE                                      */
    uint32_t  num_tokens;    /* of this rank                                                    */
    uint32_t  max_tokens;    /* of any rank                                                     */
    uint32_t  num_topk;
    uint32_t  topk_idx_bytes;                /* 4 or 8                                          */
    uint32_t  num_local_experts;
    uint32_t  row_bytes;     /* of a row of bfloat16                                            */
};

/* Numbers of a dispatch: counts[num_ranks][num_local_experts], of choices of that expert by that rank.
 * Words: slots[num_ranks][max_tokens] of slot_bytes, of the writing rank's tokens: num_topk words
 * {local expert or -1, which of its rows from that rank, 0}, then the row's words. */
struct ep_ll_dispatch_params {               /* ptx: LLD */
    struct ep_ll_params ll;
    ep_dptr_t x;             /* in  bf16[num_tokens][hidden]                                    */
    ep_dptr_t topk_idx;      /* in  i32|i64[num_tokens][num_topk], -1 = unused                  */
    ep_dptr_t recv_x;        /* out [num_local_experts][num_ranks * max_tokens][hidden]         */
    ep_dptr_t recv_scales;   /* out f32[num_local_experts][groups][num_ranks * max_tokens], or
                              *     i32 of a quarter of the groups                              */
    ep_dptr_t recv_count;    /* out i32[num_local_experts]                                      */
    ep_dptr_t src_info;      /* out i32[num_local_experts][num_ranks * max_tokens]              */
    ep_dptr_t layout_range;  /* out i64[num_local_experts][num_ranks]: first row << 32 | rows   */
    ep_dptr_t rows_of;       /* out i32[num_ranks][max_tokens][num_topk]: row of recv_x, or -1  */
    ep_dptr_t source_tokens; /* out i32[num_ranks]: tokens of each rank                         */
    ep_dptr_t recv_stats;    /* io  i32[num_local_experts] += recv_count, or 0                  */
    ep_dptr_t wait_stats;    /* io  i64[num_ranks] += clock cycles of waiting, or 0             */
    uint32_t  slot_bytes;
    uint32_t  row_words;     /* of a row in a slot                                              */
    uint32_t  cast;          /* EP_LL_CAST_*, 0: rows stay bfloat16                             */
    uint32_t  block_tokens;  /* tokens whose choices each CTA numbers                           */
    uint32_t  teams;         /* EP_LL_TEAMS, or 1: of warps that take rows, two in smem for each  */
    uint32_t  reserved;
};

/* Of the kernels ll_combine and ll_logfmt_combine.
 * Slots of a combine: [max_tokens][num_topk] of this rank's tokens where rows cross,
 * [num_ranks][max_tokens] where sums do: among the words, or of a rank with more than word_tokens tokens
 * as they are.  Numbers: flags[num_ranks][max_tokens][EP_LL_MAX_PARTS], by which the writing rank's warps
 * tell which parts of a token's rows lie there as they are; where sums cross also
 * weights[num_ranks][max_tokens][num_topk], of the writing rank.
 * A row in LogFMT-10 is pieces of 32 lanes' 16 values.  A lane has five numbers of 32 bits of it, and the
 * range of the 128 values that these are of: the bits of the largest |x|, those of the least << 16; or
 * eight numbers, as they are, and 0.  As words: 32 of three numbers each, 32 of two and the range, 32 of
 * the other three, if there are any.  As it is: 1024 bytes for a piece, of which each lane has 16, then
 * four or 16 for the others; behind the row the ranges. */
struct ep_ll_combine_params {                /* ptx: LLC */
    struct ep_ll_params ll;
    ep_dptr_t x;             /* in  bf16[num_local_experts][num_ranks * max_tokens][hidden]     */
    ep_dptr_t topk_idx;      /* in  as in dispatch                                              */
    ep_dptr_t topk_weights;  /* in  f32[num_tokens][num_topk]                                   */
    ep_dptr_t out;           /* out bf16[num_tokens][hidden]                                    */
    ep_dptr_t rows_of;       /* in  of the dispatch                                             */
    ep_dptr_t source_tokens; /* in  likewise                                                    */
    ep_dptr_t wait_stats;    /* io  i64[num_ranks] += clock cycles of waiting, or 0             */
    uint32_t  slot_bytes;    /* of words                                                        */
    uint32_t  raw_bytes;     /* of what lies there as it is                                     */
    uint32_t  reduce;        /* EP_LL_REDUCE_*                                                  */
    uint32_t  x_row_bytes;   /* from a row of x to the next                                     */
    uint32_t  word_tokens;   /* tokens of a rank up to which its rows or sums cross as words     */
    uint32_t  reserved;
};

struct ep_abort_params {                     /* ptx: ABORT */
    struct ep_comm comm;
};

/* Ranks that low-latency calls do without. */
struct ep_ll_mask_params {                   /* ptx: LLM */
    struct ep_comm comm;
    ep_dptr_t status;        /* out i32[num_ranks]: 1 of those that are masked, or 0            */
    uint64_t  mask;          /* a bit for each rank to mask                                     */
};

#endif
