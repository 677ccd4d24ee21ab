/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * A packet as the device hands it over, before the host stack has it: read, and written back translated. Only the plain
 * forms are known: IPv4 without options and IPv6 without extension headers, whole, with TCP or UDP in it. What has
 * another form is left to the programs behind, which know them all.
 */
#ifndef MESHLOG_LIB_XDP_PACKET_H
#define MESHLOG_LIB_XDP_PACKET_H

#include <linux/bpf.h>

#include "forward.h"
#include "packet.h"
#include "parse.h"

#define XDP_NO_FRAGMENT_MASK (IPV4_FRAGMENT_MORE | IPV4_FRAGMENT_OFFSET)

static __always_inline void *xdp_data(const struct xdp_md *xdp)
{
	return (void *)(long)xdp->data;
}

static __always_inline void *xdp_data_end(const struct xdp_md *xdp)
{
	return (void *)(long)xdp->data_end;
}

/* The beginning of a struct __sk_buff: the steps that are used of those for one read no more of it. Where one did, the
 * verifier would refuse the program. */
struct xdp_frame {
	__u32 len;
} __attribute__((may_alias));

_Static_assert(__builtin_offsetof(struct __sk_buff, len) == 0, "a frame must be the beginning of a struct __sk_buff");

static __always_inline struct __sk_buff *xdp_skb(const struct xdp_md *xdp, struct xdp_frame *frame)
{
	frame->len = (__u32)(xdp_data_end(xdp) - xdp_data(xdp));
	return (struct __sk_buff *)frame;
}

/* 1: read. */
static __always_inline int xdp_parse_ports(const struct xdp_md *xdp, struct packet *packet)
{
	void *l4 = xdp_data(xdp) + (packet->family == 4 ? L3_OFFSET + sizeof(struct iphdr)
							: L3_OFFSET + sizeof(struct ipv6hdr));
	struct tcphdr *tcp = l4;
	struct udphdr *udp = l4;

	if (packet->protocol == IPPROTO_TCP) {
		if ((void *)(tcp + 1) > xdp_data_end(xdp) || !l4_fits(packet, sizeof(*tcp)) ||
		    tcp->doff * 4 < sizeof(*tcp))
			return 0;
		packet->tcp_flags = ((__u8 *)tcp)[13];
	} else if (packet->protocol != IPPROTO_UDP || (void *)(udp + 1) > xdp_data_end(xdp) ||
		   !l4_fits(packet, sizeof(*udp))) {
		return 0;
	}
	packet->source_port = udp->source;
	packet->dest_port = udp->dest;
	return 1;
}

static __always_inline int xdp_parse_ipv4(const struct xdp_md *xdp, struct packet *packet)
{
	struct iphdr *header = xdp_data(xdp) + L3_OFFSET;
	__u32 total_bytes;

	if ((void *)(header + 1) > xdp_data_end(xdp))
		return 0;
	total_bytes = bpf_ntohs(header->tot_len);
	if (header->version != 4 || header->ihl * 4 != sizeof(*header) || header->ttl <= 1 ||
	    header->frag_off & bpf_htons(XDP_NO_FRAGMENT_MASK) || total_bytes < sizeof(*header) ||
	    L3_OFFSET + total_bytes > xdp_data_end(xdp) - xdp_data(xdp))
		return 0;
	packet->family = 4;
	packet->protocol = header->protocol;
	packet->l4_offset = L3_OFFSET + sizeof(*header);
	packet->l3_end = L3_OFFSET + total_bytes;
	address_from_ipv4(&packet->source, header->saddr);
	address_from_ipv4(&packet->dest, header->daddr);
	return 1;
}

static __always_inline int xdp_parse_ipv6(const struct xdp_md *xdp, struct packet *packet)
{
	struct ipv6hdr *header = xdp_data(xdp) + L3_OFFSET;

	if ((void *)(header + 1) > xdp_data_end(xdp))
		return 0;
	packet->l3_end = L3_OFFSET + sizeof(*header) + bpf_ntohs(header->payload_len);
	if (header->version != 6 || header->hop_limit <= 1 || packet->l3_end > xdp_data_end(xdp) - xdp_data(xdp))
		return 0;
	packet->family = 6;
	packet->protocol = header->nexthdr;
	packet->l4_offset = L3_OFFSET + sizeof(*header);
	for (int word = 0; word < 4; word++) {
		packet->source.words[word] = header->saddr.in6_u.u6_addr32[word];
		packet->dest.words[word] = header->daddr.in6_u.u6_addr32[word];
	}
	/* On the wire a mapped address would pass for the IPv4 address in every map. */
	return !address_is_ipv4(&packet->source) && !address_is_ipv4(&packet->dest);
}

