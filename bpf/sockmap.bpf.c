// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Two TCP sockets of this node's endpoints that are the ends of one connection are joined: what is written to one goes to
 * the other without a packet. The connection itself is made, judged and ended by packets. Of every message it is asked
 * whether its flow may still go on; whatever speaks against it, the bytes go as packets, and the programs at the devices
 * decide and tell. So nothing is refused here.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"
#include "config.h"

/* Steps of conntrack take a struct __sk_buff, and a global function would want it whole. Of those of policy.h only the
 * search is called. */
#define STEP static __noinline __attribute__((unused)) int
#include "lib/conntrack.h"
#undef STEP
#define STEP __noinline int

#include "lib/joined.h"

/* As a whole word: the kernel allows narrower reads on some hooks and releases only. */
#define READ_WORD(field) (*(volatile __u32 *)&(field))
#define ADDRESS_FAMILY_IPV4 2

/* The tuple of a context that names it like struct bpf_sock_ops and struct sk_msg_md do. Every field is read whatever the
 * family, since the compiler would make one load of two, and the verifier refuses its pointer. */
#define SOCKET_END_READ(ctx, key)                                                                                      \
	do {                                                                                                           \
		int is_ipv4 = READ_WORD((ctx)->family) == ADDRESS_FAMILY_IPV4;                                         \
		__be32 near_ipv4 = READ_WORD((ctx)->local_ip4), far_ipv4 = READ_WORD((ctx)->remote_ip4);               \
                                                                                                                       \
		(key)->near.words[0] = READ_WORD((ctx)->local_ip6[0]);                                                 \
		(key)->near.words[1] = READ_WORD((ctx)->local_ip6[1]);                                                 \
		(key)->near.words[2] = READ_WORD((ctx)->local_ip6[2]);                                                 \
		(key)->near.words[3] = READ_WORD((ctx)->local_ip6[3]);                                                 \
		(key)->far.words[0] = READ_WORD((ctx)->remote_ip6[0]);                                                 \
		(key)->far.words[1] = READ_WORD((ctx)->remote_ip6[1]);                                                 \
		(key)->far.words[2] = READ_WORD((ctx)->remote_ip6[2]);                                                 \
		(key)->far.words[3] = READ_WORD((ctx)->remote_ip6[3]);                                                 \
		if (is_ipv4) {                                                                                         \
			address_from_ipv4(&(key)->near, near_ipv4);                                                    \
			address_from_ipv4(&(key)->far, far_ipv4);                                                      \
		}                                                                                                      \
		(key)->near_port = bpf_htons((__u16)READ_WORD((ctx)->local_port));                                     \
		(key)->far_port = bpf_htons((__u16)bpf_ntohl(READ_WORD((ctx)->remote_port)));                          \
	} while (0)

static __always_inline __u64 place_of(struct bpf_sock_ops *ops)
{
	struct bpf_sock *socket = ops->sk;

	return socket ? (__u64)bpf_skc_to_tcp_sock(socket) : 0;
}

/* A connection was made: may its ends be joined? The first that says so here waits for the other. */
static __always_inline void socket_join(struct bpf_sock_ops *ops)
{
	struct socket_end_key key = {};
	struct socket_end_row row = {};
	struct joined_flow flow = {};
	int failure;

	if (!joining_is_on())
		return;
	SOCKET_END_READ(ops, &key);
	if (!joined_endpoint(&key.near) || !joined_flow_find(&key, &flow))
		return;
	other_end_find(&key, &flow, &row);
	row.place = place_of(ops);
	row.first_byte = ops->snd_nxt;
	/* With data in its SYN, a direction has begun in packets. */
	if (!joined_endpoint(&row.other_near) || !row.place || is_wrapped(row.place) || ops->data_segs_out)
		return;
	failure = (int)bpf_map_update_elem(&socket_ends, &key, &row, BPF_NOEXIST);
	if (!failure) {
		failure = (int)bpf_sock_hash_update(ops, &sockets, &key, BPF_NOEXIST);
		if (failure)
			bpf_map_delete_elem(&socket_ends, &key);
		else
			bpf_sock_ops_cb_flags_set(ops, READ_WORD(ops->bpf_sock_ops_cb_flags) | BPF_SOCK_OPS_STATE_CB_FLAG);
	}
	/* Other failures are no want of room: where another has given itself the same addresses, the tuple is taken. */
	if (failure == -E2BIG || failure == -ENOMEM)
		count(SOCKETS_FULL, TRAFFIC_EGRESS, 0);
}

/* The kernel itself takes a socket out of `sockets`. */
static __always_inline void socket_part(struct bpf_sock_ops *ops)
{
	struct socket_end_key key = {};
	struct socket_end_row *row;

	SOCKET_END_READ(ops, &key);
	row = bpf_map_lookup_elem(&socket_ends, &key);
	if (row && row->place == place_of(ops))
		bpf_map_delete_elem(&socket_ends, &key);
}

SEC("sockops")
int socket_life(struct bpf_sock_ops *ops)
{
	switch (ops->op) {
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		socket_join(ops);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		if (ops->args[1] == BPF_TCP_CLOSE)
			socket_part(ops);
		break;
	}
	return 1;
}

SEC("sk_msg")
int socket_message(struct sk_msg_md *message)
{
	struct socket_end_row *own, *other;
	struct endpoint_row *near, *far;
	struct socket_end_key key = {}, other_key;
	struct joined_flow flow = {};
	__u32 size = message->size;

	if (!joining_is_on())
		return SK_PASS;
	SOCKET_END_READ(message, &key);
	own = bpf_map_lookup_elem(&socket_ends, &key);
	if (!own)
		return SK_PASS;
	other_end_read(own, &other_key);
	other = bpf_map_lookup_elem(&socket_ends, &other_key);
	if (!other || !ends_are_one(own, other))
		return SK_PASS;
	near = joined_endpoint(&key.near);
	far = joined_endpoint(&other_key.near);
	if (!near || !far || far->flags & ENDPOINT_SHAPED)
		return SK_PASS;
	if (is_wrapped(own->place) || !reader_is_ready(other->place, size))
		return SK_PASS;
	if (!joined_flow_find(&key, &flow) || !joined_flow_allowed(&key, &other_key, &flow, near, far))
		return SK_PASS;
	/* Where the other end is no longer there, the answer would be an error for the writer. */
	if (bpf_msg_redirect_hash(message, &sockets, &other_key, BPF_F_INGRESS) != SK_PASS)
		return SK_PASS;
	joined_flow_keep(&key, &flow, size);
	return SK_PASS;
}

char program_license[] SEC("license") = "Dual BSD/GPL";
