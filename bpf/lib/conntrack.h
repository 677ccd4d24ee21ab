/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Tracked flows: find the entry of a packet, keep it, create it, delete it. What it means stands in abi.h. */
#ifndef MESHLOG_LIB_CONNTRACK_H
#define MESHLOG_LIB_CONNTRACK_H

#include "../config.h"
#include "../maps.h"
#include "packet.h"
#include "parse.h"

#define CONNTRACK_SERVICE (CONNTRACK_DNAT | CONNTRACK_REVERSE_DNAT)
#define CONNTRACK_ENDING (CONNTRACK_CLOSING_FORWARD | CONNTRACK_CLOSING_REPLY | CONNTRACK_RESET)
#define CONNTRACK_CLOSED (CONNTRACK_CLOSING_FORWARD | CONNTRACK_CLOSING_REPLY)

/* A packet's place among the flows. */
struct tracking {
	struct conntrack_key key;
	__u32 source_is_high;
	__u32 is_reply;
} __attribute__((aligned(8)));

static __always_inline int end_is_high(const struct address *end, __be16 port, const struct address *other,
				       __be16 other_port)
{
	for (int word = 0; word < 4; word++)
		if (end->words[word] != other->words[word])
			return bpf_ntohl(end->words[word]) > bpf_ntohl(other->words[word]);
	return bpf_ntohs(port) > bpf_ntohs(other_port);
}

/* The canonical key of a tuple. True: `end` is its high end. */
static __always_inline int conntrack_key_set(struct conntrack_key *key, __u8 protocol,
					     const struct address *end, __be16 port,
					     const struct address *other, __be16 other_port)
{
	int is_high = end_is_high(end, port, other, other_port);

	key->low = is_high ? *other : *end;
	key->high = is_high ? *end : *other;
	key->low_port = is_high ? other_port : port;
	key->high_port = is_high ? port : other_port;
	key->protocol = protocol;
	key->reserved[0] = key->reserved[1] = key->reserved[2] = 0;
	return is_high;
}

static __always_inline int is_tcp_start(const struct packet *packet)
{
	return packet->protocol == IPPROTO_TCP &&
	       (packet->tcp_flags & (TCP_FLAG_BYTE_SYN | TCP_FLAG_BYTE_ACK)) == TCP_FLAG_BYTE_SYN;
}

/* The key that the packet's own tuple gives. */
EVERY_STEP conntrack_key_of(const struct packet *packet, struct tracking *tracking)
{
	if (!packet || !tracking)
		return 0;
	tracking->is_reply = 0;
	tracking->source_is_high = (__u32)conntrack_key_set(&tracking->key, packet->protocol, &packet->source,
							    packet->source_port, &packet->dest, packet->dest_port);
	return 0;
}

/* A request goes with its flow and an answer against it; no other message is of a flow, whatever its id. */
static __always_inline int icmp_belongs(const struct packet *packet, __u32 is_reply)
{
	__u8 reply = packet->protocol == IPPROTO_ICMP ? ICMP_ECHO_REPLY : ICMPV6_ECHO_REPLY;

	return is_reply ? packet->icmp_type == reply : is_echo_request(packet);
}

/* Fills `tracking`; 0: a new flow. An entry that has expired, or that this packet cannot belong to, is
 * none. */
static __always_inline struct conntrack_row *conntrack_find(const struct packet *packet,
							    struct tracking *tracking)
{
	struct conntrack_row *entry;

	conntrack_key_of(packet, tracking);
	entry = bpf_map_lookup_elem(&conntrack, &tracking->key);
	if (!entry || entry->expires_ns <= packet->now)
		return 0;
	tracking->is_reply = tracking->source_is_high != !!(entry->flags & CONNTRACK_INITIATOR_HIGH);
	/* The end that answered begins a connection of its own, or the ports are used again: the old verdict does
	 * not cover it. */
	if (is_tcp_start(packet) && (tracking->is_reply || entry->flags & CONNTRACK_ENDING)) {
		tracking->is_reply = 0;
		return 0;
	}
	if (is_icmp(packet->protocol) && !icmp_belongs(packet, tracking->is_reply)) {
		tracking->is_reply = 0;
		return 0;
	}
	return entry;
}

