/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* From bytes to struct packet: Ethernet, IPv4 with options, IPv6 with a bounded chain of headers, the
 * ports. */
#ifndef MESHLOG_LIB_PARSE_H
#define MESHLOG_LIB_PARSE_H

#include <linux/bpf.h>
#include <linux/icmpv6.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "../maps.h"
#include "notify.h"
#include "packet.h"

#define L3_OFFSET ((int)sizeof(struct ethhdr))
#define L4_REACH 0xff /* where transport headers usually are: there they are read and written in place */
#define IPV4_FRAGMENT_MORE 0x2000
#define IPV4_FRAGMENT_OFFSET 0x1fff
#define IPV4_PLAIN 0x45 /* the first byte: its version, and a header of 5 words */
#define IPV6_FRAGMENT_MORE 0x0001
#define IPV6_FRAGMENT_OFFSET 0xfff8
#define IPV6_EXTENSION_HEADERS_MAX 6

/* <linux/icmp.h> draws in libc's headers. */
enum icmp_type { ICMP_ECHO_REPLY = 0, ICMP_ECHO_REQUEST = 8 };

struct icmp_header {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be16 id; /* of an echo */
	__be16 sequence;
};

enum icmpv6_link_type {
	MLD_QUERY = 130,
	MLD_REPORT = 131,
	MLD_DONE = 132,
	ND_ROUTER_SOLICITATION = 133,
	ND_NEIGHBOUR_SOLICITATION = 135,
	ND_NEIGHBOUR_ADVERTISEMENT = 136,
	ND_REDIRECT = 137,
	MLD_REPORT_V2 = 143,
};

struct ipv6_fragment_header {
	__u8 next_header;
	__u8 reserved;
	__be16 offset;
	__be32 id;
};

struct sctp_header {
	__be16 source;
	__be16 dest;
	__be32 verification_tag;
	__le32 checksum;
};

static __always_inline void address_from_ipv4(struct address *address, __be32 ipv4)
{
	address->words[0] = 0;
	address->words[1] = 0;
	address->words[2] = bpf_htonl(0xffff);
	address->words[3] = ipv4;
}

static __always_inline int address_is_ipv4(const struct address *address)
{
	return address->words[0] == 0 && address->words[1] == 0 && address->words[2] == bpf_htonl(0xffff);
}

static __always_inline int address_is_link_local_or_multicast(const struct address *address)
{
	__u32 top = bpf_ntohl(address->words[0]);

	return (top & 0xffc00000) == 0xfe800000 || (top & 0xff000000) == 0xff000000;
}

static __always_inline void fragment_set(struct packet *packet, __u32 offset, __u32 more, __be32 id)
{
	if (offset)
		packet->fragment = FRAGMENT_LATER;
	else if (more)
		packet->fragment = FRAGMENT_FIRST;
	packet->fragment_id = id;
}

static __always_inline int parse_ipv4(struct __sk_buff *skb, struct packet *packet)
{
	void *data = packet_data(skb);
	void *data_end = packet_data_end(skb);
	struct iphdr *header = data + L3_OFFSET;
	__u32 header_bytes, total_bytes;

	if ((void *)(header + 1) > data_end)
		return DROP(packet, FILE_PARSE, INVALID_PACKET_DROPPED);
	packet->family = 4;
	address_from_ipv4(&packet->source, header->saddr);
	address_from_ipv4(&packet->dest, header->daddr);
	packet->protocol = header->protocol;
	header_bytes = header->ihl * 4;
	total_bytes = bpf_ntohs(header->tot_len);
	if (header->version != 4 || header_bytes < sizeof(*header) || total_bytes < header_bytes ||
	    L3_OFFSET + total_bytes > skb->len)
		return DROP(packet, FILE_PARSE, INVALID_PACKET_DROPPED);
	fragment_set(packet, header->frag_off & bpf_htons(IPV4_FRAGMENT_OFFSET),
		     header->frag_off & bpf_htons(IPV4_FRAGMENT_MORE), header->id);
	packet->l4_offset = (__u16)(L3_OFFSET + header_bytes);
	packet->l3_end = L3_OFFSET + total_bytes;
	return 0;
}