/* 1: a packet of a plain form, which may be forwarded once more at least. */
static __always_inline int xdp_parse(const struct xdp_md *xdp, struct packet *packet)
{
	struct ethhdr *header = xdp_data(xdp);

	if ((void *)(header + 1) > xdp_data_end(xdp))
		return 0;
	if (header->h_proto == bpf_htons(ETH_P_IP))
		return xdp_parse_ipv4(xdp, packet) && xdp_parse_ports(xdp, packet);
	if (header->h_proto == bpf_htons(ETH_P_IPV6))
		return xdp_parse_ipv6(xdp, packet) && xdp_parse_ports(xdp, packet);
	return 0;
}

/* What a packet leaves with. */
struct xdp_way {
	struct address_port source;
	struct address_port dest;
	__u8 dest_mac[6];
	__u8 source_mac[6];
} __attribute__((aligned(8)));

/* What a checksum has to make up for, of words that change (RFC 1624, equation 3); any of its 16 bits may carry. */
static __always_inline void xdp_sum_change(__u64 *sum, __be32 from, __be32 to)
{
	*sum += (__u64)(__u32)~from + to;
}

static __always_inline __u16 xdp_sum_fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (__u16)sum;
}

static __always_inline void xdp_checksum_change(__sum16 *checksum, __u64 change)
{
	*checksum = (__sum16)~xdp_sum_fold((__u64)(__u16)~*checksum + change);
}

/* The addresses and the hop limit; `change` becomes what the transport checksum has to make up for. 0: it cannot be
 * reached. */
static __always_inline int xdp_write_ipv4(const struct xdp_md *xdp, const struct xdp_way *way, __u64 *change)
{
	struct iphdr *header = xdp_data(xdp) + L3_OFFSET;
	__u64 header_change;

	if ((void *)(header + 1) > xdp_data_end(xdp))
		return 0;
	xdp_sum_change(change, header->saddr, way->source.address.words[3]);
	xdp_sum_change(change, header->daddr, way->dest.address.words[3]);
	header_change = *change + (__u16)~bpf_htons(0x0100); /* one hop less */
	header->saddr = way->source.address.words[3];
	header->daddr = way->dest.address.words[3];
	header->ttl -= 1;
	xdp_checksum_change(&header->check, header_change);
	return 1;
}

static __always_inline int xdp_write_ipv6(const struct xdp_md *xdp, const struct xdp_way *way, __u64 *change)
{
	struct ipv6hdr *header = xdp_data(xdp) + L3_OFFSET;

	if ((void *)(header + 1) > xdp_data_end(xdp))
		return 0;
	for (int word = 0; word < 4; word++) {
		xdp_sum_change(change, header->saddr.in6_u.u6_addr32[word], way->source.address.words[word]);
		xdp_sum_change(change, header->daddr.in6_u.u6_addr32[word], way->dest.address.words[word]);
		header->saddr.in6_u.u6_addr32[word] = way->source.address.words[word];
		header->daddr.in6_u.u6_addr32[word] = way->dest.address.words[word];
	}
	header->hop_limit -= 1;
	return 1;
}

static __always_inline int xdp_write_ports(const struct xdp_md *xdp, const struct packet *packet, __be16 source,
					   __be16 dest, __u64 change)
{
	void *l4 = xdp_data(xdp) + (packet->family == 4 ? L3_OFFSET + sizeof(struct iphdr)
							: L3_OFFSET + sizeof(struct ipv6hdr));
	struct tcphdr *tcp = l4;
	struct udphdr *udp = l4;

	if ((void *)(udp + 1) > xdp_data_end(xdp))
		return 0;
	change += (__u64)(__u16)~udp->source + source + (__u16)~udp->dest + dest;
	udp->source = source;
	udp->dest = dest;
	if (packet->protocol == IPPROTO_TCP) {
		if ((void *)(tcp + 1) > xdp_data_end(xdp))
			return 0;
		xdp_checksum_change(&tcp->check, change);
		return 1;
	}
	/* 0 says that there is none. */
	if (!udp->check)
		return 1;
	xdp_checksum_change(&udp->check, change);
	if (!udp->check)
		udp->check = 0xffff;
	return 1;
}

/* Both ends, every checksum and the MACs, one hop further. 0: it cannot be reached, which never happens with a packet
 * that was read. */
static __always_inline int xdp_write(const struct xdp_md *xdp, const struct packet *packet, const struct xdp_way *way)
{
	struct ethhdr *header = xdp_data(xdp);
	__u64 change = 0;

	if ((void *)(header + 1) > xdp_data_end(xdp))
		return 0;
	*(struct mac_words *)header->h_dest = *(const struct mac_words *)way->dest_mac;
	*(struct mac_words *)header->h_source = *(const struct mac_words *)way->source_mac;
	if (packet->family == 4 ? !xdp_write_ipv4(xdp, way, &change) : !xdp_write_ipv6(xdp, way, &change))
		return 0;
	return xdp_write_ports(xdp, packet, way->source.port, way->dest.port, change);
}

#endif /* MESHLOG_LIB_XDP_PACKET_H */
