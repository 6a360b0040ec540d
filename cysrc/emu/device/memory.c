/* SPDX-License-Identifier: MIT */
#include "memory.h"
#include "bits.h"
#include "observe.h"

#include <stdlib.h>
#include <string.h>

#define PAGE_BYTES (1ull << EMU_PAGE_BITS)
#define RANK_WINDOW (1ull << 43)         /* address space of one rank                         */
#define WINDOW_PAGES (RANK_WINDOW / PAGE_BYTES)
#define ALIGNED_BYTES 256                /* an address is what its host address is, modulo this */
#define MOST_UNMAPPED 16384              /* mappings kept for reports, of each rank           */

/* -- segments ---------------------------------------------------------------------------------- */

static int new_segment(const struct emu_world *world, uint32_t owner, uint64_t bytes,
                       const char *name, struct emu_segment **out)
{
    struct emu_segment *s;

    if (owner >= world->options.num_ranks)
        return EMU_ERR_ARGUMENT;
    if (bytes > RANK_WINDOW || !(s = calloc(1, sizeof *s)))
        return EMU_ERR_MEMORY;
    s->owner = owner;
    s->bytes = bytes;
    s->name = strdup(name ? name : "unnamed");
    if (!s->name) {
        free(s);
        return EMU_ERR_MEMORY;
    }
    *out = s;
    return EMU_OK;
}

static void free_bytes(struct emu_segment *s)
{
    if (s->owned)
        free(s->host);
    free(s->valid);
    free(s->stored);
    s->host = NULL;
    s->valid = NULL;
    s->stored = NULL;
}

static void free_segment(struct emu_segment *s)
{
    free_bytes(s);
    free(s->name);
    free(s);
}

/* The mapping is none of its segment any more, which is freed behind the last one. */
static void leave_segment(struct emu_mapping *m)
{
    struct emu_segment *s = m->segment;
    struct emu_mapping **each = &s->mappings;

    while (*each != m)
        each = &(*each)->sibling;
    *each = m->sibling;
    m->segment = NULL;
    if (!s->mappings)
        free_segment(s);
}

/* -- addresses --------------------------------------------------------------------------------- */

/* Pages of a mapping: one at least stays unmapped behind it. */
static uint64_t pages_of(uint64_t bytes)
{
    return (bytes + PAGE_BYTES - 1) / PAGE_BYTES + 1;
}

static bool is_free(const struct emu_rank *rank, uint64_t page)
{
    return page >= rank->num_pages || rank->pages[page] == 0 ||
           rank->pages[page] == EMU_PAGE_FREED;
}

/* The first of so many free pages, from next_page on and around the end of the address space: what
 * was freed is used again after everything else, so a stale address seldom hits. */
static bool find_room(const struct emu_rank *rank, uint64_t pages, uint64_t *first)
{
    uint64_t page = rank->next_page, run = 0;

    for (uint64_t seen = 0; seen < WINDOW_PAGES + pages; seen++, page++) {
        if (page >= WINDOW_PAGES)
            page = run = 0;
        run = is_free(rank, page) ? run + 1 : 0;
        if (run == pages) {
            *first = page + 1 - pages;
            return true;
        }
    }
    return false;
}

/* Makes the page table that long. */
static bool grow_pages(struct emu_rank *rank, uint64_t pages)
{
    if (pages > rank->max_pages) {
        uint32_t *grown = realloc(rank->pages, 2 * pages * sizeof *grown);

        if (!grown)
            return false;
        rank->pages = grown;
        rank->max_pages = 2 * pages;
    }
    if (pages > rank->num_pages) {
        memset(rank->pages + rank->num_pages, 0, (pages - rank->num_pages) * sizeof *rank->pages);
        rank->num_pages = pages;
    }
    return true;
}

static uint64_t first_page(const struct emu_rank *rank, const struct emu_mapping *m)
{
    return (m->va - m->skew - rank->va_base) / PAGE_BYTES;
}

/* Forgets the mapping that was unmapped first. */
static void forget_oldest(struct emu_rank *rank)
{
    struct emu_mapping *m = rank->unmapped;
    uint64_t first = first_page(rank, m), pages = pages_of(m->segment->bytes + m->skew);

    rank->unmapped = m->next;
    rank->num_unmapped--;
    for (uint64_t i = 0; i < pages; i++)
        rank->pages[first + i] = EMU_PAGE_FREED;
    leave_segment(m);
    m->next = rank->spare;
    rank->spare = m;
}