static __always_inline __u64 conntrack_lifetime_ns(__u8 protocol, __u16 flags, __u8 forward_tcp_flags)
{
	if (protocol != IPPROTO_TCP)
		return config_conntrack_other_s * NS_PER_S;
	if (flags & CONNTRACK_RESET || (flags & CONNTRACK_CLOSED) == CONNTRACK_CLOSED)
		return config_conntrack_closing_s * NS_PER_S;
	/* Until the initiator acknowledges, anyone could have sent its first packet. */
	if (!(forward_tcp_flags & TCP_FLAG_BYTE_ACK))
		return config_conntrack_syn_s * NS_PER_S;
	return config_conntrack_tcp_s * NS_PER_S;
}

static __always_inline __u16 closing_flags(const struct packet *packet, int is_reply)
{
	__u16 flags = 0;

	if (packet->tcp_flags & TCP_FLAG_BYTE_FIN)
		flags |= is_reply ? CONNTRACK_CLOSING_REPLY : CONNTRACK_CLOSING_FORWARD;
	if (packet->tcp_flags & TCP_FLAG_BYTE_RST)
		flags |= CONNTRACK_RESET;
	return flags;
}

static __always_inline void hairpin_address(__u8 family, struct address *address)
{
	address_from_config(address, family == 4 ? &config_hairpin_ipv4 : &config_hairpin_ipv6);
}

/* Nobody but a program of ours may have sent a packet from that address. */
static __always_inline int source_is_hairpin(const struct packet *packet)
{
	const volatile struct address *hairpin = packet->family == 4 ? &config_hairpin_ipv4 : &config_hairpin_ipv6;

	for (int word = 3; word >= 0; word--)
		if (packet->source.words[word] != hairpin->words[word])
			return 0;
	return 1;
}

/* The key of a service flow's other entry: the end that was translated, as the other entry knows it. */
static __always_inline void conntrack_twin_key(const struct packet *packet, const struct conntrack_row *entry,
					       const struct address *client, __be16 client_port,
					       struct conntrack_key *key)
{
	struct address translated = entry->translated;

	conntrack_key_set(key, packet->protocol, client, client_port, &translated, entry->translated_port);
}

/* The twin sees only the other direction, so what this one learns about the flow's life is told to it. */
STEP conntrack_tell_twin(const struct packet *packet, const struct conntrack_row *entry, __u32 is_reply)
{
	struct conntrack_row *twin;
	struct conntrack_key key;
	struct address client;

	if (!packet || !entry)
		return 0;
	client = is_reply ? packet->dest : packet->source;
	if (entry->flags & CONNTRACK_HAIRPIN && is_reply)
		client = packet->source;
	else if (entry->flags & CONNTRACK_HAIRPIN)
		hairpin_address(packet->family, &client);
	conntrack_twin_key(packet, entry, &client, is_reply ? packet->dest_port : packet->source_port, &key);
	twin = bpf_map_lookup_elem(&conntrack, &key);
	if (!twin || !(twin->flags & CONNTRACK_SERVICE))
		return 0;
	twin->flags |= entry->flags & (CONNTRACK_ENDING | CONNTRACK_SEEN_REPLY);
	twin->forward_tcp_flags |= entry->forward_tcp_flags;
	twin->reply_tcp_flags |= entry->reply_tcp_flags;
	twin->expires_ns = entry->expires_ns;
	return 0;
}

