/* SPDX-License-Identifier: MIT */
#ifndef DEEPEP_PTX_UTIL_H
#define DEEPEP_PTX_UTIL_H

#include <stdint.h>

#include "deepep_ptx/executor.h"

/* Returns from the caller with what failed. */
#define TRY(call) do { int rc_ = (call); if (rc_ != EP_OK) return rc_; } while (0)

static inline uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }
static inline uint32_t max_u32(uint32_t a, uint32_t b) { return a > b ? a : b; }
static inline uint64_t max_u64(uint64_t a, uint64_t b) { return a > b ? a : b; }

#endif
