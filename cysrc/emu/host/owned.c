/* SPDX-License-Identifier: MIT */
#include "emu/host/owned.h"
#include "emu/host/failure.h"

void host_own(struct owned **list, struct owned *what)
{
    what->next = *list;
    *list = what;
}

void host_disown(struct owned **list, struct owned *what)
{
    while (*list != what)
        list = &(*list)->next;
    *list = what->next;
}

void *host_find(struct host_world *h, uint32_t rank, struct owned *list, const void *what,
                const char *name, const char *one)
{
    for (struct owned *each = list; each; each = each->next)
        if (each == what && !each->destroyed)
            return each;
    host_error(h, rank, EP_ERR_ARGUMENT, "%s: not %s of rank %u", name, one, rank);
    return NULL;
}
