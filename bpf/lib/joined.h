/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Joined sockets: which two are the ends of one connection, and whether the next bytes may go from one to the other
 * without a packet.
 *
 * Order. A reader takes what was handed over before what came in packets. So a direction is handed over from its first
 * byte on, and once a single byte of it went as a packet the rest does too, for good.
 *
 * Proof. A tuple can be copied by whoever may give itself addresses; the sequence numbers of both directions can not, as
 * each end chose one of them at random. Two sockets are one connection if what each has sent is what the other expects.
 *
 * Bound. The kernel does not make a writer wait for the reader here. So a direction whose reader has fallen behind by its
 * receive buffer goes over to packets, for which the reader's window holds.
 */
#ifndef MESHLOG_LIB_JOINED_H
#define MESHLOG_LIB_JOINED_H

#include <linux/bpf.h>
#include <linux/errno.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "../config.h"
#include "../maps.h"
#include "conntrack.h"
#include "forward.h"
#include "kernel_socket.h"
#include "metrics.h"
#include "packet.h"
#include "policy.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SOCKET_ENDS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct socket_end_key);
	__type(value, struct socket_end_row);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} socket_ends SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, SOCKET_ENDS_MAX);
	__type(key, struct socket_end_key);
	__type(value, __u64); /* a socket; user space reads its cookie */
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} sockets SEC(".maps");

/* Flows that are no plain conversation of two endpoints. */
#define CONNTRACK_APART                                                                                                \
	(CONNTRACK_ENDING | CONNTRACK_MASQUERADED | CONNTRACK_HAIRPIN | CONNTRACK_AUDITED | CONNTRACK_DSR)

/* A message's place among the flows. */
struct joined_flow {
	struct conntrack_row *entry;
	__u64 now;
	__u32 is_reply;
	__u32 reserved;
};

static __always_inline int joining_is_on(void)
{
	struct socket_switch_key key = {.index = 0};
	struct socket_switch_row *row = bpf_map_lookup_elem(&socket_switch, &key);

	return row && config_content_id && row->content_id == config_content_id;
}

/* The other end's key. */
static __always_inline void other_end_read(const struct socket_end_row *row, struct socket_end_key *other)
{
	other->near = row->other_near;
	other->far = row->other_far;
	other->near_port = row->other_near_port;
	other->far_port = row->other_far_port;
	other->reserved = 0;
}

/* The entry of a socket's own tuple, if it is one of those that may be joined. */
static __always_inline int joined_flow_find(const struct socket_end_key *end, struct joined_flow *flow)
{
	struct conntrack_key key;
	int is_high = conntrack_key_set(&key, IPPROTO_TCP, &end->near, end->near_port, &end->far, end->far_port);
	struct conntrack_row *entry = bpf_map_lookup_elem(&conntrack, &key);

	flow->now = bpf_ktime_get_coarse_ns();
	if (!entry || entry->expires_ns <= flow->now || entry->flags & CONNTRACK_APART)
		return 0;
	flow->entry = entry;
	flow->is_reply = is_high != !!(entry->flags & CONNTRACK_INITIATOR_HIGH);
	return 1;
}

/* What the other end calls itself and us. */
static __always_inline void other_end_find(const struct socket_end_key *own, const struct joined_flow *flow,
					   struct socket_end_row *row)
{
	const struct conntrack_row *entry = flow->entry;

	row->other_near = own->far;
	row->other_near_port = own->far_port;
	row->other_far = own->near;
	row->other_far_port = own->near_port;
	if (!flow->is_reply && entry->flags & CONNTRACK_DNAT) {
		row->other_near = entry->translated;
		row->other_near_port = entry->translated_port;
	} else if (flow->is_reply && entry->flags & CONNTRACK_REVERSE_DNAT) {
		row->other_far = entry->translated;
		row->other_far_port = entry->translated_port;
	}
}

/* The row of an endpoint whose sockets may be joined. */
static __always_inline struct endpoint_row *joined_endpoint(const struct address *address)
{
	struct endpoint_row *row = bpf_map_lookup_elem(&endpoints, address);

	return row && row->flags & ENDPOINT_JOINED ? row : 0;
}

static __always_inline __u64 policy_epoch_now(void)
{
	struct node_state_key key = {.index = 0};
	struct node_state_row *row = bpf_map_lookup_elem(&node_state, &key);

	return row ? row->policy_epoch : 0;
}

/* What the rows of one end say. What audit lets pass is for the devices to tell. */
static __always_inline int joined_end_allows(struct packet *packet, __u32 direction, __u32 identity, __u32 remote)
{
	struct policy_subject_key key = {.identity = identity};
	struct policy_subject_row *subject = bpf_map_lookup_elem(&policy_subjects, &key);

	packet->policy_direction = (__u8)direction;
	if (subject && subject->flags & POLICY_SUBJECT_HAS_FACETS) {
		key.identity = policy_own_facet(packet, identity);
		subject = bpf_map_lookup_elem(&policy_subjects, &key);
	}
	if (subject && subject->flags & POLICY_SUBJECT_ASKS_FACETS)
		remote = policy_remote_facet(packet, remote);
	return subject && !policy_ask(packet, subject, key.identity, remote, 0);
}

