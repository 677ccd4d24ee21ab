// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * North-south balancing at the underlay device, before the host stack has allocated anything: what from_network
 * (host.bpf.c) does with a packet for a backend on another node, and with that backend's answer, on the same maps. A
 * flow may change between the two with any packet. All else is passed on to from_network as it came, with nothing
 * written but the affinity that it would write alike: backends of this node, direct server return, the tunnel,
 * refusals, ICMP, fragments, packets at the end of their hops, next hops that are not resolved, and what would leave by
 * another device.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"
#include "config.h"

/* Steps of conntrack take a struct __sk_buff, and a global function would want it whole. */
#define STEP static __noinline __attribute__((unused)) int
#define EVERY_STEP static __always_inline int
#include "lib/conntrack.h"
#undef STEP
#define STEP __noinline int

#include "lib/entering.h"
#include "lib/inbound.h"
#include "lib/ipcache.h"
#include "lib/masquerade.h"
#include "lib/metrics.h"
#include "lib/nodeport.h"
#include "lib/scratch.h"
#include "lib/service.h"
#include "lib/xdp_packet.h"

static __always_inline int is_same_mac(const __u8 *left, const __u8 *right)
{
	const struct mac_words *one = (const struct mac_words *)left, *other = (const struct mac_words *)right;

	return one->words[0] == other->words[0] && one->words[1] == other->words[1] && one->words[2] == other->words[2];
}

/* Asks the host's routes for the way from `hop->source` to `hop->dest`. 1: the next hop is known. */
static __noinline int hop_ask(struct xdp_md *xdp, const struct packet *packet, struct recent_hop *hop)
{
	struct bpf_fib_lookup lookup = {.ifindex = config_underlay_ifindex};
	__u32 flags = address_is_zero(&hop->source) ? BPF_FIB_LOOKUP_OUTPUT : 0;

	if (address_is_ipv4(&hop->dest)) {
		lookup.family = ADDRESS_FAMILY_IPV4;
		lookup.ipv4_src = hop->source.words[3];
		lookup.ipv4_dst = hop->dest.words[3];
	} else {
		lookup.family = ADDRESS_FAMILY_IPV6;
		for (int word = 0; word < 4; word++) {
			lookup.ipv6_src[word] = hop->source.words[word];
			lookup.ipv6_dst[word] = hop->dest.words[word];
		}
	}
	hop->stamp = 0;
	if (bpf_fib_lookup(xdp, &lookup, sizeof(lookup), flags) != BPF_FIB_LKUP_RET_SUCCESS)
		return 0;
	hop->ifindex = lookup.ifindex;
	__builtin_memcpy(hop->dest_mac, lookup.dmac, sizeof(hop->dest_mac));
	__builtin_memcpy(hop->source_mac, lookup.smac, sizeof(hop->source_mac));
	hop->stamp = packet->stamp;
	return 1;
}

/* The way to a node is the same for all that is sent there. 0: it is not known. */
static __always_inline struct recent_hop *hop_recall(struct xdp_md *xdp, const struct packet *packet,
						     const struct address *node)
{
	struct address source = {}, dest = node ? *node : packet->dest;
	__u32 place = address_place(&dest);
	struct recent_hop *hop = bpf_map_lookup_elem(&recent_hops, &place);

	if (!hop)
		return 0;
	if (!node)
		source = packet->source;
	if (stamp_counts(packet, hop->stamp) && address_equal(&dest, &hop->dest) && address_equal(&source, &hop->source))
		return hop;
	hop->source = source;
	hop->dest = dest;
	return hop_ask(xdp, packet, hop) ? hop : 0;
}

/*
 * Where nodeport_send() would send it, out of the device that it came in by. 1: the next hop is known, and the packet
 * was for this device.
 */
static __always_inline int next_hop_find(struct xdp_md *xdp, const struct packet *packet, struct xdp_way *way)
{
	struct ipcache_row *remote = ipcache_recall(packet, &packet->dest);
	struct ethhdr *header = xdp_data(xdp);
	struct recent_hop *hop;

	if (!remote || !(remote->flags & IPCACHE_REMOTE_ENDPOINT))
		hop = hop_recall(xdp, packet, 0);
	else if (remote->flags & IPCACHE_TUNNEL || address_is_zero(&remote->node))
		return 0;
	else
		hop = hop_recall(xdp, packet, &remote->node);
	if (!hop || hop->ifindex != config_underlay_ifindex || (void *)(header + 1) > xdp_data_end(xdp) ||
	    !is_same_mac(header->h_dest, hop->source_mac))
		return 0;
	__builtin_memcpy(way->dest_mac, hop->dest_mac, sizeof(way->dest_mac));
	__builtin_memcpy(way->source_mac, hop->source_mac, sizeof(way->source_mac));
	return 1;
}

/* The same as a step of its own, which takes less of the caller's stack. */
static __noinline int next_hop_step(struct xdp_md *xdp, const struct packet *packet, struct xdp_way *way)
{
	return next_hop_find(xdp, packet, way);
}

/* Written and sent back by the device. */
static __always_inline int send_back(struct xdp_md *xdp, const struct packet *packet, const struct xdp_way *way)
{
	if (!xdp_write(xdp, packet, way))
		return XDP_ABORTED;
	count(FORWARDED, packet->traffic_direction, (__u32)(xdp_data_end(xdp) - xdp_data(xdp)));
	return XDP_TX;
}

/* The same as a step of its own, which takes less of the caller's stack. */
static __noinline int transmit(struct xdp_md *xdp, const struct packet *packet, const struct xdp_way *way)
{
	return send_back(xdp, packet, way);
}

