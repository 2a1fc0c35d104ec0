// SPDX-License-Identifier: GPL-2.0
/* What xl runs to store a guest's memory: here it takes until it is killed. */
#include <unistd.h>

int main(void)
{
	return pause();
}
