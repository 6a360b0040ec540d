/* SPDX-License-Identifier: MIT
 *
 * An executor of the CPU whose functions have no memory, for tests/faults.py: its table, which the
 * core goes by, is changed in place. */
#include <string.h>

#include "deepep_ptx/executor.h"

#define MOST_TABLES 64

static struct fault {
    struct ep_executor *table;   /* NULL: free                                                  */
    struct ep_executor real;
    uint64_t above;
} faults[MOST_TABLES];

static struct fault *fault_of(const void *self)
{
    for (int i = 0; i < MOST_TABLES; i++)
        if (faults[i].table && faults[i].real.self == self)
            return &faults[i];
    return NULL;
}

/* The executor itself refuses, with its own words. */
static int refuse(struct fault *f, const char *name)
{
    ep_dptr_t none;
    return f->real.alloc(f->real.self, UINT64_MAX, name, &none);
}

static int no_alloc(void *self, uint64_t bytes, const char *name, ep_dptr_t *out)
{
    struct fault *f = fault_of(self);
    if (bytes > f->above && strcmp(name, "arena") == 0)
        return refuse(f, name);
    return f->real.alloc(self, bytes, name, out);
}

static int no_import(void *self, const void *handle, ep_dptr_t *out)
{
    (void)handle;
    (void)out;
    return refuse(fault_of(self), "peer memory");
}

static int no_copy_in(void *self, ep_dptr_t dst, const void *src, uint64_t bytes, void *stream)
{
    (void)dst;
    (void)src;
    (void)bytes;
    (void)stream;
    return refuse(fault_of(self), "peer tables");
}

/* function: alloc, for arenas of more than `above` bytes, import_memory or copy_in. */
int faults_plant(struct ep_executor *table, const char *function, uint64_t above)
{
    for (int i = 0; i < MOST_TABLES; i++) {
        if (faults[i].table)
            continue;
        faults[i] = (struct fault){.table = table, .real = *table, .above = above};
        if (strcmp(function, "alloc") == 0)
            table->alloc = no_alloc;
        else if (strcmp(function, "import_memory") == 0)
            table->import_memory = no_import;
        else
            table->copy_in = no_copy_in;
        return 1;
    }
    return 0;
}

void faults_remove(struct ep_executor *table)
{
    struct fault *f = fault_of(table->self);
    *table = f->real;
    f->table = NULL;
}
