/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Endpoints leave the mesh with the node's address, and answers find their way back. What is masqueraded is decided
 * once per flow and stands in its conntrack entry. The port is found by probing from a hash of the flow, so that
 * a flow whose entries were evicted finds its old port again.
 */
#ifndef MESHLOG_LIB_MASQUERADE_H
#define MESHLOG_LIB_MASQUERADE_H

#include "../config.h"
#include "conntrack.h"
#include "forward.h"
#include "ipcache.h"
#include "nat.h"
#include "packet.h"
#include "quote.h"
#include "related.h"
#include "service.h"

#define MASQUERADE_PROBES 64
#define MASQUERADE_STRIDE 7919 /* a prime: probes of neighbouring hashes part ways */

static __always_inline void masquerade_address(__u8 family, struct address *address)
{
	address_from_config(address, family == 4 ? &config_masquerade_ipv4 : &config_masquerade_ipv6);
}

static __always_inline void nat_key_set(struct nat_key *key, const struct packet *packet, __u8 direction)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->near = packet->source;
	key->far = packet->dest;
	key->near_port = packet->source_port;
	key->far_port = packet->dest_port;
	key->protocol = packet->protocol;
	key->direction = direction;
}

static __always_inline int is_in_prefix(const struct address *address, const volatile struct ipcache_key *prefix)
{
	int bits = (int)prefix->prefix_length;

	for (int word = 0; word < 4; word++, bits -= 32) {
		__u32 mask = bits >= 32 ? ~0u : bits <= 0 ? 0 : ~0u << (32 - bits);

		if ((bpf_ntohl(address->words[word]) ^ bpf_ntohl(prefix->address.words[word])) & mask)
			return 0;
	}
	return 1;
}

/* What the host's routes send to a node is in a block of the mesh: an endpoint may just have got that address. */
static __always_inline int next_hop_is_node(const struct bpf_fib_lookup *lookup)
{
	struct address next_hop;

	if (lookup->family == ADDRESS_FAMILY_IPV4)
		address_from_ipv4(&next_hop, lookup->ipv4_dst);
	else
		for (int word = 0; word < 4; word++)
			next_hop.words[word] = lookup->ipv6_dst[word];
	return identity_is_other_node(ipcache_identity(&next_hop));
}

/* Whether the host's routes lead out of the underlay device, and out of the mesh. What leaves by another one, or goes
 * no further than this node, is the host stack's. */
static __always_inline int leaves_the_mesh(struct __sk_buff *skb, const struct packet *packet)
{
	struct bpf_fib_lookup lookup = {};
	long result;

	route_question(&lookup, packet, skb->ifindex);
	result = bpf_fib_lookup(skb, &lookup, sizeof(lookup), 0);
	return (result == BPF_FIB_LKUP_RET_SUCCESS || result == BPF_FIB_LKUP_RET_NO_NEIGH) &&
	       lookup.ifindex == config_underlay_ifindex && !next_hop_is_node(&lookup);
}

/* Whether an ICMP error is about a masqueraded flow, whose way it then goes. */
STEP masquerade_wants_error(struct __sk_buff *skb, const struct packet *packet)
{
	struct packet *quoted = scratch_packet(SCRATCH_QUOTE);
	struct nat_key key;

	if (!packet || !quoted || !quote_read(skb, packet, quoted))
		return 0;
	packet_turn(quoted);
	nat_key_set(&key, quoted, NAT_OUTBOUND);
	return !!bpf_map_lookup_elem(&nat, &key);
}

/* Groups and broadcast: the default route would take them for one machine. */
static __always_inline int is_for_many(const struct packet *packet)
{
	if (packet->family == 4)
		return bpf_ntohl(packet->dest.words[3]) >= 0xe0000000;
	return address_is_link_local_or_multicast(&packet->dest);
}

/* A new flow to a destination that is no endpoint and no node: 1 if the node's address is to be its source. */
STEP masquerade_wants(struct __sk_buff *skb, struct packet *packet)
{
	struct address node;

	if (!packet)
		return 0;
	masquerade_address(packet->family, &node);
	if (address_is_zero(&node) || is_for_many(packet))
		return 0;
	if (is_icmp(packet->protocol) && !is_echo_request(packet))
		return 0;
	for (__u32 i = 0; i < UNMASQUERADED_MAX && i < config_unmasqueraded_count; i++)
		if (is_in_prefix(&packet->dest, &config_unmasqueraded[i]))
			return 0;
	return leaves_the_mesh(skb, packet);
}

/* Whether the flow that holds a port has ended without its entries having been collected yet. */
STEP nat_holder_is_gone(const struct nat_key *key, const struct address_port *holder, __u64 now)
{
	struct conntrack_key flow;
	struct conntrack_row *entry;
	struct address own;

	if (!key || !holder)
		return 0;
	own = holder->address;
	conntrack_key_set(&flow, key->protocol, &own, holder->port, &key->far, key->far_port);
	entry = bpf_map_lookup_elem(&conntrack, &flow);
	return !entry || entry->expires_ns <= now;
}

