/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Tells the sender of a packet that is dropped why, in place of waiting: the packet itself becomes a TCP reset or an
 * ICMP error, from the address that it was sent to. Packets with IP options or extension headers, and pieces of
 * datagrams, are dropped in silence.
 *
 * Where the device was to compute the transport checksum, it still will, over the new bytes: the field at its old place
 * is then given the pseudo header's sum, with which the completed packet sums up right.
 */
#ifndef MESHLOG_LIB_REJECT_H
#define MESHLOG_LIB_REJECT_H

#include "forward.h"
#include "packet.h"
#include "parse.h"

#define REJECT_TTL 64
#define QUOTED_TRANSPORT_BYTES 8 /* the least that an error quotes, RFC 792 */

enum icmp_reject_type {
	ICMP_REJECT_UNREACHABLE = 3,
	ICMP_REJECT_PORT = 3,
	ICMP_REJECT_TOO_BIG = 4,
	ICMPV6_REJECT_UNREACHABLE = 1,
	ICMPV6_REJECT_PORT = 4,
	ICMPV6_REJECT_TOO_BIG = 2,
};

struct icmp_reject {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be16 unused;
	__be16 mtu;
};

static __always_inline __u16 checksum_fold(__s64 sum)
{
	__u32 folded = (__u32)sum;

	folded = (folded & 0xffff) + (folded >> 16);
	folded = (folded & 0xffff) + (folded >> 16);
	return (__u16)folded;
}

static __always_inline __u32 plain_l4_offset(const struct packet *packet)
{
	return L3_OFFSET + (packet->family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr));
}

/* The sum of the pseudo header of an answer to the packet. */
static __always_inline __s64 pseudo_sum(const struct packet *packet, __u8 protocol, __u32 bytes)
{
	__be32 tail[2] = {bpf_htonl(bytes), bpf_htonl(protocol)};
	__s64 sum = bpf_csum_diff(0, 0, tail, sizeof(tail), 0);

	if (packet->family == 4) {
		sum = bpf_csum_diff(0, 0, (__be32 *)&packet->source.words[3], 4, (__wsum)sum);
		return bpf_csum_diff(0, 0, (__be32 *)&packet->dest.words[3], 4, (__wsum)sum);
	}
	sum = bpf_csum_diff(0, 0, (__be32 *)packet->source.words, 16, (__wsum)sum);
	return bpf_csum_diff(0, 0, (__be32 *)packet->dest.words, 16, (__wsum)sum);
}

/* Gives the frame its new length. 1: its checksum is the device's to compute, 0: it is not; or negative. */
static __noinline int reject_resize(struct __sk_buff *skb, const struct packet *packet, __u32 bytes)
{
	/* The kernel does not cut off a checksum field that is still to be filled. */
	int is_left_to_device = bpf_skb_change_tail(skb, plain_l4_offset(packet) + 4, 0) != 0;

	if (bpf_skb_change_tail(skb, bytes, 0))
		return -1;
	return is_left_to_device;
}

/* Headers from the packet's destination back to its source. Negative: the frame is not what it was. */
static __noinline int reject_headers(struct __sk_buff *skb, const struct packet *packet, __u8 protocol, __u32 bytes)
{
	void *data = packet_data(skb);
	struct ethhdr *ethernet = data;
	struct mac_words mac;

	if ((void *)(ethernet + 1) > packet_data_end(skb))
		return -1;
	mac = *(struct mac_words *)ethernet->h_dest;
	*(struct mac_words *)ethernet->h_dest = *(struct mac_words *)ethernet->h_source;
	*(struct mac_words *)ethernet->h_source = mac;
	if (packet->family == 4) {
		struct iphdr ipv4 = {.version = 4, .ihl = 5, .ttl = REJECT_TTL, .protocol = protocol};

		ipv4.tot_len = bpf_htons((__u16)(sizeof(ipv4) + bytes));
		ipv4.frag_off = bpf_htons(0x4000);
		ipv4.saddr = packet->dest.words[3];
		ipv4.daddr = packet->source.words[3];
		ipv4.check = (__sum16)~checksum_fold(bpf_csum_diff(0, 0, (__be32 *)&ipv4, sizeof(ipv4), 0));
		return (int)bpf_skb_store_bytes(skb, L3_OFFSET, &ipv4, sizeof(ipv4), 0);
	}
	struct ipv6hdr ipv6 = {.version = 6, .hop_limit = REJECT_TTL, .nexthdr = protocol};

	ipv6.payload_len = bpf_htons((__u16)bytes);
	__builtin_memcpy(&ipv6.saddr, &packet->dest, sizeof(ipv6.saddr));
	__builtin_memcpy(&ipv6.daddr, &packet->source, sizeof(ipv6.daddr));
	return (int)bpf_skb_store_bytes(skb, L3_OFFSET, &ipv6, sizeof(ipv6), 0);
}

