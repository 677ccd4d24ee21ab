/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The packet that an ICMP error quotes: reading its tuple, and rewriting one of its ends. */
#ifndef MESHLOG_LIB_QUOTE_H
#define MESHLOG_LIB_QUOTE_H

#include "nat.h"
#include "packet.h"
#include "parse.h"
#include "scratch.h"

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

/* Fills `quoted`, which is all zero, with the tuple of the packet that an ICMP error quotes; l4_offset is where its
 * transport header stands. 0: too short, or none that we know. */
STEP quote_read(struct __sk_buff *skb, const struct packet *packet, struct packet *quoted)
{
	__u32 offset;

	if (!packet || !quoted)
		return 0;
	quoted->family = packet->family;
	offset = quoted_l3(skb, quoted, packet->l4_offset + sizeof(struct icmp_header));
	quoted->l4_offset = (__u16)offset;
	return offset && quoted_l4(skb, quoted, offset);
}

/* The address in the quoted IP header. The difference that it makes to the error's checksum, or a drop. */
static __always_inline __s64 quote_address(struct __sk_buff *skb, struct packet *packet, __u32 end,
					   const struct address *from, const struct address *to)
{
	__u32 at = packet->l4_offset + sizeof(struct icmp_header);

	if (packet->family == 4) {
		__be32 old = from->words[3], new = to->words[3];

		/* Its own header checksum makes up for the address. */
		if (bpf_l3_csum_replace(skb, at + __builtin_offsetof(struct iphdr, check), old, new, sizeof(new)))
			return DROP(packet, FILE_NAT, ERROR_WHILE_CORRECTING_L3_CHECKSUM);
		at += end == NAT_DEST ? __builtin_offsetof(struct iphdr, daddr) : __builtin_offsetof(struct iphdr, saddr);
		if (bpf_skb_store_bytes(skb, at, &new, sizeof(new), 0))
			return DROP(packet, FILE_NAT, ERROR_WRITING_TO_PACKET);
		return 0;
	}
	at += end == NAT_DEST ? __builtin_offsetof(struct ipv6hdr, daddr) : __builtin_offsetof(struct ipv6hdr, saddr);
	if (bpf_skb_store_bytes(skb, at, to, sizeof(*to), 0))
		return DROP(packet, FILE_NAT, ERROR_WRITING_TO_PACKET);
	return bpf_csum_diff((__be32 *)from->words, sizeof(*from), (__be32 *)to->words, sizeof(*to), 0);
}

/* One end of the quoted packet, and where its port stands. */
static __always_inline __u32 quote_place(const struct packet *quoted, __u32 end)
{
	__u32 port_at = is_icmp(quoted->protocol) ? __builtin_offsetof(struct icmp_header, id) : end == NAT_DEST ? 2 : 0;

	return end << 16 | (quoted->l4_offset + port_at);
}

/*
 * Rewrites the end of the quoted packet that quote_place() names, and the checksum of the error, but not the checksum of the quoted
 * transport header: it covers what the quote may not hold, and nobody reads it. 0, or a drop.
 */
STEP quote_rewrite(struct __sk_buff *skb, struct packet *packet, __u32 place, const struct address_port *from,
		   const struct address_port *to)
{
	__u32 checksum_at, old_port, new_port;
	__s64 difference;

	if (!packet || !from || !to)
		return 0;
	difference = quote_address(skb, packet, place >> 16, &from->address, &to->address);
	if (difference < 0)
		return (int)difference;
	if (bpf_skb_store_bytes(skb, place & 0xffff, &to->port, sizeof(to->port), 0))
		return DROP(packet, FILE_NAT, ERROR_WRITING_TO_PACKET);
	old_port = from->port;
	new_port = to->port;
	difference = bpf_csum_diff(&old_port, sizeof(old_port), &new_port, sizeof(new_port), (__wsum)difference);
	checksum_at = packet->l4_offset + __builtin_offsetof(struct icmp_header, checksum);
	if (bpf_l4_csum_replace(skb, checksum_at, 0, (__u64)difference, 0))
		return DROP(packet, FILE_NAT, ERROR_WHILE_CORRECTING_L4_CHECKSUM);
	return 0;
}

#endif /* MESHLOG_LIB_QUOTE_H */
