/* SPDX-License-Identifier: MIT */
#include "memory.h"
#include "bits.h"

#include <stdlib.h>
#include <string.h>

#define PAGE_BYTES (1ull << EMU_PAGE_BITS)
#define RANK_WINDOW (1ull << 43)         /* address space of one rank                         */
#define ALIGNED_BYTES 256                /* an address is what its host address is, modulo this */

/* Addresses are handed out in ascending order and never again, so a stale one never hits. */
static int reserve(struct emu_rank *rank, uint64_t bytes, uint64_t *va, uint64_t *first_page)
{
    uint64_t pages = (bytes + PAGE_BYTES - 1) / PAGE_BYTES + 1;   /* one at least stays unmapped */
    uint64_t needed = rank->num_pages + pages;

    if (bytes > RANK_WINDOW || needed > RANK_WINDOW / PAGE_BYTES)
        return EMU_ERR_MEMORY;
    if (needed > rank->max_pages) {
        uint64_t max = needed * 2;
        uint32_t *grown = realloc(rank->pages, max * sizeof *grown);
        if (!grown)
            return EMU_ERR_MEMORY;
        rank->pages = grown;
        rank->max_pages = max;
    }
    memset(rank->pages + rank->num_pages, 0, pages * sizeof *rank->pages);
    *first_page = rank->num_pages;
    *va = rank->va_base + rank->num_pages * PAGE_BYTES;
    rank->num_pages = needed;
    return EMU_OK;
}

static int map_segment(struct emu_rank *rank, struct emu_segment *segment, bool writable,
                       struct emu_mapping **out)
{
    struct emu_mapping *m = calloc(1, sizeof *m);
    uint64_t first;

    if (!m)
        return EMU_ERR_MEMORY;
    m->skew = (uintptr_t)segment->host % ALIGNED_BYTES;
    if (rank->num_mappings == rank->max_mappings) {
        uint32_t max = rank->max_mappings ? rank->max_mappings * 2 : 16;
        struct emu_mapping **grown = realloc(rank->mappings, max * sizeof *grown);
        if (!grown) {
            free(m);
            return EMU_ERR_MEMORY;
        }
        rank->mappings = grown;
        rank->max_mappings = max;
    }
    if (reserve(rank, segment->bytes + m->skew, &m->va, &first)) {
        free(m);
        return EMU_ERR_MEMORY;
    }
    m->va += m->skew;
    m->segment = segment;
    m->sibling = segment->mappings;
    segment->mappings = m;
    m->bytes = segment->bytes;
    m->host = segment->host;
    m->valid = segment->valid;
    m->writable = writable;
    m->peer = segment->owner != rank->index;
    rank->mappings[rank->num_mappings++] = m;
    for (uint64_t page = first; page + 1 < rank->num_pages; page++)
        rank->pages[page] = rank->num_mappings;
    *out = m;
    return EMU_OK;
}

static struct emu_segment *new_segment(struct emu_world *world, uint32_t owner, uint64_t bytes,
                                       const char *name)
{
    struct emu_segment *s = calloc(1, sizeof *s);

    if (!s)
        return NULL;
    s->owner = owner;
    s->bytes = bytes;
    s->name = strdup(name ? name : "unnamed");
    if (!s->name) {
        free(s);
        return NULL;
    }
    s->next = world->segments;
    world->segments = s;
    return s;
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

    if (rank >= world->options.num_ranks)
        return EMU_ERR_ARGUMENT;
    if (bytes > RANK_WINDOW || !(s = new_segment(world, rank, bytes, name)))
        return EMU_ERR_MEMORY;
    if (posix_memalign(&memory, ALIGNED_BYTES, bytes ? bytes : 1))
        return EMU_ERR_MEMORY;
    s->host = memory;
    s->owned = true;
    s->valid = calloc(emu_bitmap_words(bytes) + 1, sizeof *s->valid);
    if (!s->valid || map_segment(&world->ranks[rank], s, true, &m)) {
        free_bytes(s);
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

    if (rank >= world->options.num_ranks)
        return EMU_ERR_ARGUMENT;
    if (bytes > RANK_WINDOW || !(s = new_segment(world, rank, bytes, name)))
        return EMU_ERR_MEMORY;
    s->host = host;
    s->stored = writable ? calloc(emu_bitmap_words(bytes) + 1, sizeof *s->stored) : NULL;
    if ((writable && !s->stored) || map_segment(&world->ranks[rank], s, writable != 0, &m)) {
        free_bytes(s);
        return EMU_ERR_MEMORY;
    }
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
}

int emu_unmap(struct emu_world *world, uint32_t rank, uint64_t va)
{
    struct emu_mapping *m = held(world, rank, va, 0);

    if (!m)
        return EMU_ERR_ADDRESS;
    m->unmapped = true;
    if (m->peer) {
        unmap(m);
        return EMU_OK;
    }
    for (struct emu_mapping *each = m->segment->mappings; each; each = each->sibling)
        unmap(each);
    free_bytes(m->segment);
    return EMU_OK;
}

int emu_host_read(struct emu_world *world, uint32_t rank, void *dst, uint64_t va, uint64_t bytes)
{
    struct emu_mapping *m = held(world, rank, va, bytes);

    if (!m)
        return EMU_ERR_ADDRESS;
    if (bytes)
        memcpy(dst, m->host + (va - m->va), bytes);
    return EMU_OK;
}

int emu_host_written(struct emu_world *world, uint32_t rank, uint64_t va, uint64_t bytes)
{
    struct emu_mapping *m = held(world, rank, va, bytes);

    if (!m)
        return EMU_ERR_ADDRESS;
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
    uint64_t page = (va - rank->va_base) >> EMU_PAGE_BITS;

    if (va < rank->va_base || page >= rank->num_pages)
        return NULL;
    for (;; page--) {
        if (rank->pages[page])
            return rank->mappings[rank->pages[page] - 1];
        if (page == 0)
            return NULL;
    }
}

int emu_memory_init(struct emu_world *world)
{
    uint64_t seed = world->options.seed + 0x9e3779b97f4a7c15;

    seed = (seed ^ seed >> 30) * 0xbf58476d1ce4e5b9;
    seed = (seed ^ seed >> 27) * 0x94d049bb133111eb;
    world->pattern = (seed ^ seed >> 31) | 0x0101010101010101;
    for (uint32_t r = 0; r < world->options.num_ranks; r++) {
        struct emu_rank *rank = &world->ranks[r];
        uint64_t va, page;

        /* Ranks also differ in the offset of what they allocate first. */
        rank->va_base = RANK_WINDOW * (r + 1);
        if (reserve(rank, (r + 1) * PAGE_BYTES, &va, &page))
            return EMU_ERR_MEMORY;
    }
    return EMU_OK;
}

void emu_memory_free(struct emu_world *world)
{
    for (uint32_t r = 0; r < world->options.num_ranks; r++) {
        struct emu_rank *rank = &world->ranks[r];

        for (uint32_t i = 0; i < rank->num_mappings; i++)
            free(rank->mappings[i]);
        free(rank->mappings);
        free(rank->pages);
    }
    while (world->segments) {
        struct emu_segment *s = world->segments;

        world->segments = s->next;
        free_bytes(s);
        free(s->name);
        free(s);
    }
}
