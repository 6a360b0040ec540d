/* SPDX-License-Identifier: MIT
 *
 * Memory of the ranks as the host sees it: allocations, pinned memory, mapped arrays, peers. */
#include "emu/host/memory.h"
#include "emu/host/failure.h"

#include <stdlib.h>
#include <string.h>

#define PAGE 4096u

struct segment *host_find_segment(struct host_world *h, uint32_t rank, ep_dptr_t va)
{
    struct rank *r = &h->ranks[rank];

    for (uint32_t i = 0; i < r->num_segments; i++)
        if (r->segments[i].va == va)
            return &r->segments[i];
    return NULL;
}

int host_pinned_address(struct host_world *h, uint32_t rank, const void *word, ep_dptr_t *va)
{
    const struct rank *r = &h->ranks[rank];

    for (uint32_t i = 0; i < r->num_segments; i++) {
        const struct segment *s = &r->segments[i];
        uint64_t offset = (uintptr_t)word - (uintptr_t)s->host;

        if (s->kind == SEGMENT_PINNED && offset < s->bytes) {
            *va = s->va + offset;
            return 1;
        }
    }
    return 0;
}

static struct segment *add_segment(struct host_world *h, uint32_t rank)
{
    struct rank *r = &h->ranks[rank];

    if (r->num_segments == r->room_segments) {
        uint32_t room = r->room_segments ? 2 * r->room_segments : 32;
        struct segment *grown = realloc(r->segments, room * sizeof *grown);

        if (!grown)
            return NULL;
        r->segments = grown;
        r->room_segments = room;
    }
    memset(&r->segments[r->num_segments], 0, sizeof r->segments[0]);
    return &r->segments[r->num_segments++];
}

static void drop_segment(struct host_world *h, uint32_t rank, struct segment *s)
{
    struct rank *r = &h->ranks[rank];

    emu_unmap(h->world, rank, s->va);
    if (s->kind == SEGMENT_PINNED)
        free(s->host);
    *s = r->segments[--r->num_segments];
}

void host_release_segment(struct host_world *h, uint32_t rank, struct segment *s)
{
    if (s->pins > 0)
        s->freed = 1;
    else
        drop_segment(h, rank, s);
}

int host_alloc(struct host_world *h, uint32_t rank, uint64_t bytes, const char *name,
               ep_dptr_t *out)
{
    struct segment *s = NULL;
    int code;

    lock(h);
    code = host_failure_code(h, rank);
    if (code == EP_OK && bytes == 0)
        code = host_error(h, rank, EP_ERR_ARGUMENT, "bytes: must be > 0, got 0");
    if (code == EP_OK && !(s = add_segment(h, rank)))
        code = host_error(h, rank, EP_ERR_MEMORY, "%s: no memory", name);
    if (code == EP_OK) {
        int result = emu_alloc(h->world, rank, bytes, name, &s->va, &s->host);

        s->kind = SEGMENT_ALLOC;
        s->owner = rank;
        s->owner_va = s->va;
        s->bytes = bytes;
        if (result == EMU_OK) {
            *out = s->va;
        } else {
            h->ranks[rank].num_segments--;
            code = host_emu_error(h, rank, result, name);
        }
    }
    unlock(h);
    return code;
}

static int map_host(struct host_world *h, uint32_t rank, enum segment_kind kind, void *address,
                    uint64_t bytes, int writable, const char *name, ep_dptr_t *out)
{
    struct segment *s = add_segment(h, rank);
    int result;

    if (!s)
        return host_error(h, rank, EP_ERR_MEMORY, "%s: no memory", name);
    result = emu_map_host(h->world, rank, address, bytes, writable, name, &s->va);
    if (result != EMU_OK) {
        h->ranks[rank].num_segments--;
        return host_emu_error(h, rank, result, name);
    }
    s->kind = kind;
    s->owner = rank;
    s->owner_va = s->va;
    s->bytes = bytes;
    s->host = address;
    *out = s->va;
    return EP_OK;
}

