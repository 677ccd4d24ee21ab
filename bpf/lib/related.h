/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* An ICMP error belongs to the flow whose packet it quotes, and passes where that flow does. */
#ifndef MESHLOG_LIB_RELATED_H
#define MESHLOG_LIB_RELATED_H

#include "conntrack.h"
#include "packet.h"
#include "parse.h"

enum icmp_error {
	ICMP_UNREACHABLE = 3,
	ICMP_TIME_EXCEEDED = 11,
	ICMP_PARAMETER_PROBLEM = 12,
	ICMPV6_UNREACHABLE = 1,
	ICMPV6_PARAMETER_PROBLEM = 4, /* and 2, 3 between them */
};

static __always_inline int is_icmp_error(const struct packet *packet)
{
	if (packet->protocol == IPPROTO_ICMP)
		return packet->icmp_type == ICMP_UNREACHABLE || packet->icmp_type == ICMP_TIME_EXCEEDED ||
		       packet->icmp_type == ICMP_PARAMETER_PROBLEM;
	return packet->protocol == IPPROTO_ICMPV6 && packet->icmp_type >= ICMPV6_UNREACHABLE &&
	       packet->icmp_type <= ICMPV6_PARAMETER_PROBLEM;
}

/* The quoted IP header at `offset`. 0: not readable. */
static __always_inline __u32 quoted_l3(struct __sk_buff *skb, struct packet *quoted, __u32 offset)
{
	struct iphdr ipv4;
	struct ipv6hdr ipv6;

	if (quoted->family == 4) {
		if (bpf_skb_load_bytes(skb, offset, &ipv4, sizeof(ipv4)) || ipv4.version != 4)
			return 0;
		address_from_ipv4(&quoted->source, ipv4.saddr);
		address_from_ipv4(&quoted->dest, ipv4.daddr);
		quoted->protocol = ipv4.protocol;
		return offset + ipv4.ihl * 4;
	}
	if (bpf_skb_load_bytes(skb, offset, &ipv6, sizeof(ipv6)) || ipv6.version != 6)
		return 0;
	__builtin_memcpy(&quoted->source, &ipv6.saddr, sizeof(quoted->source));
	__builtin_memcpy(&quoted->dest, &ipv6.daddr, sizeof(quoted->dest));
	quoted->protocol = ipv6.nexthdr;
	return offset + sizeof(ipv6);
}

/* The first 8 bytes of the quoted transport header: all that an error must quote, and all that is needed. */
static __always_inline int quoted_l4(struct __sk_buff *skb, struct packet *quoted, __u32 offset)
{
	struct icmp_header header;

	if (bpf_skb_load_bytes(skb, offset, &header, sizeof(header)))
		return 0;
	if (is_icmp(quoted->protocol)) {
		quoted->icmp_type = header.type;
		if (is_echo_request(quoted))
			quoted->source_port = header.id;
		else
			quoted->dest_port = header.id;
		return 1;
	}
	quoted->source_port = *(__be16 *)&header.type;
	quoted->dest_port = header.checksum;
	return 1;
}

/*
 * 1: an error about a tracked flow, sent to the end whose packet it quotes. `from_target`: only from the
 * other end of that flow, since an endpoint has no say in flows of others; a router on the network may
 * have one.
 */
STEP is_related_error(struct __sk_buff *skb, const struct packet *packet, __u32 from_target)
{
	struct packet quoted = {};
	struct tracking tracking = {};
	struct conntrack_row *entry;
	__u32 offset;

	if (!packet || !is_icmp_error(packet))
		return 0;
	quoted.family = packet->family;
	offset = quoted_l3(skb, &quoted, packet->l4_offset + sizeof(struct icmp_header));
	if (!offset || !quoted_l4(skb, &quoted, offset))
		return 0;
	if (!address_equal(&quoted.source, &packet->dest))
		return 0;
	if (from_target && !address_equal(&quoted.dest, &packet->source))
		return 0;
	conntrack_key_of(&quoted, &tracking);
	entry = bpf_map_lookup_elem(&conntrack, &tracking.key);
	return entry && entry->expires_ns > packet->now;
}

#endif /* MESHLOG_LIB_RELATED_H */
