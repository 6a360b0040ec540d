/* SPDX-License-Identifier: MIT */
#include "fault.h"

#include <stdarg.h>
#include <stdio.h>

#define TEXT_BYTES 512                   /* a sentence with numbers in it                     */

static int hand_up(const struct emu_finding *finding)
{
    const struct emu_observer *observer = &finding->world->observer;

    finding->world->faulted = true;
    observer->fault(observer->self, finding);
    return EMU_RUN_FAULT;
}

int emu_fault_lane(struct emu_exec *x, const char *kind, unsigned lane, int64_t other,
                   const char *format, ...)
{
    char text[TEXT_BYTES];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return hand_up(&(struct emu_finding){
        .about = EMU_ABOUT_LANE, .world = x->world, .kind = kind, .text = text, .exec = x,
        .lane = lane, .other = other,
    });
}

int emu_fault_register(struct emu_exec *x, uint32_t lanes)
{
    return emu_fault_lane(x, "uninitialised", __builtin_ctz(lanes), -1,
                          "a register is read that lanes %#x never wrote", lanes);
}

int emu_fault_guard(struct emu_exec *x, uint32_t lanes)
{
    x->mask = x->group->mask;
    return emu_fault_lane(x, "uninitialised", __builtin_ctz(lanes), -1,
                          "the guard predicate is read that lanes %#x never wrote", lanes);
}

int emu_fault_range(struct emu_exec *x, enum emu_address_fault what, unsigned lane, unsigned space,
                    uint64_t va, uint64_t bytes)
{
    return hand_up(&(struct emu_finding){
        .about = EMU_ABOUT_ADDRESS, .world = x->world, .exec = x, .lane = lane, .other = -1,
        .address = what, .space = space, .va = va, .bytes = bytes,
    });
}

int emu_fault_address(struct emu_exec *x, enum emu_address_fault what, unsigned lane, uint64_t va)
{
    const struct emu_instr *op = emu_exec_op(x);

    return emu_fault_range(x, what, lane, op->space, va, op->size);
}

void emu_fault_copy(const struct emu_copy *copy, const char *kind, const char *format, ...)
{
    char text[TEXT_BYTES];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    hand_up(&(struct emu_finding){
        .about = EMU_ABOUT_COPY, .world = copy->grid->world, .kind = kind, .text = text,
        .copy = copy,
    });
}

void emu_fault_memory(struct emu_world *world)
{
    hand_up(&(struct emu_finding){.about = EMU_ABOUT_MEMORY, .world = world});
}

void emu_fault_deadlock(const struct emu_cta *cta)
{
    hand_up(&(struct emu_finding){
        .about = EMU_ABOUT_DEADLOCK, .world = cta->grid->world, .cta = cta,
    });
}

void emu_fault_livelock(struct emu_world *world)
{
    hand_up(&(struct emu_finding){.about = EMU_ABOUT_LIVELOCK, .world = world});
}

void emu_fault_endless_group(const struct emu_warp *warp, const struct emu_group *group)
{
    hand_up(&(struct emu_finding){
        .about = EMU_ABOUT_ENDLESS_GROUP, .world = warp->cta->grid->world, .warp = warp,
        .group = group,
    });
}

void emu_fault_endless_grid(struct emu_exec *x)
{
    hand_up(&(struct emu_finding){.about = EMU_ABOUT_ENDLESS_GRID, .world = x->world, .exec = x});
}