enum extension { EXTENSION_NONE = 0, EXTENSION_PASSED = 1 };

static __always_inline int parse_ipv6_fragment(struct __sk_buff *skb, struct packet *packet)
{
	struct ipv6_fragment_header header;
	__u32 offset = packet->l4_offset + sizeof(header);

	if (bpf_skb_load_bytes(skb, packet->l4_offset, &header, sizeof(header)) || offset > packet->l3_end)
		return DROP(packet, FILE_PARSE, INVALID_IPV6_EXTENSION_HEADER);
	fragment_set(packet, header.offset & bpf_htons(IPV6_FRAGMENT_OFFSET),
		     header.offset & bpf_htons(IPV6_FRAGMENT_MORE), header.id);
	packet->protocol = header.next_header;
	packet->l4_offset = (__u16)offset;
	/* A later fragment has no headers, whatever its type. */
	return packet->fragment == FRAGMENT_LATER ? EXTENSION_NONE : EXTENSION_PASSED;
}

/*
 * Walks past one header: packet->protocol is the type of what is found at packet->l4_offset. EXTENSION_NONE: it is the
 * transport's; or a drop. A step of its own, since the ways through several headers are too many for the verifier.
 */
STEP parse_ipv6_extension(struct __sk_buff *skb, struct packet *packet)
{
	__u8 header[4]; /* next header, length, then by type */
	__u32 offset;
	__u8 type;

	if (!packet)
		return 0;
	type = packet->protocol;
	if (type == IPPROTO_FRAGMENT)
		return parse_ipv6_fragment(skb, packet);
	if (type != IPPROTO_HOPOPTS && type != IPPROTO_ROUTING && type != IPPROTO_DSTOPTS && type != IPPROTO_AH)
		return EXTENSION_NONE;
	if (bpf_skb_load_bytes(skb, packet->l4_offset, header, sizeof(header)))
		return DROP(packet, FILE_PARSE, INVALID_IPV6_EXTENSION_HEADER);
	/* With segments left, the address that policy sees is not where the packet ends. */
	if (type == IPPROTO_ROUTING && header[3] != 0)
		return DROP(packet, FILE_PARSE, INVALID_IPV6_EXTENSION_HEADER);
	offset = packet->l4_offset + (type == IPPROTO_AH ? (header[1] + 2) * 4 : (header[1] + 1) * 8);
	if (offset > packet->l3_end)
		return DROP(packet, FILE_PARSE, INVALID_IPV6_EXTENSION_HEADER);
	packet->protocol = header[0];
	packet->l4_offset = (__u16)offset;
	return EXTENSION_PASSED;
}

/* Walks to the transport header. */
static __always_inline int parse_ipv6_extensions(struct __sk_buff *skb, struct packet *packet)
{
	int was_fragment = 0, is_fragment, result;

	for (int hop = 0; hop <= IPV6_EXTENSION_HEADERS_MAX; hop++) {
		is_fragment = packet->protocol == IPPROTO_FRAGMENT;
		if (is_fragment && was_fragment)
			return DROP(packet, FILE_PARSE, INVALID_IPV6_EXTENSION_HEADER);
		result = parse_ipv6_extension(skb, packet);
		if (result != EXTENSION_PASSED)
			return result;
		was_fragment |= is_fragment;
	}
	return DROP(packet, FILE_PARSE, INVALID_IPV6_EXTENSION_HEADER);
}

