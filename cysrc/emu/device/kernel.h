/* SPDX-License-Identifier: MIT */
#ifndef DEEPEP_PTX_EMU_KERNEL_H
#define DEEPEP_PTX_EMU_KERNEL_H

#include "world.h"

void emu_kernel_free(struct emu_kernel *kernel);

#endif
