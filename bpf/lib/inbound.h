/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* A packet for a local endpoint from outside: from the node's own stack or from the network. */
#ifndef MESHLOG_LIB_INBOUND_H
#define MESHLOG_LIB_INBOUND_H

#include "conntrack.h"
#include "ipcache.h"
#include "nat.h"
#include "policy.h"
#include "related.h"

/* Reads what every later step needs once. */
static __always_inline void packet_begin(struct packet *packet)
{
	struct node_state_key key = {.index = 0};
	struct node_state_row *row = bpf_map_lookup_elem(&node_state, &key);

	packet->now = bpf_ktime_get_ns();
	packet->policy_epoch = row ? row->policy_epoch : 0;
}

/* Replies to a flow that went to a frontend come from the frontend. 0, or a drop. */
STEP reverse_translate(struct __sk_buff *skb, struct packet *packet, const struct conntrack_row *entry)
{
	struct address_port from = {}, to = {};

	if (!packet || !entry)
		return 0;
	from.address = packet->source;
	from.port = packet->source_port;
	to.address = entry->translated;
	to.port = entry->translated_port;
	return nat_rewrite(skb, packet, NAT_SOURCE, &from, &to);
}

/* The host may talk to its endpoints unless a row denies it: probes and the agents of the node live there. */
static __always_inline int inbound_judge(struct __sk_buff *skb, struct packet *packet, __u32 endpoint_id,
					 __u32 host_is_allowed, __u32 is_new)
{
	if (is_related_error(skb, packet, 0))
		return 0;
	if (host_is_allowed && packet->source_identity == IDENTITY_HOST)
		return policy_judge_host(skb, packet, endpoint_id, is_new);
	return policy_judge_ingress(skb, packet, endpoint_id, is_new);
}

/*
 * Conntrack and ingress policy of the endpoint whose identity is packet->dest_identity.
 * packet->source_identity is already known. 0: deliver; or a drop.
 */
static __always_inline int inbound_admit(struct __sk_buff *skb, struct packet *packet, __u32 endpoint_id,
					 __u32 host_is_allowed)
{
	struct tracking tracking = {};
	struct conntrack_row *entry;
	struct address hairpin;
	int result;

	hairpin_address(packet->family, &hairpin);
	if (address_equal(&packet->source, &hairpin))
		return DROP(packet, FILE_CONNTRACK, INVALID_SOURCE_IP);
	entry = conntrack_find(packet, &tracking);
	/* An answer to a flow that has ended; the port is not given to another one yet. */
	if (!entry && packet->masquerade && !is_icmp_error(packet))
		return DROP(packet, FILE_CONNTRACK, NO_MAPPING_FOR_NAT_MASQUERADE);
	if (!entry || (!tracking.is_reply && entry->policy_epoch != packet->policy_epoch)) {
		result = inbound_judge(skb, packet, endpoint_id, host_is_allowed, !entry);
		if (result) {
			if (entry)
				conntrack_delete(packet, &tracking, entry);
			return result;
		}
		if (!entry)
			return conntrack_create(skb, packet, &tracking);
		entry->policy_epoch = packet->policy_epoch;
	}
	conntrack_keep(skb, packet, entry, tracking.is_reply);
	if (tracking.is_reply && entry->flags & CONNTRACK_REVERSE_DNAT)
		return reverse_translate(skb, packet, entry);
	return 0;
}

#endif /* MESHLOG_LIB_INBOUND_H */
