/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The last step: to an endpoint of this node, to another node, or to the host stack. */
#ifndef MESHLOG_LIB_FORWARD_H
#define MESHLOG_LIB_FORWARD_H

#include "../config.h"
#include "../maps.h"
#include "packet.h"
#include "parse.h"
#include "tunnel.h"

#define ADDRESS_FAMILY_IPV4 2 /* AF_INET and AF_INET6, whose header is not for programs */
#define ADDRESS_FAMILY_IPV6 10

/* Six bytes in three loads: a row's MAC is aligned to two. */
struct mac_words {
	__u16 words[3];
} __attribute__((may_alias));

static __always_inline int ttl_decrement_ipv4(struct __sk_buff *skb, struct packet *packet)
{
	void *data = packet_data(skb);
	struct iphdr *header = data + L3_OFFSET;
	__u32 sum;

	if ((void *)(header + 1) > packet_data_end(skb))
		return DROP(packet, FILE_FORWARD, INVALID_PACKET_DROPPED);
	if (header->ttl <= 1)
		return DROP(packet, FILE_FORWARD, TTL_EXCEEDED);
	header->ttl -= 1;
	sum = header->check + bpf_htons(0x0100); /* RFC 1624 for a word that falls by 0x0100 */
	header->check = (__sum16)(sum + (sum >= 0xffff));
	return 0;
}

/* By helper: with no header checksum to make up for it, the byte changes the sum of a fully summed packet. */
static __always_inline int hop_limit_decrement_ipv6(struct __sk_buff *skb, struct packet *packet)
{
	void *data = packet_data(skb);
	struct ipv6hdr *header = data + L3_OFFSET;
	__u8 hop_limit;

	if ((void *)(header + 1) > packet_data_end(skb))
		return DROP(packet, FILE_FORWARD, INVALID_PACKET_DROPPED);
	if (header->hop_limit <= 1)
		return DROP(packet, FILE_FORWARD, TTL_EXCEEDED);
	hop_limit = header->hop_limit - 1;
	if (bpf_skb_store_bytes(skb, L3_OFFSET + __builtin_offsetof(struct ipv6hdr, hop_limit), &hop_limit,
				sizeof(hop_limit), BPF_F_RECOMPUTE_CSUM))
		return DROP(packet, FILE_FORWARD, ERROR_WRITING_TO_PACKET);
	return 0;
}

static __always_inline int ttl_decrement(struct __sk_buff *skb, struct packet *packet)
{
	return packet->family == 4 ? ttl_decrement_ipv4(skb, packet) : hop_limit_decrement_ipv6(skb, packet);
}

/* Whether a packet may not be forwarded any further, or cannot be read. */
static __always_inline int ttl_is_last(struct __sk_buff *skb, const struct packet *packet)
{
	__u32 at = L3_OFFSET + (packet->family == 4 ? __builtin_offsetof(struct iphdr, ttl)
						    : __builtin_offsetof(struct ipv6hdr, hop_limit));
	__u8 ttl;

	return bpf_skb_load_bytes(skb, at, &ttl, sizeof(ttl)) || ttl <= 1;
}

static __always_inline int macs_write(struct __sk_buff *skb, const __u8 *dest, const __u8 *source)
{
	void *data = packet_data(skb);
	struct ethhdr *header = data;

	if ((void *)(header + 1) > packet_data_end(skb))
		return -1;
	*(struct mac_words *)header->h_dest = *(const struct mac_words *)dest;
	*(struct mac_words *)header->h_source = *(const struct mac_words *)source;
	return 0;
}

/* The class of an endpoint in the queues that limit its bandwidth. */
static __always_inline __u32 shaper_class(__u32 endpoint_id)
{
	return SHAPER_MAJOR << 16 | (__u16)endpoint_id;
}

/* Straight into the endpoint's own namespace; what hangs on the host side of its device is not passed, unless what it
 * receives has a limit: then the packet queues there, and to_endpoint knows it again by its mark. */
static __always_inline int forward_to_endpoint(struct __sk_buff *skb, struct packet *packet,
					       const struct endpoint_row *row)
{
	int result = ttl_decrement(skb, packet);

	if (result)
		return result;
	if (macs_write(skb, row->mac, row->host_mac))
		return DROP(packet, FILE_FORWARD, INVALID_PACKET_DROPPED);
	if (row->flags & ENDPOINT_SHAPED) {
		skb->mark = SHAPER_MARK;
		return (int)bpf_redirect(row->ifindex, 0);
	}
	return (int)bpf_redirect_peer(row->ifindex, 0);
}

