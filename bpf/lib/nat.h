/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Rewrites an address and a port and every checksum, whether the device computes them or not. */
#ifndef MESHLOG_LIB_NAT_H
#define MESHLOG_LIB_NAT_H

#include "packet.h"
#include "parse.h"
#include "sctp.h"

enum nat_end { NAT_SOURCE = 0, NAT_DEST = 1 };

/* Where the transport checksum stands; 0: none that can be corrected. The first fragment's covers the whole datagram. */
static __always_inline __u32 checksum_offset(const struct packet *packet)
{
	if (packet->fragment == FRAGMENT_LATER)
		return 0;
	if (packet->protocol == IPPROTO_TCP)
		return packet->l4_offset + __builtin_offsetof(struct tcphdr, check);
	if (packet->protocol == IPPROTO_UDP)
		return packet->l4_offset + __builtin_offsetof(struct udphdr, check);
	if (is_icmp(packet->protocol))
		return packet->l4_offset + __builtin_offsetof(struct icmp_header, checksum);
	return 0;
}

/* ICMP has its id in the place of both ports. */
static __always_inline __u32 port_offset(const struct packet *packet, __u32 end)
{
	if (is_icmp(packet->protocol))
		return packet->l4_offset + __builtin_offsetof(struct icmp_header, id);
	return packet->l4_offset + (end == NAT_DEST ? 2 : 0);
}

/* In place: the header's own checksum makes up for the address, so that no sum of the packet changes. */
static __always_inline int nat_header_ipv4(struct __sk_buff *skb, struct packet *packet, __u32 end, __be32 from,
					   __be32 to)
{
	void *data = packet_data(skb);
	struct iphdr *header = data + L3_OFFSET;
	__u64 sum;

	if ((void *)(header + 1) > packet_data_end(skb))
		return DROP(packet, FILE_NAT, ERROR_WRITING_TO_PACKET);
	/* RFC 1624, equation 3. */
	sum = (__u64)(__u16)~header->check + (__u32)~from + to;
	sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	header->check = (__sum16)~sum;
	if (end == NAT_DEST)
		header->daddr = to;
	else
		header->saddr = to;
	return 0;
}

static __always_inline int nat_ipv4(struct __sk_buff *skb, struct packet *packet, __u32 end, __be32 from,
				    __be32 to, __u32 l4_checksum, __u64 l4_flags)
{
	/* ICMP's checksum covers no address, ICMPv6's does. */
	if (l4_checksum && packet->protocol != IPPROTO_ICMP &&
	    bpf_l4_csum_replace(skb, l4_checksum, from, to, l4_flags | BPF_F_PSEUDO_HDR | sizeof(to)))
		return DROP(packet, FILE_NAT, ERROR_WHILE_CORRECTING_L4_CHECKSUM);
	return nat_header_ipv4(skb, packet, end, from, to);
}

/* IPv6 has no header checksum, so the bytes of a fully summed packet keep their sum: BPF_F_RECOMPUTE_CSUM
 * takes back what BPF_F_PSEUDO_HDR adds to skb->csum. */
static __always_inline int nat_ipv6(struct __sk_buff *skb, struct packet *packet, __u32 end,
				    const struct address *from, const struct address *to, __u32 l4_checksum,
				    __u64 l4_flags)
{
	__u32 at = L3_OFFSET + (end == NAT_DEST ? __builtin_offsetof(struct ipv6hdr, daddr)
						: __builtin_offsetof(struct ipv6hdr, saddr));
	__s64 difference = bpf_csum_diff((__be32 *)from->words, sizeof(*from), (__be32 *)to->words, sizeof(*to), 0);

	if (l4_checksum &&
	    bpf_l4_csum_replace(skb, l4_checksum, 0, (__u64)difference, l4_flags | BPF_F_PSEUDO_HDR))
		return DROP(packet, FILE_NAT, ERROR_WHILE_CORRECTING_L4_CHECKSUM);
	if (bpf_skb_store_bytes(skb, at, to, sizeof(*to), BPF_F_RECOMPUTE_CSUM))
		return DROP(packet, FILE_NAT, ERROR_WRITING_TO_PACKET);
	return 0;
}

/* The checksum makes up for the port, so that it can be written in place where it can be reached. */
static __always_inline int nat_port_write(struct __sk_buff *skb, struct packet *packet, __u32 end, __be16 to)
{
	__u32 at = port_offset(packet, end);
	void *data = packet_data(skb);
	__be16 *port = data + (at & L4_REACH);

	if (at <= L4_REACH && (void *)(port + 1) <= packet_data_end(skb)) {
		*port = to;
		return 0;
	}
	if (bpf_skb_store_bytes(skb, at, &to, sizeof(to), 0))
		return DROP(packet, FILE_NAT, ERROR_WRITING_TO_PACKET);
	return 0;
}

static __always_inline int nat_port(struct __sk_buff *skb, struct packet *packet, __u32 end, __be16 from,
				    __be16 to, __u32 l4_checksum, __u64 l4_flags)
{
	if (from == to || packet->fragment == FRAGMENT_LATER)
		return 0;
	if (packet->protocol == IPPROTO_SCTP)
		return sctp_port_write(skb, packet, port_offset(packet, end), from, to);
	if (!l4_checksum || bpf_l4_csum_replace(skb, l4_checksum, from, to, l4_flags | sizeof(to)))
		return DROP(packet, FILE_NAT, ERROR_WHILE_CORRECTING_L4_CHECKSUM);
	return nat_port_write(skb, packet, end, to);
}

static __always_inline int nat_write(struct __sk_buff *skb, struct packet *packet, __u32 end,
				     const struct address_port *from, const struct address_port *to)
{
	__u64 l4_flags = packet->protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	__u32 l4_checksum = checksum_offset(packet);
	int result;

	if (address_is_ipv4(&to->address) != (packet->family == 4))
		return DROP(packet, FILE_NAT, ERROR_WRITING_TO_PACKET);
	if (packet->family == 4)
		result = nat_ipv4(skb, packet, end, from->address.words[3], to->address.words[3], l4_checksum, l4_flags);
	else
		result = nat_ipv6(skb, packet, end, &from->address, &to->address, l4_checksum, l4_flags);
	if (result)
		return result;
	return nat_port(skb, packet, end, from->port, to->port, l4_checksum, l4_flags);
}

/* 0, or a drop. Packet pointers are invalid afterwards. */
STEP nat_rewrite(struct __sk_buff *skb, struct packet *packet, __u32 end, const struct address_port *from,
		 const struct address_port *to)
{
	return packet && from && to ? nat_write(skb, packet, end, from, to) : 0;
}

/* The destination becomes packet->dest, which is known before it stands in the packet. 0, or a drop. */
STEP nat_rewrite_dest(struct __sk_buff *skb, struct packet *packet, const struct address_port *from)
{
	struct address_port to = {};

	if (!packet || !from)
		return 0;
	to.address = packet->dest;
	to.port = packet->dest_port;
	return nat_write(skb, packet, NAT_DEST, from, &to);
}

#endif /* MESHLOG_LIB_NAT_H */