static void keep_for_reports(struct emu_rank *rank, struct emu_mapping *m)
{
    m->next = NULL;
    if (rank->unmapped)
        rank->last_unmapped->next = m;
    else
        rank->unmapped = m;
    rank->last_unmapped = m;
    if (++rank->num_unmapped > MOST_UNMAPPED)
        forget_oldest(rank);
}

/* Takes the pages of `bytes`. */
static bool reserve(struct emu_rank *rank, uint64_t bytes, uint64_t *first)
{
    uint64_t pages = pages_of(bytes);

    if (!find_room(rank, pages, first)) {
        while (rank->unmapped)
            forget_oldest(rank);
        if (!find_room(rank, pages, first))
            return false;
    }
    if (!grow_pages(rank, *first + pages))
        return false;
    for (uint64_t i = 0; i < pages; i++)
        rank->pages[*first + i] = EMU_PAGE_TAKEN;
    rank->next_page = *first + pages;
    return true;
}

/* -- mappings ---------------------------------------------------------------------------------- */

static struct emu_mapping *new_mapping(struct emu_rank *rank)
{
    struct emu_mapping *m = rank->spare;

    if (m) {
        rank->spare = m->next;
        return m;
    }
    if (rank->num_mappings == rank->max_mappings) {
        uint32_t max = rank->max_mappings ? rank->max_mappings * 2 : 16;
        struct emu_mapping **grown = realloc(rank->mappings, max * sizeof *grown);

        if (!grown)
            return NULL;
        rank->mappings = grown;
        rank->max_mappings = max;
    }
    m = calloc(1, sizeof *m);
    if (!m)
        return NULL;
    m->number = rank->num_mappings;
    rank->mappings[rank->num_mappings++] = m;
    return m;
}

static int map_segment(struct emu_rank *rank, struct emu_segment *segment, bool writable,
                       struct emu_mapping **out)
{
    uint64_t skew = (uintptr_t)segment->host % ALIGNED_BYTES, first;
    struct emu_mapping *m = new_mapping(rank);

    if (!m)
        return EMU_ERR_MEMORY;
    if (!reserve(rank, segment->bytes + skew, &first)) {
        m->next = rank->spare;
        rank->spare = m;
        return EMU_ERR_MEMORY;
    }
    *m = (struct emu_mapping){
        .number = m->number, .va = rank->va_base + first * PAGE_BYTES + skew, .skew = skew,
        .bytes = segment->bytes, .host = segment->host, .valid = segment->valid,
        .segment = segment, .sibling = segment->mappings, .writable = writable,
        .peer = segment->owner != rank->index,
    };
    segment->mappings = m;
    for (uint64_t i = 0; i + 1 < pages_of(segment->bytes + skew); i++)
        rank->pages[first + i] = m->number + 1;
    *out = m;
    return EMU_OK;
}

/* -- what emu.h promises ----------------------------------------------------------------------- */

void emu_fill_pattern(const struct emu_world *world, void *dst, uint64_t bytes)
{
    uint8_t *p = dst;

    for (; bytes >= 8; bytes -= 8, p += 8)
        memcpy(p, &world->pattern, 8);
    memcpy(p, &world->pattern, bytes);
}

int emu_alloc(struct emu_world *world, uint32_t rank, uint64_t bytes, const char *name,
              uint64_t *va, void **host)
{
    struct emu_segment *s;
    struct emu_mapping *m;
    void *memory = NULL;
    int result = new_segment(world, rank, bytes, name, &s);

    if (result != EMU_OK)
        return result;
    if (posix_memalign(&memory, ALIGNED_BYTES, bytes ? bytes : 1)) {
        free_segment(s);
        return EMU_ERR_MEMORY;
    }
    s->host = memory;
    s->owned = true;
    s->valid = calloc(emu_bitmap_words(bytes) + 1, sizeof *s->valid);
    if (!s->valid || map_segment(&world->ranks[rank], s, true, &m)) {
        free_segment(s);
        return EMU_ERR_MEMORY;
    }
    emu_fill_pattern(world, s->host, bytes);
    *va = m->va;
    if (host)
        *host = s->host;
    return EMU_OK;
}

