/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Counters by reason and direction; every kind of program can count. */
#ifndef MESHLOG_LIB_METRICS_H
#define MESHLOG_LIB_METRICS_H

#include "../maps.h"

static __always_inline void count(__u32 reason, __u32 direction, __u32 bytes)
{
	struct metrics_key key = {.index = reason << 2 | direction};
	struct metrics_row *row = bpf_map_lookup_elem(&metrics, &key);

	if (!row)
		return;
	row->packets += 1; /* per CPU, and a program is not interrupted by itself */
	row->bytes += bytes;
}

#endif /* MESHLOG_LIB_METRICS_H */