/* As for a packet of the flow: under the epoch that it was judged in it goes on, else it is judged again. */
static __always_inline int joined_flow_allowed(const struct socket_end_key *own, const struct socket_end_key *other,
					       const struct joined_flow *flow, const struct endpoint_row *near,
					       const struct endpoint_row *far)
{
	__u32 from = flow->is_reply ? far->identity : near->identity;
	__u32 to = flow->is_reply ? near->identity : far->identity;
	__u64 epoch = policy_epoch_now();
	struct packet packet = {.protocol = IPPROTO_TCP};

	if (flow->entry->policy_epoch == epoch)
		return 1;
	packet.source = flow->is_reply ? other->near : own->near;
	packet.dest = flow->is_reply ? own->near : other->near;
	packet.dest_port = flow->is_reply ? own->near_port : other->near_port;
	if (!joined_end_allows(&packet, POLICY_EGRESS, from, to) || !joined_end_allows(&packet, POLICY_INGRESS, to, from))
		return 0;
	flow->entry->policy_epoch = epoch;
	return 1;
}

/* Counts the message as a packet without headers, and prolongs the flow's life. */
static __always_inline void joined_flow_keep(const struct socket_end_key *own, const struct joined_flow *flow,
					     __u32 size)
{
	struct conntrack_row *entry = flow->entry;
	__u64 lifetime_ns = conntrack_lifetime_ns(IPPROTO_TCP, entry->flags, entry->forward_tcp_flags);
	__u64 remaining_ns = entry->expires_ns - flow->now;
	struct packet packet = {.protocol = IPPROTO_TCP};

	count(FORWARDED_AT_SOCKET, TRAFFIC_EGRESS, size);
	if (flow->is_reply) {
		__sync_fetch_and_add(&entry->reply_packets, 1);
		__sync_fetch_and_add(&entry->reply_bytes, size);
	} else {
		__sync_fetch_and_add(&entry->forward_packets, 1);
		__sync_fetch_and_add(&entry->forward_bytes, size);
	}
	entry->expires_ns = flow->now + lifetime_ns;
	if (!(entry->flags & CONNTRACK_SERVICE) || remaining_ns >= lifetime_ns / 2)
		return;
	packet.source = own->near;
	packet.dest = own->far;
	packet.source_port = own->near_port;
	packet.dest_port = own->far_port;
	conntrack_tell_twin(&packet, entry, flow->is_reply);
}

/* Whether no byte of this direction went as a packet, and the two are the ends of one connection. The writer holds its
 * socket, so nothing that it is sent is taken in meanwhile. */
static __always_inline int ends_are_one(const struct socket_end_row *own, const struct socket_end_row *other)
{
	__u32 written = 0, expected = 0, read = 0, acknowledged = 0, sent = 0;

	KERNEL_READ(written, own->place, tcp_sock, write_seq);
	KERNEL_READ(expected, own->place, tcp_sock, rcv_nxt);
	KERNEL_READ(read, other->place, tcp_sock, copied_seq);
	KERNEL_READ(acknowledged, other->place, tcp_sock, snd_una);
	KERNEL_READ(sent, other->place, tcp_sock, snd_nxt);
	return written == own->first_byte && read == written && (__s32)(expected - acknowledged) >= 0 &&
	       (__s32)(sent - expected) >= 0;
}

/* Another protocol on top of TCP, such as TLS in the kernel, sees only what comes in packets. */
static __always_inline int is_wrapped(__u64 place)
{
	const void *protocol = 0;

	KERNEL_READ(protocol, place, inet_connection_sock, icsk_ulp_ops);
	return protocol != 0;
}

/* Whether the reader's end can take `size` bytes more. One that waits for a number of bytes would not be woken by them. */
static __always_inline int reader_is_ready(__u64 place, __u32 size)
{
	__u32 waiting = 0, limit = 0, least = 0;
	unsigned char state = 0;

	KERNEL_READ(state, place, sock, __sk_common.skc_state);
	KERNEL_READ(least, place, sock, sk_rcvlowat);
	KERNEL_READ(waiting, place, sock, sk_backlog.rmem_alloc.counter);
	KERNEL_READ(limit, place, sock, sk_rcvbuf);
	return state == BPF_TCP_ESTABLISHED && least <= 1 && (!waiting || waiting + size <= limit) && !is_wrapped(place);
}

#endif /* MESHLOG_LIB_JOINED_H */