int emu_map_host(struct emu_world *world, uint32_t rank, void *host, uint64_t bytes, int writable,
                 const char *name, uint64_t *va)
{
    struct emu_segment *s;
    struct emu_mapping *m;
    int result = new_segment(world, rank, bytes, name, &s);

    if (result != EMU_OK)
        return result;
    s->host = host;
    s->stored = writable ? calloc(emu_bitmap_words(bytes) + 1, sizeof *s->stored) : NULL;
    if ((writable && !s->stored) || map_segment(&world->ranks[rank], s, writable != 0, &m)) {
        free_segment(s);
        return EMU_ERR_MEMORY;
    }
    *va = m->va;
    return EMU_OK;
}

int emu_map_mmio(struct emu_world *world, uint32_t rank, const struct emu_mmio *mmio,
                 uint64_t bytes, const char *name, uint64_t *va)
{
    struct emu_segment *s;
    struct emu_mapping *m;
    int result = new_segment(world, rank, bytes, name, &s);

    if (result != EMU_OK)
        return result;
    s->mmio = *mmio;
    if (map_segment(&world->ranks[rank], s, true, &m)) {
        free_segment(s);
        return EMU_ERR_MEMORY;
    }
    m->bytes = 0;
    m->mmio = &s->mmio;
    *va = m->va;
    return EMU_OK;
}

/* The live mapping of `rank` that holds the bytes, or NULL. */
static struct emu_mapping *held(const struct emu_world *world, uint32_t rank, uint64_t va,
                                uint64_t bytes)
{
    struct emu_mapping *m;

    if (rank >= world->options.num_ranks)
        return NULL;
    m = emu_mapping_at(&world->ranks[rank], va);
    if (!m || !m->host)
        return NULL;
    if (bytes == 0)
        return va - m->va <= m->bytes ? m : NULL;
    return emu_mapping_holds(m, va, bytes) ? m : NULL;
}

int emu_map_peer(struct emu_world *world, uint32_t rank, uint32_t owner, uint64_t owner_va,
                 uint64_t *va)
{
    struct emu_mapping *theirs = held(world, owner, owner_va, 0), *mine;

    if (!theirs || theirs->peer || rank >= world->options.num_ranks)
        return EMU_ERR_ADDRESS;
    if (map_segment(&world->ranks[rank], theirs->segment, theirs->writable, &mine))
        return EMU_ERR_MEMORY;
    *va = mine->va + (owner_va - theirs->va);
    return EMU_OK;
}

static void unmap(struct emu_mapping *m)
{
    m->bytes = 0;
    m->host = NULL;
    m->valid = NULL;
    m->mmio = NULL;
}

int emu_unmap(struct emu_world *world, uint32_t rank, uint64_t va)
{
    struct emu_mapping *m = NULL;

    if (rank < world->options.num_ranks)
        m = emu_mapping_at(&world->ranks[rank], va);
    if (!m || m->unmapped || va - m->va > m->segment->bytes)
        return EMU_ERR_ADDRESS;
    if (m->peer) {
        unmap(m);
    } else {
        for (struct emu_mapping *each = m->segment->mappings; each; each = each->sibling)
            unmap(each);
        emu_tell(world, &(struct emu_event){.kind = EMU_EVENT_FREE, .segment = m->segment});
        free_bytes(m->segment);
    }
    m->unmapped = true;
    keep_for_reports(&world->ranks[rank], m);
    return EMU_OK;
}

static void observe(const struct emu_world *world, enum emu_access_kind kind, enum emu_sem sem,
                    uint32_t rank, const struct emu_mapping *m, uint64_t va, uint64_t bytes)
{
    if (emu_observed(world) && bytes)
        emu_observe(world, &(struct emu_access){
            .kind = kind, .space = EMU_SP_GLOBAL, .sem = sem, .scope = EMU_SC_SYS, .elem = 8,
            .rank = rank, .va = va, .bytes = bytes, .host = m->host + (va - m->va),
            .segment = m->segment, .offset = va - m->va,
        });
}