int host_pinned_alloc(struct host_world *h, uint32_t rank, uint64_t bytes, const char *name,
                      void **host, ep_dptr_t *out)
{
    int code;

    lock(h);
    code = host_failure_code(h, rank);
    if (code == EP_OK && (bytes == 0 || bytes > UINT64_MAX - PAGE))
        code = host_error(h, rank, EP_ERR_ARGUMENT, "bytes: must be > 0, got %llu",
                          (unsigned long long)bytes);
    if (code == EP_OK) {
        uint64_t whole = (bytes + PAGE - 1) / PAGE * PAGE;
        void *memory = aligned_alloc(PAGE, whole);

        if (!memory) {
            code = host_error(h, rank, EP_ERR_MEMORY, "%s: no memory", name);
        } else {
            memset(memory, 0, whole);
            code = map_host(h, rank, SEGMENT_PINNED, memory, bytes, 1, name, out);
            if (code == EP_OK)
                *host = memory;
            else
                free(memory);
        }
    }
    unlock(h);
    return code;
}

int host_pinned_free(struct host_world *h, uint32_t rank, const void *host)
{
    struct rank *r = &h->ranks[rank];
    int code;

    lock(h);
    code = host_error(h, rank, EP_ERR_ARGUMENT, "host: not pinned memory of rank %u", rank);
    for (uint32_t i = 0; i < r->num_segments; i++) {
        struct segment *s = &r->segments[i];

        if (s->kind == SEGMENT_PINNED && s->host == host && !s->freed) {
            host_release_segment(h, rank, s);
            code = EP_OK;
            break;
        }
    }
    unlock(h);
    return code;
}

int host_map(struct host_world *h, uint32_t rank, void *address, uint64_t bytes, int writable,
             const char *name, ep_dptr_t *out)
{
    int code;

    lock(h);
    code = host_failure_code(h, rank);
    if (code == EP_OK)
        code = map_host(h, rank, SEGMENT_MAPPED, address, bytes, writable, name, out);
    unlock(h);
    return code;
}

int host_unmap(struct host_world *h, uint32_t rank, ep_dptr_t va)
{
    struct segment *s;
    int code = EP_OK;

    lock(h);
    s = host_find_segment(h, rank, va);
    if (s && s->kind == SEGMENT_MAPPED)
        drop_segment(h, rank, s);
    else
        code = host_error(h, rank, EP_ERR_ARGUMENT, "dptr: 0x%llx is not a mapped array of rank %u",
                          (unsigned long long)va, rank);
    unlock(h);
    return code;
}

int host_map_peer(struct host_world *h, uint32_t rank, uint32_t owner, ep_dptr_t owner_va,
                  uint64_t bytes, ep_dptr_t *out)
{
    struct segment *source, *s;
    int code, result;

    lock(h);
    code = host_failure_code(h, rank);
    if (code != EP_OK)
        goto done;
    source = owner < h->num_ranks ? host_find_segment(h, owner, owner_va) : NULL;
    if (!source || source->kind != SEGMENT_ALLOC || source->freed ||
        (bytes && source->bytes != bytes)) {
        code = host_error(h, rank, EP_ERR_ARGUMENT,
                          "handle: rank %u has no such allocation at 0x%llx (freed since?)", owner,
                          (unsigned long long)owner_va);
        goto done;
    }
    if (owner == rank) {
        *out = owner_va;
        goto done;
    }
    s = add_segment(h, rank);
    if (!s) {
        code = host_error(h, rank, EP_ERR_MEMORY, "peer memory: no memory");
        goto done;
    }
    result = emu_map_peer(h->world, rank, owner, owner_va, &s->va);
    if (result != EMU_OK) {
        h->ranks[rank].num_segments--;
        code = host_emu_error(h, rank, result, "peer memory");
        goto done;
    }
    s->kind = SEGMENT_PEER;
    s->owner = owner;
    s->owner_va = owner_va;
    s->bytes = source->bytes;
    s->host = source->host;
    *out = s->va;
done:
    unlock(h);
    return code;
}