/* Takes the port in `key`, an INBOUND one. 1: it is this flow's now, or was already. */
static __always_inline int nat_take(const struct nat_key *key, const struct address_port *own, __u64 now)
{
	struct address_port *holder;

	if (!bpf_map_update_elem(&nat, key, own, BPF_NOEXIST))
		return 1;
	holder = bpf_map_lookup_elem(&nat, key);
	if (!holder)
		return 0;
	if (holder->port == own->port && address_equal(&holder->address, &own->address))
		return 1;
	return nat_holder_is_gone(key, holder, now) && !bpf_map_update_elem(&nat, key, own, BPF_ANY);
}

/* Finds a port for the flow of the packet. 0, or a drop. */
STEP nat_allocate(struct packet *packet, struct address_port *row)
{
	struct address_port own = {};
	struct nat_key key;
	__u32 start;

	if (!packet || !row)
		return 0;
	own.address = packet->source;
	own.port = packet->source_port;
	nat_key_set(&key, packet, NAT_INBOUND);
	if (packet->masquerade == MASQUERADE_CLIENT)
		node_address(packet->family, &key.near);
	else
		masquerade_address(packet->family, &key.near);
	/* Turned off since the flow began. */
	if (address_is_zero(&key.near))
		return DROP(packet, FILE_MASQUERADE, NO_MAPPING_FOR_NAT_MASQUERADE);
	start = tuple_hash(packet);
	for (__u32 probe = 0; probe < MASQUERADE_PROBES; probe++) {
		__u32 number = (start + probe * MASQUERADE_STRIDE) % config_masquerade_port_count;

		key.near_port = bpf_htons((__u16)(config_masquerade_port_first + number));
		if (nat_take(&key, &own, packet->now)) {
			row->address = key.near;
			row->port = key.near_port;
			return 0;
		}
	}
	return DROP(packet, FILE_MASQUERADE, NO_MAPPING_FOR_NAT_MASQUERADE);
}

/* Whether the port that the flow of a service's client is said to have is its own: the entry may have been evicted, and
 * taken by another. */
static __always_inline int nat_recall(const struct packet *packet, struct address_port *row)
{
	struct address_port *held;
	struct nat_key key;

	if (packet->masquerade != MASQUERADE_CLIENT || !packet->masquerade_port)
		return 0;
	nat_key_set(&key, packet, NAT_INBOUND);
	node_address(packet->family, &key.near);
	key.near_port = packet->masquerade_port;
	held = bpf_map_lookup_elem(&nat, &key);
	if (!held || held->port != packet->source_port || !address_equal(&held->address, &packet->source))
		return 0;
	row->address = key.near;
	row->port = key.near_port;
	return 1;
}

/* The node's end of the packet's flow. 0, or a drop. */
STEP nat_outbound(struct packet *packet, struct address_port *row)
{
	struct address_port *held;
	struct nat_key key;
	int result;

	if (!packet || !row || nat_recall(packet, row))
		return 0;
	nat_key_set(&key, packet, NAT_OUTBOUND);
	held = bpf_map_lookup_elem(&nat, &key);
	if (held) {
		*row = *held;
		key.near = row->address;
		key.near_port = row->port;
		key.direction = NAT_INBOUND;
		held = bpf_map_lookup_elem(&nat, &key);
		if (held && held->port == packet->source_port && address_equal(&held->address, &packet->source))
			return 0;
	}
	result = nat_allocate(packet, row);
	if (result)
		return result;
	nat_key_set(&key, packet, NAT_OUTBOUND);
	if (bpf_map_update_elem(&nat, &key, row, BPF_ANY))
		return DROP(packet, FILE_MASQUERADE, NO_MAPPING_FOR_NAT_MASQUERADE);
	return 0;
}

STEP masquerade_error(struct __sk_buff *skb, struct packet *packet)
{
	struct address_port near = {}, node = {};
	struct packet *quoted = scratch_packet(SCRATCH_QUOTE);
	struct nat_key key;
	struct address_port *row;
	int result;

	if (!packet || !quoted || !quote_read(skb, packet, quoted))
		return 0;
	packet_turn(quoted);
	nat_key_set(&key, quoted, NAT_OUTBOUND);
	row = bpf_map_lookup_elem(&nat, &key);
	if (!row)
		return DROP(packet, FILE_MASQUERADE, NO_MAPPING_FOR_NAT_MASQUERADE);
	near.address = quoted->source;
	near.port = quoted->source_port;
	node.address = row->address;
	node.port = row->port;
	result = quote_rewrite(skb, packet, quote_place(quoted, NAT_DEST), &near, &node);
	if (result)
		return result;
	near.address = packet->source;
	near.port = node.port = 0;
	return nat_rewrite(skb, packet, NAT_SOURCE, &near, &node);
}

