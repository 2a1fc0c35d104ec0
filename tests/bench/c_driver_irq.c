// SPDX-License-Identifier: GPL-2.0
/* The kernel's C driver with TPM_CHIP_FLAG_IRQ: what that line alone gives. */
#define C_DRIVER_IRQ
#include "c_driver.c"
