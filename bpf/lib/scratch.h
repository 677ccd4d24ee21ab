/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Packets that do not fit on a program's stack. Nothing in them outlives the program's run, in which no other program
 * of the node runs on this CPU. */
#ifndef MESHLOG_LIB_SCRATCH_H
#define MESHLOG_LIB_SCRATCH_H

#include "../maps.h"
#include "packet.h"

enum scratch_use { SCRATCH_PACKET = 0, SCRATCH_QUOTE = 1 };

/* All zero; 0 never happens, but the verifier does not know. */
static __always_inline struct packet *scratch_packet(__u32 use)
{
	struct packet *packet = bpf_map_lookup_elem(&scratch, &use);

	_Static_assert(sizeof(*packet) <= sizeof(struct scratch), "a packet must fit into scratch");
	if (packet)
		__builtin_memset(packet, 0, sizeof(*packet));
	return packet;
}

/* The one that the program is about. */
static __always_inline struct packet *packet_in(__u8 traffic_direction, __u8 policy_direction)
{
	struct packet *packet = scratch_packet(SCRATCH_PACKET);

	if (packet) {
		packet->traffic_direction = traffic_direction;
		packet->policy_direction = policy_direction;
	}
	return packet;
}

#endif /* MESHLOG_LIB_SCRATCH_H */