/* Counts the packet and prolongs the entry's life. */
EVERY_STEP conntrack_keep(struct __sk_buff *skb, const struct packet *packet, struct conntrack_row *entry,
			  __u32 is_reply)
{
	__u64 lifetime_ns, remaining_ns;
	__u16 flags;

	if (!packet || !entry)
		return 0;
	flags = closing_flags(packet, (int)is_reply);
	/* Nobody will tell here that the other side has ended. */
	if (entry->flags & CONNTRACK_DSR && flags & CONNTRACK_CLOSING_FORWARD)
		flags |= CONNTRACK_CLOSING_REPLY;
	if (is_reply) {
		__sync_fetch_and_add(&entry->reply_packets, 1);
		__sync_fetch_and_add(&entry->reply_bytes, skb->len);
		entry->reply_tcp_flags |= packet->tcp_flags;
		flags |= CONNTRACK_SEEN_REPLY;
	} else {
		__sync_fetch_and_add(&entry->forward_packets, 1);
		__sync_fetch_and_add(&entry->forward_bytes, skb->len);
		entry->forward_tcp_flags |= packet->tcp_flags;
	}
	flags |= entry->flags;
	lifetime_ns = conntrack_lifetime_ns(packet->protocol, flags, entry->forward_tcp_flags);
	remaining_ns = entry->expires_ns - packet->now;
	entry->expires_ns = packet->now + lifetime_ns;
	if (flags & CONNTRACK_SERVICE && (flags != entry->flags || remaining_ns < lifetime_ns / 2)) {
		entry->flags = flags;
		conntrack_tell_twin(packet, entry, is_reply);
	} else if (flags != entry->flags) {
		entry->flags = flags;
	}
	return 0;
}

/* What masquerading has found, for the flow's next packet. */
static __always_inline void conntrack_port_keep(const struct packet *packet, struct conntrack_row *entry)
{
	if (entry->masquerade_port != packet->masquerade_port)
		entry->masquerade_port = packet->masquerade_port;
}

/* Only a request opens an ICMP flow; an answer or an error without one leaves no trace. */
static __always_inline int conntrack_wants(const struct packet *packet)
{
	return !is_icmp(packet->protocol) || is_echo_request(packet);
}

static __always_inline void conntrack_row_set(const struct packet *packet, __u16 flags, __u32 packets, __u32 bytes,
					      struct conntrack_row *row)
{
	__builtin_memset(row, 0, sizeof(*row));
	row->flags = flags | closing_flags(packet, 0);
	if (packet->masquerade)
		row->flags |= CONNTRACK_MASQUERADED;
	row->expires_ns =
		packet->now + conntrack_lifetime_ns(packet->protocol, row->flags, packet->tcp_flags);
	row->policy_epoch = packet->policy_epoch;
	row->forward_packets = packets;
	row->forward_bytes = bytes;
	row->source_identity = packet->source_identity;
	row->forward_tcp_flags = packet->tcp_flags;
	if (packet->audited)
		row->flags |= CONNTRACK_AUDITED;
}

/* The flow was judged again, and may go on. */
static __always_inline void conntrack_confirm(const struct packet *packet, struct conntrack_row *entry)
{
	__u16 flags = entry->flags & ~CONNTRACK_AUDITED;

	if (packet->audited)
		flags |= CONNTRACK_AUDITED;
	if (flags != entry->flags)
		entry->flags = flags;
	entry->policy_epoch = packet->policy_epoch;
}

/* The entry of a plain flow. 0, or a drop. */
STEP conntrack_create(struct __sk_buff *skb, struct packet *packet, const struct tracking *tracking)
{
	struct conntrack_row row;

	if (!packet || !tracking || !conntrack_wants(packet))
		return 0;
	conntrack_row_set(packet, tracking->source_is_high ? CONNTRACK_INITIATOR_HIGH : 0, 1, skb->len, &row);
	if (bpf_map_update_elem(&conntrack, &tracking->key, &row, BPF_ANY))
		return DROP(packet, FILE_CONNTRACK, CT_MAP_INSERTION_FAILED);
	return 0;
}

