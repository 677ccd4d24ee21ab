/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* An ICMP error belongs to the flow whose packet it quotes, and passes where that flow does. */
#ifndef MESHLOG_LIB_RELATED_H
#define MESHLOG_LIB_RELATED_H

#include "conntrack.h"
#include "packet.h"
#include "parse.h"
#include "quote.h"

/*
 * 1: an error about a tracked flow, sent to the end whose packet it quotes. `from_target`: only from the
 * other end of that flow, since an endpoint has no say in flows of others; a router on the network may
 * have one.
 */
STEP is_related_error(struct __sk_buff *skb, const struct packet *packet, __u32 from_target)
{
	struct packet *quoted;
	struct tracking tracking = {};
	struct conntrack_row *entry;

	if (!packet || !is_icmp_error(packet))
		return 0;
	quoted = scratch_packet(SCRATCH_QUOTE);
	if (!quoted || !quote_read(skb, packet, quoted))
		return 0;
	if (!address_equal(&quoted->source, &packet->dest))
		return 0;
	if (from_target && !address_equal(&quoted->dest, &packet->source))
		return 0;
	conntrack_key_of(quoted, &tracking);
	entry = bpf_map_lookup_elem(&conntrack, &tracking.key);
	return entry && entry->expires_ns > packet->now;
}

#endif /* MESHLOG_LIB_RELATED_H */
