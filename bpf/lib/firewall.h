/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The node's own traffic on the underlay and tunnel devices, where host policies are in force: conntrack and policy, as for an
 * endpoint whose identity is IDENTITY_HOST. Judged is what is sent from or to an address of this node; what merely
 * passes through is not. Neighbour discovery, and what is for many, is the link's.
 */
#ifndef MESHLOG_LIB_FIREWALL_H
#define MESHLOG_LIB_FIREWALL_H

#include "conntrack.h"
#include "inbound.h"
#include "ipcache.h"
#include "masquerade.h"
#include "packet.h"
#include "parse.h"
#include "policy.h"
#include "related.h"

/* Whether an address is this node's; on the link it has addresses that no row knows. */
static __always_inline int is_of_host(const struct packet *packet, const struct address *address)
{
	struct endpoint_row *row;

	if (packet->family == 6 && (bpf_ntohl(address->words[0]) & 0xffc00000) == 0xfe800000)
		return 1;
	row = endpoint_find(address);
	return row && row->flags & ENDPOINT_HOST;
}

enum initiator { INITIATOR_UNKNOWN = 0, INITIATOR_HOST = 1, INITIATOR_FAR = 2 };

static __always_inline struct bpf_sock *socket_find(struct __sk_buff *skb, __u8 protocol, struct bpf_sock_tuple *tuple,
						    __u32 bytes)
{
	if (protocol == IPPROTO_TCP)
		return bpf_skc_lookup_tcp(skb, tuple, bytes, BPF_F_CURRENT_NETNS, 0);
	return bpf_sk_lookup_udp(skb, tuple, bytes, BPF_F_CURRENT_NETNS, 0);
}

/* Whether a socket that has the whole tuple, or one that takes from anyone. */
static __always_inline int socket_is(struct __sk_buff *skb, __u8 protocol, struct bpf_sock_tuple *tuple, __u32 bytes,
				     int is_open_to_all)
{
	struct bpf_sock *socket = socket_find(skb, protocol, tuple, bytes);
	__u32 state;

	if (!socket)
		return 0;
	state = socket->state;
	bpf_sk_release(socket);
	if (protocol == IPPROTO_TCP)
		return (state == BPF_TCP_LISTEN) == is_open_to_all;
	return (state != BPF_TCP_ESTABLISHED) == is_open_to_all;
}

/*
 * Who began a connection whose beginning no program has seen, since the firewall was off then, or the entry was
 * evicted. The node's sockets know: where one listens at the port, the far end connected to it.
 */
STEP socket_initiator(struct __sk_buff *skb, const struct packet *packet)
{
	struct bpf_sock_tuple tuple = {};
	const struct address *own, *far;
	__be16 own_port, far_port;
	__u32 bytes;

	if (!packet || (packet->protocol != IPPROTO_TCP && packet->protocol != IPPROTO_UDP))
		return INITIATOR_UNKNOWN;
	own = packet->dest_side == SIDE_HOST ? &packet->dest : &packet->source;
	far = packet->dest_side == SIDE_HOST ? &packet->source : &packet->dest;
	own_port = packet->dest_side == SIDE_HOST ? packet->dest_port : packet->source_port;
	far_port = packet->dest_side == SIDE_HOST ? packet->source_port : packet->dest_port;
	if (packet->family == 4) {
		bytes = sizeof(tuple.ipv4);
		tuple.ipv4.saddr = far->words[3];
		tuple.ipv4.daddr = own->words[3];
		tuple.ipv4.sport = far_port;
		tuple.ipv4.dport = own_port;
	} else {
		bytes = sizeof(tuple.ipv6);
		for (int word = 0; word < 4; word++) {
			tuple.ipv6.saddr[word] = far->words[word];
			tuple.ipv6.daddr[word] = own->words[word];
		}
		tuple.ipv6.sport = far_port;
		tuple.ipv6.dport = own_port;
	}
	if (!socket_is(skb, packet->protocol, &tuple, bytes, 0))
		return INITIATOR_UNKNOWN;
	if (packet->family == 4)
		tuple.ipv4.sport = 0;
	else
		tuple.ipv6.sport = 0;
	return socket_is(skb, packet->protocol, &tuple, bytes, 1) ? INITIATOR_FAR : INITIATOR_HOST;
}

