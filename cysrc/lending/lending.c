/* SPDX-License-Identifier: MIT */
#include "lending/lending.h"

#include <pthread.h>
#include <stdlib.h>

struct loan {
    uint64_t address;
    int returned;
    struct loan *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct loan *loans;
static __thread uint64_t offered_address, offered_bytes;
static __thread int is_nothing;

void ep_lend_offer(uint64_t address, uint64_t bytes)
{
    offered_address = address;
    offered_bytes = bytes;
    is_nothing = 0;
}

void ep_lend_offer_nothing(uint64_t address)
{
    ep_lend_offer(address, UINT64_MAX);
    is_nothing = 1;
}

static struct loan **find(uint64_t address)
{
    struct loan **at = &loans;
    while (*at && (*at)->address != address)
        at = &(*at)->next;
    return at;
}

__attribute__((visibility("default")))
void *ep_lend_alloc(ssize_t bytes, int device, void *stream)
{
    (void)device;
    (void)stream;
    if (!offered_address || bytes < 0 || (uint64_t)bytes > offered_bytes)
        return NULL;
    if (is_nothing)
        return (void *)offered_address;
    struct loan *loan = malloc(sizeof *loan);
    if (!loan)
        return NULL;
    *loan = (struct loan){.address = offered_address};
    offered_address = 0;
    pthread_mutex_lock(&lock);
    loan->next = loans;
    loans = loan;
    pthread_mutex_unlock(&lock);
    return (void *)loan->address;
}

__attribute__((visibility("default")))
void ep_lend_free(void *address, ssize_t bytes, int device, void *stream)
{
    (void)bytes;
    (void)device;
    (void)stream;
    pthread_mutex_lock(&lock);
    struct loan *loan = *find((uint64_t)address);
    if (loan)
        loan->returned = 1;
    pthread_mutex_unlock(&lock);
}

int ep_lend_returned(uint64_t address)
{
    pthread_mutex_lock(&lock);
    struct loan **at = find(address), *loan = *at;
    int returned = loan && loan->returned;
    if (returned)
        *at = loan->next;
    pthread_mutex_unlock(&lock);
    if (returned)
        free(loan);
    return returned;
}