/* The kernel's bpf_redirect_neigh loses an IPv6 packet whose next hop is IPv4, and says nothing. */
static __always_inline int forward_ipv6_over_ipv4(struct __sk_buff *skb, struct packet *packet, __be32 node)
{
	struct bpf_fib_lookup lookup = {
		.family = ADDRESS_FAMILY_IPV4,
		.ifindex = config_underlay_ifindex,
		.ipv4_dst = node,
	};

	if (bpf_fib_lookup(skb, &lookup, sizeof(lookup), BPF_FIB_LOOKUP_OUTPUT) != BPF_FIB_LKUP_RET_SUCCESS)
		return DROP(packet, FILE_FORWARD, FIB_LOOKUP_FAILED);
	if (macs_write(skb, lookup.dmac, lookup.smac))
		return DROP(packet, FILE_FORWARD, INVALID_PACKET_DROPPED);
	return (int)bpf_redirect(config_underlay_ifindex, 0);
}

static __always_inline int forward_to_node(struct __sk_buff *skb, struct packet *packet,
					   const struct ipcache_row *row)
{
	struct bpf_redir_neigh next_hop = {};
	int result;

	result = ttl_decrement(skb, packet);
	if (result)
		return result;
	if (packet->family == 6 && address_is_ipv4(&row->node))
		return forward_ipv6_over_ipv4(skb, packet, row->node.words[3]);
	if (address_is_ipv4(&row->node)) {
		next_hop.nh_family = ADDRESS_FAMILY_IPV4;
		next_hop.ipv4_nh = row->node.words[3];
	} else {
		next_hop.nh_family = ADDRESS_FAMILY_IPV6;
		for (int word = 0; word < 4; word++)
			next_hop.ipv6_nh[word] = row->node.words[word];
	}
	return (int)bpf_redirect_neigh(config_underlay_ifindex, &next_hop, sizeof(next_hop), 0);
}

/* To another node's endpoint, or to that node, inside a packet between the nodes. */
static __always_inline int forward_to_tunnel(struct __sk_buff *skb, struct packet *packet,
					     const struct ipcache_row *row)
{
	__u32 ifindex = tunnel_ifindex();
	struct address node = row->node;
	int result;

	if (!ifindex)
		return DROP(packet, FILE_FORWARD, NO_TUNNEL_OR_ENCAPSULATION_ENDPOINT);
	/* The host stack tells the endpoint that it does not fit, or cuts it, and sends the pieces the same way. */
	if (tunnel_is_too_narrow(skb, ifindex))
		return TC_ACT_OK;
	result = ttl_decrement(skb, packet);
	if (result)
		return result;
	result = tunnel_set(skb, packet, &node);
	return result ? result : (int)bpf_redirect(ifindex, 0);
}

/* A question to the host's routes about the packet, as if it had come in by the device. */
static __always_inline void route_question(struct bpf_fib_lookup *lookup, const struct packet *packet, __u32 ifindex)
{
	lookup->ifindex = ifindex;
	if (packet->family == 4) {
		lookup->family = ADDRESS_FAMILY_IPV4;
		lookup->ipv4_src = packet->source.words[3];
		lookup->ipv4_dst = packet->dest.words[3];
		return;
	}
	lookup->family = ADDRESS_FAMILY_IPV6;
	for (int word = 0; word < 4; word++) {
		lookup->ipv6_src[word] = packet->source.words[word];
		lookup->ipv6_dst[word] = packet->dest.words[word];
	}
}

/* Out by the host's routes, but not through its stack: that refuses a source which is its own, and one that it would
 * not route back this way. */
STEP forward_by_route(struct __sk_buff *skb, struct packet *packet)
{
	struct bpf_fib_lookup lookup = {};
	long found;
	int result;

	if (!packet)
		return 0;
	result = ttl_decrement(skb, packet);
	if (result)
		return result;
	route_question(&lookup, packet, config_underlay_ifindex);
	found = bpf_fib_lookup(skb, &lookup, sizeof(lookup), 0);
	if (found == BPF_FIB_LKUP_RET_NO_NEIGH)
		return (int)bpf_redirect_neigh(lookup.ifindex, 0, 0, 0);
	if (found != BPF_FIB_LKUP_RET_SUCCESS)
		return DROP(packet, FILE_FORWARD, FIB_LOOKUP_FAILED);
	if (macs_write(skb, lookup.dmac, lookup.smac))
		return DROP(packet, FILE_FORWARD, INVALID_PACKET_DROPPED);
	return (int)bpf_redirect(lookup.ifindex, 0);
}

/* `local` and `remote` are the rows of the packet's destination, either may be 0. */
static __always_inline int forward(struct __sk_buff *skb, struct packet *packet,
				   const struct endpoint_row *local, const struct ipcache_row *remote)
{
	if (local && !(local->flags & ENDPOINT_HOST))
		return forward_to_endpoint(skb, packet, local);
	if (!local && remote && remote->flags & IPCACHE_TUNNEL)
		return forward_to_tunnel(skb, packet, remote);
	if (!local && remote && remote->flags & IPCACHE_REMOTE_ENDPOINT) {
		if (!config_underlay_ifindex || address_is_zero(&remote->node))
			return DROP(packet, FILE_FORWARD, STALE_OR_UNROUTABLE_IP);
		return forward_to_node(skb, packet, remote);
	}
	return TC_ACT_OK;
}

#endif /* MESHLOG_LIB_FORWARD_H */