/* Rewrites the source. 0, or a drop. */
STEP masquerade_source(struct __sk_buff *skb, struct packet *packet)
{
	struct address_port own = {}, node = {};
	int result;

	if (!packet)
		return 0;
	result = nat_outbound(packet, &node);
	if (result)
		return result;
	packet->masquerade_port = node.port;
	own.address = packet->source;
	own.port = packet->source_port;
	return nat_rewrite(skb, packet, NAT_SOURCE, &own, &node);
}

static __always_inline int has_ports(__u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP;
}

/* Out of the underlay device, to whatever next hop the host's routes name. */
static __always_inline int masquerade(struct __sk_buff *skb, struct packet *packet)
{
	int result;

	/* The host stack tells the endpoint that its packet came to an end here. */
	if (ttl_is_last(skb, packet))
		return TC_ACT_OK;
	if (!has_ports(packet->protocol) && !is_icmp(packet->protocol))
		return DROP(packet, FILE_MASQUERADE, UNSUPPORTED_PROTOCOL_FOR_NAT_MASQUERADE);
	result = is_icmp_error(packet) ? masquerade_error(skb, packet) : masquerade_source(skb, packet);
	if (result)
		return result;
	result = ttl_decrement(skb, packet);
	if (result)
		return result;
	return (int)bpf_redirect_neigh(config_underlay_ifindex, 0, 0, 0);
}

/* An endpoint of this node, or the client of a service whose flow goes on. */
STEP nat_holder_is_known(const struct nat_key *key, const struct address_port *holder)
{
	struct conntrack_key flow;
	struct conntrack_row *entry;
	struct address own;

	if (!key || !holder)
		return 0;
	own = holder->address;
	if (endpoint_find(&own))
		return 1;
	conntrack_key_set(&flow, key->protocol, &own, holder->port, &key->far, key->far_port);
	entry = bpf_map_lookup_elem(&conntrack, &flow);
	return entry && entry->flags & CONNTRACK_REVERSE_DNAT;
}

/* An error about a masqueraded flow, sent to this node. 1: it is for who has the flow now; 0: it is not about one. */
STEP unmasquerade_error(struct __sk_buff *skb, struct packet *packet)
{
	struct address_port node = {}, near = {};
	struct packet *quoted = scratch_packet(SCRATCH_QUOTE);
	struct nat_key key;
	struct address_port *row;
	int result;

	if (!packet || !quoted || !quote_read(skb, packet, quoted) || !address_equal(&quoted->source, &packet->dest))
		return 0;
	nat_key_set(&key, quoted, NAT_INBOUND);
	row = bpf_map_lookup_elem(&nat, &key);
	if (!row || !nat_holder_is_known(&key, row))
		return 0;
	near.address = row->address;
	near.port = row->port;
	node.address = packet->dest;
	node.port = quoted->source_port;
	result = quote_rewrite(skb, packet, quote_place(quoted, NAT_SOURCE), &node, &near);
	if (result)
		return result;
	near.port = node.port = 0;
	packet->dest = near.address;
	result = nat_rewrite(skb, packet, NAT_DEST, &node, &near);
	return result ? result : 1;
}

/* A packet to this node's own address, no ICMP error. 1: an answer to a masqueraded flow, whose destination is the endpoint now;
 * 0: the node's own; or a drop. */
STEP unmasquerade(struct __sk_buff *skb, struct packet *packet)
{
	struct address_port node = {}, near = {};
	struct nat_key key = {};
	struct address_port *row;
	int result;

	if (!packet)
		return 0;
	/* A new connection is none of ours, whatever its ports. */
	if (is_tcp_start(packet))
		return 0;
	key.near = packet->dest;
	key.far = packet->source;
	key.near_port = packet->dest_port;
	key.far_port = packet->source_port;
	key.protocol = packet->protocol;
	key.direction = NAT_INBOUND;
	row = bpf_map_lookup_elem(&nat, &key);
	if (!row || !nat_holder_is_known(&key, row))
		return 0;
	node.address = packet->dest;
	node.port = packet->dest_port;
	near.address = row->address;
	near.port = row->port;
	packet->dest = near.address;
	packet->dest_port = near.port;
	result = nat_rewrite(skb, packet, NAT_DEST, &node, &near);
	return result ? result : 1;
}

/* Whether a packet with the node's address as its source is an endpoint's, on its way out. */
STEP is_masqueraded(struct __sk_buff *skb, const struct packet *packet)
{
	struct packet *quoted = scratch_packet(SCRATCH_QUOTE);
	struct nat_key key;

	if (!packet)
		return 0;
	if (!is_icmp_error(packet)) {
		nat_key_set(&key, packet, NAT_INBOUND);
		return !!bpf_map_lookup_elem(&nat, &key);
	}
	if (!quoted || !quote_read(skb, packet, quoted))
		return 0;
	packet_turn(quoted);
	nat_key_set(&key, quoted, NAT_INBOUND);
	return !!bpf_map_lookup_elem(&nat, &key);
}

#endif /* MESHLOG_LIB_MASQUERADE_H */