/* A flow without an entry. 0, or a drop. */
static __always_inline int firewall_new(struct __sk_buff *skb, struct packet *packet, struct tracking *tracking)
{
	int result, initiator = INITIATOR_UNKNOWN;

	if (is_related_error(skb, packet, 0))
		return 0;
	if (!is_tcp_start(packet))
		initiator = socket_initiator(skb, packet);
	if (initiator == (packet->dest_side == SIDE_HOST ? INITIATOR_HOST : INITIATOR_FAR)) {
		tracking->source_is_high = !tracking->source_is_high;
		packet_turn(packet);
	}
	result = policy_judge_flow(skb, packet, 1);
	if (result)
		return result;
	return conntrack_create(skb, packet, tracking);
}

/* Conntrack and policy of a packet that is sent to or from this node: packet->source_side or dest_side says which.
 * 0, or a drop. */
static __always_inline int firewall_admit(struct __sk_buff *skb, struct packet *packet)
{
	struct tracking tracking = {};
	struct conntrack_row *entry = conntrack_find(packet, &tracking);
	int result;

	if (!entry)
		return firewall_new(skb, packet, &tracking);
	if (entry->policy_epoch != packet->policy_epoch) {
		result = tracking.is_reply ? policy_judge_reply(skb, packet) : policy_judge_flow(skb, packet, 0);
		if (result) {
			conntrack_delete(packet, &tracking, entry);
			return result;
		}
		conntrack_confirm(packet, entry);
	}
	return conntrack_keep(skb, packet, entry, tracking.is_reply);
}

enum { FIREWALL_UNCONCERNED = 1 };

/* `parsed`: what parse_l3() said. 0: judge it; FIREWALL_UNCONCERNED: it passes; or a drop. */
static __always_inline int firewall_parse(struct __sk_buff *skb, struct packet *packet, int parsed)
{
	int result;

	if (parsed)
		return parsed;
	/* The first fragment has the ports, and is judged; without it the others come to nothing. */
	if (packet->fragment == FRAGMENT_LATER || is_link_control(skb, packet))
		return FIREWALL_UNCONCERNED;
	result = parse_l4(skb, packet);
	/* Protocols without ports are judged by their number. */
	return result == -CT_UNKNOWN_L4_PROTOCOL ? 0 : result;
}

/* For programs that are not exchanged when host policies come into force. */
static __always_inline int firewall_is_up(void)
{
	struct policy_subject_key key = {.identity = IDENTITY_HOST};

	return !!bpf_map_lookup_elem(&policy_subjects, &key);
}

/* From elsewhere to this node itself; packet->source_identity is known. 0, or a drop. */
static __always_inline int firewall_in(struct __sk_buff *skb, struct packet *packet, int parsed)
{
	int result = firewall_parse(skb, packet, parsed);

	if (result)
		return result < 0 ? result : 0;
	/* Nobody on the network is this node. */
	if (packet->source_identity == IDENTITY_HOST)
		return DROP(packet, FILE_HOST, INVALID_SOURCE_IP);
	packet->dest_side = SIDE_HOST;
	packet->dest_identity = IDENTITY_HOST;
	return firewall_admit(skb, packet);
}

/* From this node itself to elsewhere, parsed; packet->dest_identity is known. 0, or a drop. */
static __always_inline int firewall_out(struct __sk_buff *skb, struct packet *packet)
{
	packet->source_side = SIDE_HOST;
	packet->source_identity = IDENTITY_HOST;
	return firewall_admit(skb, packet);
}

#endif /* MESHLOG_LIB_FIREWALL_H */