static __always_inline int parse_ipv6(struct __sk_buff *skb, struct packet *packet)
{
	void *data = packet_data(skb);
	void *data_end = packet_data_end(skb);
	struct ipv6hdr *header = data + L3_OFFSET;

	if ((void *)(header + 1) > data_end)
		return DROP(packet, FILE_PARSE, INVALID_PACKET_DROPPED);
	packet->family = 6;
	for (int word = 0; word < 4; word++) {
		packet->source.words[word] = header->saddr.in6_u.u6_addr32[word];
		packet->dest.words[word] = header->daddr.in6_u.u6_addr32[word];
	}
	packet->protocol = header->nexthdr;
	packet->l3_end = L3_OFFSET + sizeof(*header) + bpf_ntohs(header->payload_len);
	if (header->version != 6 || packet->l3_end > skb->len)
		return DROP(packet, FILE_PARSE, INVALID_PACKET_DROPPED);
	/* On the wire a mapped address would pass for the IPv4 address in every map. */
	if (address_is_ipv4(&packet->source) || address_is_ipv4(&packet->dest))
		return DROP(packet, FILE_PARSE, INVALID_PACKET_DROPPED);
	packet->l4_offset = L3_OFFSET + sizeof(*header);
	return parse_ipv6_extensions(skb, packet);
}

STEP parse_l3_any(struct __sk_buff *skb, struct packet *packet)
{
	void *data = packet_data(skb);
	void *data_end = packet_data_end(skb);
	struct ethhdr *header = data;
	__u32 wanted = L3_OFFSET + sizeof(struct ipv6hdr);

	if (!packet)
		return 0;
	/* Headers may lie in page fragments; from here on they are reached directly. */
	if (data + wanted > data_end) {
		bpf_skb_pull_data(skb, wanted < skb->len ? wanted : skb->len);
		data = packet_data(skb);
		data_end = packet_data_end(skb);
		header = data;
	}
	if ((void *)(header + 1) > data_end)
		return DROP(packet, FILE_PARSE, INVALID_PACKET_DROPPED);
	if (skb->vlan_present)
		return DROP(packet, FILE_PARSE, UNSUPPORTED_L2_PROTOCOL);
	if (header->h_proto == bpf_htons(ETH_P_IP))
		return parse_ipv4(skb, packet);
	if (header->h_proto == bpf_htons(ETH_P_IPV6))
		return parse_ipv6(skb, packet);
	if (header->h_proto == bpf_htons(ETH_P_ARP))
		return TC_ACT_OK;
	if (bpf_ntohs(header->h_proto) < ETH_P_802_3_MIN)
		return DROP(packet, FILE_PARSE, UNSUPPORTED_L2_PROTOCOL);
	return DROP(packet, FILE_PARSE, UNSUPPORTED_L3_PROTOCOL);
}

/* Addresses and protocol. TC_ACT_OK for ARP, which is the host stack's. The plain form is read here, all others in a
 * step of their own. */
static __always_inline int parse_l3(struct __sk_buff *skb, struct packet *packet)
{
	struct ethhdr *ethernet = packet_data(skb);
	struct iphdr *header = (void *)(ethernet + 1);
	__u32 total_bytes;

	if ((void *)(header + 1) > packet_data_end(skb) || ethernet->h_proto != bpf_htons(ETH_P_IP) ||
	    *(__u8 *)header != IPV4_PLAIN || header->frag_off & bpf_htons(IPV4_FRAGMENT_MORE | IPV4_FRAGMENT_OFFSET) ||
	    skb->vlan_present)
		return parse_l3_any(skb, packet);
	total_bytes = bpf_ntohs(header->tot_len);
	if (total_bytes < sizeof(*header) || L3_OFFSET + total_bytes > skb->len)
		return parse_l3_any(skb, packet);
	packet->family = 4;
	packet->protocol = header->protocol;
	packet->l4_offset = L3_OFFSET + sizeof(*header);
	packet->l3_end = L3_OFFSET + total_bytes;
	packet->fragment_id = header->id;
	address_from_ipv4(&packet->source, header->saddr);
	address_from_ipv4(&packet->dest, header->daddr);
	return 0;
}

static __always_inline int l4_fits(const struct packet *packet, __u32 bytes)
{
	return packet->l4_offset + bytes <= packet->l3_end;
}

