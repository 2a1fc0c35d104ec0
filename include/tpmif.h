/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The vTPM wire as C sees it: the one page that a frontend shares with its
 * backend. The Rust side's offsets (src/protocol/layout.rs) are checked
 * against this file, and this file against the kernel's
 * <xen/interface/io/tpmif.h>, both when the module is compiled.
 */
#ifndef XEN_TPMFRONT_TPMIF_H
#define XEN_TPMFRONT_TPMIF_H

#include <linux/types.h>

/* Values of tpmif_page.state. */
enum tpmif_state {
	TPMIF_IDLE = 0,		/* backend: no command, or it was abandoned */
	TPMIF_SUBMIT = 1,	/* frontend: a request is in the page */
	TPMIF_FINISH = 2,	/* backend: the answer is in the page */
	TPMIF_CANCEL = 3,	/* frontend: abandon the command */
};

/* The page's header; all integers are little endian. */
struct tpmif_page {
	__u32 length;		/* bytes of the request, then of the answer */
	__u8 state;		/* enum tpmif_state */
	__u8 locality;		/* where the request is sent from, 0 to 255 */
	__u8 pad;		/* zero */
	__u8 nr_extra_pages;	/* entries of extra_pages; ours is always 0 */
	__u32 extra_pages[];	/* grant references; the packet follows */
};

#endif