int host_unmap_peer(struct host_world *h, uint32_t rank, ep_dptr_t va)
{
    struct segment *s;
    int code = EP_OK;

    lock(h);
    s = host_find_segment(h, rank, va);
    if (s && s->kind == SEGMENT_PEER)
        drop_segment(h, rank, s);
    else if (!s || s->kind != SEGMENT_ALLOC)          /* one's own memory was never mapped twice */
        code = host_error(h, rank, EP_ERR_ARGUMENT, "imported: 0x%llx is not imported on rank %u",
                          (unsigned long long)va, rank);
    unlock(h);
    return code;
}

int host_alloc_size(struct host_world *h, uint32_t rank, ep_dptr_t va, uint64_t *bytes)
{
    struct segment *s;
    int code = EP_OK;

    lock(h);
    s = host_find_segment(h, rank, va);
    if (s && s->kind == SEGMENT_ALLOC && !s->freed)
        *bytes = s->bytes;
    else
        code = host_error(h, rank, EP_ERR_ARGUMENT,
                          "ptr: 0x%llx is not the start of an allocation of rank %u",
                          (unsigned long long)va, rank);
    unlock(h);
    return code;
}

int host_pin(struct host_world *h, uint32_t rank, ep_dptr_t va, uint64_t bytes, void **host,
             uint32_t *owner, ep_dptr_t *pin)
{
    struct rank *r = &h->ranks[rank];
    int code;

    lock(h);
    code = host_error(h, rank, EP_ERR_ARGUMENT,
                      "dptr: [0x%llx, +%llu) is not device memory of rank %u",
                      (unsigned long long)va, (unsigned long long)bytes, rank);
    for (uint32_t i = 0; i < r->num_segments; i++) {
        const struct segment *s = &r->segments[i];

        if (s->kind == SEGMENT_MAPPED || s->freed || va < s->va || va - s->va > s->bytes ||
            bytes > s->bytes - (va - s->va))
            continue;
        /* The owner may have freed what is mapped here as a peer's. */
        struct segment *source = host_find_segment(h, s->owner, s->owner_va);

        if (!source)
            break;
        source->pins++;
        *host = (char *)source->host + (va - s->va);
        *owner = s->owner;
        *pin = s->owner_va;
        code = EP_OK;
        break;
    }
    unlock(h);
    return code;
}

void host_unpin(struct host_world *h, uint32_t owner, ep_dptr_t pin)
{
    struct segment *s;

    lock(h);
    s = host_find_segment(h, owner, pin);
    if (--s->pins == 0 && s->freed)
        drop_segment(h, owner, s);
    unlock(h);
}

int host_written(struct host_world *h, uint32_t rank, ep_dptr_t va, uint64_t bytes)
{
    int code = EP_OK, result;

    lock(h);
    race_act_for(h->races, host_order(h, rank));
    result = emu_host_written(h->world, rank, va, bytes);
    if (result != EMU_OK)
        code = host_emu_error(h, rank, result, "dptr");
    unlock(h);
    return code;
}

void host_will_read(struct host_world *h, uint32_t rank, const void *host, uint64_t bytes)
{
    ep_dptr_t va;

    lock(h);
    if (h->races && host_pinned_address(h, rank, host, &va)) {
        race_act_for(h->races, host_order(h, rank));
        emu_host_reads(h->world, rank, va, bytes, false);
    }
    unlock(h);
}

void host_free_segments(struct rank *r)
{
    for (uint32_t i = 0; i < r->num_segments; i++)
        if (r->segments[i].kind == SEGMENT_PINNED)
            free(r->segments[i].host);
    free(r->segments);
}