int emu_host_read(struct emu_world *world, uint32_t rank, void *dst, uint64_t va, uint64_t bytes)
{
    struct emu_mapping *m = held(world, rank, va, bytes);

    if (!m)
        return EMU_ERR_ADDRESS;
    observe(world, EMU_ACCESS_LOAD, EMU_SEM_WEAK, rank, m, va, bytes);
    if (bytes)
        memcpy(dst, m->host + (va - m->va), bytes);
    return EMU_OK;
}

int emu_host_reads(struct emu_world *world, uint32_t rank, uint64_t va, uint64_t bytes,
                   bool acquires)
{
    struct emu_mapping *m = held(world, rank, va, bytes);

    if (!m)
        return EMU_ERR_ADDRESS;
    observe(world, EMU_ACCESS_LOAD, acquires ? EMU_SEM_ACQUIRE : EMU_SEM_WEAK, rank, m, va, bytes);
    return EMU_OK;
}

int emu_host_written(struct emu_world *world, uint32_t rank, uint64_t va, uint64_t bytes)
{
    struct emu_mapping *m = held(world, rank, va, bytes);

    if (!m)
        return EMU_ERR_ADDRESS;
    observe(world, EMU_ACCESS_STORE, EMU_SEM_WEAK, rank, m, va, bytes);
    if (m->valid)
        emu_bits_set(m->valid, va - m->va, bytes);
    emu_touch(world);
    return EMU_OK;
}

int emu_host_write(struct emu_world *world, uint32_t rank, uint64_t va, const void *src,
                   uint64_t bytes)
{
    struct emu_mapping *m = held(world, rank, va, bytes);

    if (!m)
        return EMU_ERR_ADDRESS;
    if (bytes)
        memcpy(m->host + (va - m->va), src, bytes);
    return emu_host_written(world, rank, va, bytes);
}

int emu_host_fill(struct emu_world *world, uint32_t rank, uint64_t va, uint8_t value,
                  uint64_t bytes)
{
    struct emu_mapping *m = held(world, rank, va, bytes);

    if (!m)
        return EMU_ERR_ADDRESS;
    if (bytes)
        memset(m->host + (va - m->va), value, bytes);
    return emu_host_written(world, rank, va, bytes);
}

int emu_host_address(struct emu_world *world, uint32_t rank, uint64_t va, uint64_t bytes,
                     void **host)
{
    struct emu_mapping *m = held(world, rank, va, bytes);

    if (!m)
        return EMU_ERR_ADDRESS;
    *host = m->host + (va - m->va);
    return EMU_OK;
}

struct emu_mapping *emu_mapping_below(const struct emu_rank *rank, uint64_t va)
{
    struct emu_mapping *m = NULL;

    if (va < rank->va_base || va - rank->va_base >= rank->num_pages * PAGE_BYTES)
        return NULL;
    while (!m && emu_page_at(rank, va) != EMU_PAGE_FREED && va - rank->va_base >= PAGE_BYTES) {
        va -= PAGE_BYTES;
        m = emu_mapping_at(rank, va);
    }
    return m;
}

int emu_memory_init(struct emu_world *world)
{
    uint64_t seed = world->options.seed + 0x9e3779b97f4a7c15;

    seed = (seed ^ seed >> 30) * 0xbf58476d1ce4e5b9;
    seed = (seed ^ seed >> 27) * 0x94d049bb133111eb;
    world->pattern = (seed ^ seed >> 31) | 0x0101010101010101;
    for (uint32_t r = 0; r < world->options.num_ranks; r++) {
        struct emu_rank *rank = &world->ranks[r];
        uint64_t first;

        /* Ranks also differ in the offset of what they allocate first. */
        rank->va_base = RANK_WINDOW * (r + 1);
        if (!reserve(rank, (r + 1) * PAGE_BYTES, &first))
            return EMU_ERR_MEMORY;
    }
    return EMU_OK;
}

void emu_memory_free(struct emu_world *world)
{
    for (uint32_t r = 0; r < world->options.num_ranks; r++) {
        struct emu_rank *rank = &world->ranks[r];

        for (uint32_t i = 0; i < rank->num_mappings; i++) {
            if (rank->mappings[i]->segment)
                leave_segment(rank->mappings[i]);
            free(rank->mappings[i]);
        }
        free(rank->mappings);
        free(rank->pages);
    }
}