/* The entry that forward packets to a frontend find; packet->dest is the backend by now. 0, or a drop. */
STEP conntrack_create_forward(struct __sk_buff *skb, struct packet *packet, const struct tracking *tracking, __u32 flags)
{
	struct conntrack_row row;

	if (!packet || !tracking)
		return 0;
	flags |= tracking->source_is_high ? CONNTRACK_INITIATOR_HIGH : 0;
	conntrack_row_set(packet, (__u16)flags | CONNTRACK_DNAT, 1, skb->len, &row);
	row.translated = packet->dest;
	row.translated_port = packet->dest_port;
	if (bpf_map_update_elem(&conntrack, &tracking->key, &row, BPF_ANY))
		return DROP(packet, FILE_CONNTRACK, CT_MAP_INSERTION_FAILED);
	return 0;
}

/* The entry whose replies go out with `frontend`, and what it has counted. 0, or a drop. */
static __always_inline int conntrack_put_answered(struct packet *packet, const struct tracking *tracking,
						  const struct address_port *frontend, __u32 flags, __u32 packets,
						  __u32 bytes)
{
	struct conntrack_row row;

	flags |= tracking->source_is_high ? CONNTRACK_INITIATOR_HIGH : 0;
	conntrack_row_set(packet, (__u16)flags | CONNTRACK_REVERSE_DNAT, packets, bytes, &row);
	row.translated = frontend->address;
	row.translated_port = frontend->port;
	if (bpf_map_update_elem(&conntrack, &tracking->key, &row, BPF_ANY))
		return DROP(packet, FILE_CONNTRACK, CT_MAP_INSERTION_FAILED);
	return 0;
}

/* The entry of a flow that another node has sent on for `frontend`. 0, or a drop. */
STEP conntrack_create_answered(struct __sk_buff *skb, struct packet *packet, const struct tracking *tracking,
			       const struct address_port *frontend)
{
	if (!packet || !tracking || !frontend)
		return 0;
	return conntrack_put_answered(packet, tracking, frontend, 0, 1, skb->len);
}

/* The entry that replies of a flow to `frontend` find; packets are counted at the other. A step of its own, for the rows
 * of both are not on the stack together. 0, or a drop. */
STEP conntrack_create_replies(struct packet *packet, const struct tracking *tracking,
			      const struct address_port *frontend, __u32 flags)
{
	if (!packet || !tracking || !frontend)
		return 0;
	return conntrack_put_answered(packet, tracking, frontend, flags, 0, 0);
}

/* Both entries of a flow to `frontend`; packet->dest is the backend by now. The one for replies comes first,
 * so that no reply meets a flow that is only half there. `flags`: CONNTRACK_HAIRPIN, CONNTRACK_DSR, or 0. 0, or a drop. */
STEP conntrack_create_service(struct __sk_buff *skb, struct packet *packet, const struct tracking *tracking,
			      const struct address_port *frontend, __u32 flags)
{
	struct tracking replies = {};
	struct address client;
	int result;

	if (!packet || !tracking || !frontend)
		return 0;
	if (flags & CONNTRACK_DSR)
		return conntrack_create_forward(skb, packet, tracking, flags);
	client = packet->source;
	if (flags & CONNTRACK_HAIRPIN)
		hairpin_address(packet->family, &client);
	replies.source_is_high = (__u32)conntrack_key_set(&replies.key, packet->protocol, &client, packet->source_port,
							  &packet->dest, packet->dest_port);
	result = conntrack_create_replies(packet, &replies, frontend, flags);
	if (result)
		return result;
	result = conntrack_create_forward(skb, packet, tracking, flags);
	if (result)
		bpf_map_delete_elem(&conntrack, &replies.key);
	return result;
}

/* Ends a flow that was refused; the packet has the ends of the flow. */
STEP conntrack_delete(const struct packet *packet, const struct tracking *tracking,
		      const struct conntrack_row *entry)
{
	struct conntrack_key key;

	if (!packet || !tracking || !entry)
		return 0;
	if (entry->flags & CONNTRACK_SERVICE) {
		conntrack_twin_key(packet, entry, &packet->source, packet->source_port, &key);
		bpf_map_delete_elem(&conntrack, &key);
	}
	bpf_map_delete_elem(&conntrack, &tracking->key);
	return 0;
}

#endif /* MESHLOG_LIB_CONNTRACK_H */