/* RFC 9293, section 3.10.7.1: what answers a segment to nobody. 0: the packet is that now; or negative. */
STEP reject_tcp(struct __sk_buff *skb, struct packet *packet)
{
	struct tcphdr seen, reset = {};
	__u32 l4_offset;
	__s64 pseudo;
	int result;

	if (!packet || packet->tcp_flags & TCP_FLAG_BYTE_RST)
		return -1;
	l4_offset = plain_l4_offset(packet);
	if (bpf_skb_load_bytes(skb, l4_offset, &seen, sizeof(seen)))
		return -1;
	reset.source = seen.dest;
	reset.dest = seen.source;
	reset.doff = sizeof(reset) / 4;
	reset.rst = 1;
	if (seen.ack) {
		reset.seq = seen.ack_seq;
	} else {
		reset.ack = 1;
		reset.ack_seq = bpf_htonl(bpf_ntohl(seen.seq) + packet->l3_end - l4_offset - seen.doff * 4 + seen.syn + seen.fin);
	}
	result = reject_resize(skb, packet, l4_offset + sizeof(reset));
	if (result < 0)
		return result;
	pseudo = pseudo_sum(packet, IPPROTO_TCP, sizeof(reset));
	reset.check = result ? checksum_fold(pseudo)
			     : (__sum16)~checksum_fold(
				       bpf_csum_diff(0, 0, (__be32 *)&reset, sizeof(reset), (__wsum)pseudo));
	if (bpf_skb_store_bytes(skb, l4_offset, &reset, sizeof(reset), 0))
		return -1;
	return reject_headers(skb, packet, IPPROTO_TCP, sizeof(reset));
}

static __always_inline void icmp_reject_set(struct icmp_reject *icmp, const struct packet *packet)
{
	int is_too_big = packet->reject == REJECT_TOO_BIG;

	icmp->mtu = is_too_big ? bpf_htons((__u16)packet->mtu) : 0;
	if (packet->family == 4) {
		icmp->type = ICMP_REJECT_UNREACHABLE;
		icmp->code = is_too_big ? ICMP_REJECT_TOO_BIG : ICMP_REJECT_PORT;
	} else {
		icmp->type = is_too_big ? ICMPV6_REJECT_TOO_BIG : ICMPV6_REJECT_UNREACHABLE;
		icmp->code = is_too_big ? 0 : ICMPV6_REJECT_PORT;
	}
}

/* The error and what it quotes; `bytes` of both. The quote stands behind `body` already. */
static __noinline int reject_write(struct __sk_buff *skb, const struct packet *packet, struct icmp_reject *body,
				   __u32 bytes)
{
	__u8 protocol = packet->family == 4 ? IPPROTO_ICMP : IPPROTO_ICMPV6;
	__u32 l4_offset = plain_l4_offset(packet);
	__s64 pseudo = packet->family == 4 ? 0 : pseudo_sum(packet, protocol, bytes);
	int is_left_to_device = reject_resize(skb, packet, l4_offset + bytes);
	long failed;

	if (is_left_to_device < 0)
		return -1;
	icmp_reject_set(body, packet);
	/* Two calls, because the verifier wants to see the length. */
	body->checksum = (__be16)~checksum_fold(
		packet->family == 4
			? bpf_csum_diff(0, 0, (__be32 *)body, sizeof(*body) + sizeof(struct iphdr) + QUOTED_TRANSPORT_BYTES, 0)
			: bpf_csum_diff(0, 0, (__be32 *)body, sizeof(*body) + sizeof(struct ipv6hdr) + QUOTED_TRANSPORT_BYTES,
					(__wsum)pseudo));
	/* UDP's checksum was to stand where the MTU does. */
	if (is_left_to_device)
		body->mtu = checksum_fold(pseudo);
	if (packet->family == 4)
		failed = bpf_skb_store_bytes(skb, l4_offset, body,
					     sizeof(*body) + sizeof(struct iphdr) + QUOTED_TRANSPORT_BYTES, 0);
	else
		failed = bpf_skb_store_bytes(skb, l4_offset, body,
					     sizeof(*body) + sizeof(struct ipv6hdr) + QUOTED_TRANSPORT_BYTES, 0);
	return failed ? -1 : reject_headers(skb, packet, protocol, bytes);
}

/* 0: the packet is an ICMP error now; or negative. */
STEP reject_icmp(struct __sk_buff *skb, struct packet *packet)
{
	struct {
		struct icmp_reject icmp;
		__u8 quote[sizeof(struct ipv6hdr) + QUOTED_TRANSPORT_BYTES];
	} __attribute__((aligned(8))) body = {};
	__u32 bytes = sizeof(body.icmp) + QUOTED_TRANSPORT_BYTES;
	long failed;

	if (!packet)
		return -1;
	if (packet->family == 4) {
		bytes += sizeof(struct iphdr);
		failed = bpf_skb_load_bytes(skb, L3_OFFSET, body.quote, sizeof(struct iphdr) + QUOTED_TRANSPORT_BYTES);
	} else {
		bytes += sizeof(struct ipv6hdr);
		failed = bpf_skb_load_bytes(skb, L3_OFFSET, body.quote, sizeof(struct ipv6hdr) + QUOTED_TRANSPORT_BYTES);
	}
	return failed ? -1 : reject_write(skb, packet, &body.icmp, bytes);
}

/*
 * The verdict on a packet that was dropped, and told so. `is_endpoint`: on the device of an endpoint, behind which its
 * namespace is; otherwise on one to the network.
 */
static __always_inline int reject(struct __sk_buff *skb, struct packet *packet, int is_endpoint)
{
	int result;

	if (packet->reject == REJECT_NOT || packet->fragment || packet->l4_offset != plain_l4_offset(packet))
		return TC_ACT_SHOT;
	/* SCTP's sum cannot be left to the device in the place of another. */
	if (packet->protocol != IPPROTO_TCP && packet->protocol != IPPROTO_UDP)
		return TC_ACT_SHOT;
	if (packet->protocol == IPPROTO_TCP && packet->reject == REJECT_PORT)
		result = reject_tcp(skb, packet);
	else
		result = reject_icmp(skb, packet);
	if (result)
		return TC_ACT_SHOT;
	return (int)(is_endpoint ? bpf_redirect_peer(skb->ifindex, 0) : bpf_redirect(skb->ifindex, 0));
}

#endif /* MESHLOG_LIB_REJECT_H */