/* Of a TCP header what is asked of it. */
struct tcp_start {
	__be16 source;
	__be16 dest;
	__be32 sequence;
	__be32 acknowledged;
	__u8 words; /* upper half */
	__u8 flags;
};

/* `bytes` of the transport header: where they are, or copied to `copy`; 0: the packet has them not. */
static __always_inline const void *l4_read(struct __sk_buff *skb, const struct packet *packet, void *copy, __u32 bytes)
{
	void *header = packet_data(skb) + (packet->l4_offset & L4_REACH);

	if (packet->l4_offset <= L4_REACH && header + bytes <= packet_data_end(skb))
		return header;
	return bpf_skb_load_bytes(skb, packet->l4_offset, copy, bytes) ? 0 : copy;
}

static __always_inline int parse_tcp(struct __sk_buff *skb, struct packet *packet)
{
	struct tcp_start copy;
	const struct tcp_start *header;

	header = l4_read(skb, packet, &copy, sizeof(copy));
	if (!l4_fits(packet, sizeof(struct tcphdr)) || !header || (header->words >> 4) * 4 < sizeof(struct tcphdr))
		return DROP(packet, FILE_PARSE, CT_TRUNCATED_OR_INVALID_HEADER);
	packet->source_port = header->source;
	packet->dest_port = header->dest;
	packet->tcp_flags = header->flags;
	return 0;
}

/* UDP and SCTP begin with the same two ports. */
static __always_inline int parse_ports(struct __sk_buff *skb, struct packet *packet, __u32 header_bytes)
{
	__be16 ports[2];

	if (!l4_fits(packet, header_bytes) || bpf_skb_load_bytes(skb, packet->l4_offset, ports, sizeof(ports)))
		return DROP(packet, FILE_PARSE, CT_TRUNCATED_OR_INVALID_HEADER);
	packet->source_port = ports[0];
	packet->dest_port = ports[1];
	return 0;
}

/* The id stands at the asking end, so that a request and an equal request of the other end are two flows. */
static __always_inline int parse_icmp(struct __sk_buff *skb, struct packet *packet, __u8 request, __u8 reply)
{
	struct icmp_header header;

	if (!l4_fits(packet, sizeof(header)) || bpf_skb_load_bytes(skb, packet->l4_offset, &header, sizeof(header)))
		return DROP(packet, FILE_PARSE, CT_TRUNCATED_OR_INVALID_HEADER);
	packet->icmp_type = header.type;
	packet->icmp_code = header.code;
	if (header.type == request)
		packet->source_port = header.id;
	else if (header.type == reply)
		packet->dest_port = header.id;
	return 0;
}

static __always_inline int is_echo_request(const struct packet *packet)
{
	return packet->icmp_type == (packet->protocol == IPPROTO_ICMP ? ICMP_ECHO_REQUEST : ICMPV6_ECHO_REQUEST);
}

static __always_inline int parse_transport(struct __sk_buff *skb, struct packet *packet)
{
	if (packet->protocol == IPPROTO_TCP)
		return parse_tcp(skb, packet);
	if (packet->protocol == IPPROTO_UDP)
		return parse_ports(skb, packet, sizeof(struct udphdr));
	if (packet->protocol == IPPROTO_SCTP)
		return parse_ports(skb, packet, sizeof(struct sctp_header));
	if (packet->protocol == IPPROTO_ICMP && packet->family == 4)
		return parse_icmp(skb, packet, ICMP_ECHO_REQUEST, ICMP_ECHO_REPLY);
	if (packet->protocol == IPPROTO_ICMPV6 && packet->family == 6)
		return parse_icmp(skb, packet, ICMPV6_ECHO_REQUEST, ICMPV6_ECHO_REPLY);
	if (is_icmp(packet->protocol))
		return DROP(packet, FILE_PARSE, CT_UNKNOWN_L4_PROTOCOL);
	/* Of any other protocol the number is known, which is enough for policy. */
	return 0;
}