/* To the backend packet->dest, in this node's name. 0: there is no port left, as from_network will tell. */
static __always_inline int ends_set(struct packet *packet, struct xdp_way *way)
{
	if (!nat_recall(packet, &way->source) && nat_outbound(packet, &way->source))
		return 0;
	packet->masquerade_port = way->source.port;
	way->dest.address = packet->dest;
	way->dest.port = packet->dest_port;
	return 1;
}

static __noinline int accelerate_new(struct xdp_md *xdp, struct packet *packet, struct __sk_buff *skb,
				     const struct tracking *tracking)
{
	struct address_port frontend = {.address = packet->dest, .port = packet->dest_port};
	struct xdp_way way = {};
	int outcome = service_translate(packet, SERVICE_SCOPE_EXTERNAL);

	if (outcome <= 0 || endpoint_recall(packet, &packet->dest))
		return XDP_PASS;
	nodeport_method(packet, outcome);
	if (packet->dsr || !next_hop_step(xdp, packet, &way) ||
	    conntrack_create_service(skb, packet, tracking, &frontend, 0))
		return XDP_PASS;
	return ends_set(packet, &way) ? transmit(xdp, packet, &way) : XDP_PASS;
}

static __noinline int accelerate_established(struct xdp_md *xdp, struct packet *packet, struct __sk_buff *skb,
					     struct conntrack_row *entry)
{
	struct xdp_way way = {};

	packet->dest = entry->translated;
	packet->dest_port = entry->translated_port;
	if (!(entry->flags & CONNTRACK_MASQUERADED) || endpoint_recall(packet, &packet->dest) || !next_hop_find(xdp, packet, &way))
		return XDP_PASS;
	packet->masquerade = MASQUERADE_CLIENT;
	packet->masquerade_port = entry->masquerade_port;
	conntrack_keep(skb, packet, entry, 0);
	if (!ends_set(packet, &way))
		return XDP_PASS;
	conntrack_port_keep(packet, entry);
	return send_back(xdp, packet, &way);
}

/* To the client whose port of this node it was sent to. */
static __noinline int accelerate_answer(struct xdp_md *xdp, struct packet *packet, struct __sk_buff *skb,
					const struct nat_row *client)
{
	struct tracking tracking = {};
	struct conntrack_row *entry;
	struct xdp_way way = {};

	packet->dest = client->address;
	packet->dest_port = client->port;
	if (endpoint_recall(packet, &packet->dest))
		return XDP_PASS;
	entry = conntrack_find(packet, &tracking);
	if (!entry || !tracking.is_reply || !(entry->flags & CONNTRACK_REVERSE_DNAT))
		return XDP_PASS;
	packet->source = entry->translated;
	if (!next_hop_find(xdp, packet, &way))
		return XDP_PASS;
	conntrack_keep(skb, packet, entry, 1);
	way.source.address = packet->source;
	way.source.port = entry->translated_port;
	way.dest.address = packet->dest;
	way.dest.port = packet->dest_port;
	return transmit(xdp, packet, &way);
}

/* The end of a flow that left in this node's name, if the packet answers one; packet->dest is this node. */
static __noinline struct nat_row *answered_find(const struct packet *packet)
{
	struct nat_key key = {
		.near = packet->dest,
		.far = packet->source,
		.near_port = packet->dest_port,
		.far_port = packet->source_port,
		.protocol = packet->protocol,
		.direction = NAT_INBOUND,
	};

	return bpf_map_lookup_elem(&nat, &key);
}

static __always_inline struct nat_row *answered(const struct packet *packet)
{
	/* A new connection is none of ours, whatever its ports; nor is what comes to a port that nobody is given. */
	if (is_tcp_start(packet) ||
	    bpf_ntohs(packet->dest_port) - config_masquerade_port_first >= config_masquerade_port_count)
		return 0;
	return answered_find(packet);
}

static __always_inline int is_to_node(const struct packet *packet)
{
	const volatile struct address *node = packet->family == 4 ? &config_node_ipv4 : &config_node_ipv6;

	for (int word = 3; word >= 0; word--)
		if (packet->dest.words[word] != node->words[word])
			return 0;
	return 1;
}

static __always_inline int accelerate(struct xdp_md *xdp, struct packet *packet)
{
	struct tracking tracking = {};
	struct conntrack_row *entry;
	struct xdp_frame frame;
	struct __sk_buff *skb = xdp_skb(xdp, &frame);
	struct nat_row *client;

	if (!xdp_parse(xdp, packet))
		return XDP_PASS;
	packet_begin(packet);
	if (is_to_node(packet)) {
		client = answered(packet);
		if (client)
			return accelerate_answer(xdp, packet, skb, client);
	} else if (local_endpoint(packet)) {
		return XDP_PASS;
	}
	entry = conntrack_find(packet, &tracking);
	if (!entry)
		return accelerate_new(xdp, packet, skb, &tracking);
	if (tracking.is_reply || !(entry->flags & CONNTRACK_DNAT))
		return XDP_PASS;
	return accelerate_established(xdp, packet, skb, entry);
}

/* The underlay device itself. */
SEC("xdp")
int xdp_from_network(struct xdp_md *xdp)
{
	struct packet *packet = packet_in(TRAFFIC_INGRESS, POLICY_INGRESS);

	return packet ? accelerate(xdp, packet) : XDP_PASS;
}

char program_license[] SEC("license") = "Dual BSD/GPL";