static __always_inline void fragment_key_set(struct fragment_key *key, const struct packet *packet)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->source = packet->source;
	key->dest = packet->dest;
	key->id = packet->fragment_id;
	key->protocol = packet->family == 4 ? packet->protocol : 0;
}

static __always_inline int is_echo(const struct packet *packet)
{
	return is_echo_request(packet) ||
	       packet->icmp_type == (packet->protocol == IPPROTO_ICMP ? ICMP_ECHO_REPLY : ICMPV6_ECHO_REPLY);
}

/* What later fragments of the datagram are to be taken for. An ICMP error quotes too little to be cut in pieces. */
STEP fragment_remember(struct packet *packet)
{
	struct fragment_key key;
	struct fragment_row row = {};

	if (!packet || (is_icmp(packet->protocol) && !is_echo(packet)))
		return 0;
	fragment_key_set(&key, packet);
	row.source_port = packet->source_port;
	row.dest_port = packet->dest_port;
	row.protocol = packet->protocol;
	row.icmp_type = packet->icmp_type;
	row.icmp_code = packet->icmp_code;
	bpf_map_update_elem(&fragments, &key, &row, BPF_ANY);
	return 0;
}

STEP fragment_follow(struct packet *packet)
{
	struct fragment_key key;
	struct fragment_row *row;

	if (!packet)
		return 0;
	fragment_key_set(&key, packet);
	row = bpf_map_lookup_elem(&fragments, &key);
	if (!row)
		return DROP(packet, FILE_PARSE, FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND);
	packet->source_port = row->source_port;
	packet->dest_port = row->dest_port;
	packet->protocol = row->protocol;
	packet->icmp_type = row->icmp_type;
	packet->icmp_code = row->icmp_code;
	return 0;
}

STEP parse_l4_any(struct __sk_buff *skb, struct packet *packet)
{
	int result;

	if (!packet)
		return 0;
	if (packet->fragment == FRAGMENT_LATER)
		return fragment_follow(packet);
	result = parse_transport(skb, packet);
	if (result || packet->fragment == FRAGMENT_NONE)
		return result;
	return fragment_remember(packet);
}

/* Ports, TCP flags, ICMP type and code; of a later fragment those of the first. */
static __always_inline int parse_l4(struct __sk_buff *skb, struct packet *packet)
{
	const struct tcp_start *header = packet_data(skb) + (packet->l4_offset & L4_REACH);

	if (packet->fragment != FRAGMENT_NONE || packet->l4_offset > L4_REACH ||
	    (void *)(header + 1) > packet_data_end(skb))
		return parse_l4_any(skb, packet);
	if (packet->protocol == IPPROTO_TCP && l4_fits(packet, sizeof(struct tcphdr)) &&
	    (header->words >> 4) * 4 >= sizeof(struct tcphdr))
		packet->tcp_flags = header->flags;
	else if (packet->protocol != IPPROTO_UDP || !l4_fits(packet, sizeof(struct udphdr)))
		return parse_l4_any(skb, packet);
	packet->source_port = header->source;
	packet->dest_port = header->dest;
	return 0;
}

/* Neighbour discovery and multicast listening on the link itself are the host stack's and no policy's. */
static __always_inline int is_link_control(struct __sk_buff *skb, const struct packet *packet)
{
	__u8 type;

	/* Discovery in fragments is to be ignored (RFC 6980). */
	if (packet->protocol != IPPROTO_ICMPV6 || packet->family != 6 || packet->fragment ||
	    !address_is_link_local_or_multicast(&packet->dest))
		return 0;
	if (!l4_fits(packet, sizeof(struct icmp6hdr)) ||
	    bpf_skb_load_bytes(skb, packet->l4_offset, &type, sizeof(type)))
		return 0;
	return (type >= MLD_QUERY && type <= ND_ROUTER_SOLICITATION) || type == ND_NEIGHBOUR_SOLICITATION ||
	       type == ND_NEIGHBOUR_ADVERTISEMENT || type == MLD_REPORT_V2;
}

#endif /* MESHLOG_LIB_PARSE_H */
