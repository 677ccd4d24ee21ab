/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* A packet for a local endpoint from outside: from the node's own stack or from the network. */
#ifndef MESHLOG_LIB_INBOUND_H
#define MESHLOG_LIB_INBOUND_H

#include "conntrack.h"
#include "dsr.h"
#include "ipcache.h"
#include "nat.h"
#include "policy.h"
#include "recent.h"
#include "related.h"
#include "service_error.h"

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

/* Judges the packet's flow anew; `entry`: the one it has under an old epoch, or 0. 0, or a drop. */
static __always_inline int inbound_judge(struct __sk_buff *skb, struct packet *packet, const struct tracking *tracking,
					 const struct conntrack_row *entry)
{
	int result;

	if (tracking->is_reply)
		result = policy_judge_reply(skb, packet);
	else
		result = is_related_error(skb, packet, 0) ? 0 : policy_judge_flow(skb, packet, !entry);
	if (result && entry)
		conntrack_delete(packet, tracking, entry);
	return result;
}

/* The entry of a new flow. */
static __always_inline int inbound_create(struct __sk_buff *skb, struct packet *packet, const struct tracking *tracking)
{
	struct address_port frontend = {};

	if (dsr_find(skb, packet, &frontend))
		return conntrack_create_answered(skb, packet, tracking, &frontend);
	return conntrack_create(skb, packet, tracking);
}

/*
 * Conntrack and policy of a packet to the endpoint whose identity is packet->dest_identity.
 * packet->source_identity, source_side and dest_side are already known. 0: deliver; or a drop.
 */
static __always_inline int inbound_admit(struct __sk_buff *skb, struct packet *packet, __u32 endpoint_id)
{
	struct tracking tracking = {};
	struct conntrack_row *entry;
	int result;

	packet->dest_endpoint_id = (__u16)endpoint_id;
	if (source_is_hairpin(packet))
		return DROP(packet, FILE_CONNTRACK, INVALID_SOURCE_IP);
	if (is_icmp_error(packet)) {
		result = service_error(skb, packet, 0);
		if (result)
			return result < 0 ? result : 0;
	}
	entry = conntrack_find(packet, &tracking);
	/* An answer to a flow that has ended; the port is not given to another one yet. */
	if (!entry && packet->masquerade && !is_icmp_error(packet))
		return DROP(packet, FILE_CONNTRACK, NO_MAPPING_FOR_NAT_MASQUERADE);
	if (!entry || entry->policy_epoch != packet->policy_epoch) {
		result = inbound_judge(skb, packet, &tracking, entry);
		if (result)
			return result;
		if (!entry)
			return inbound_create(skb, packet, &tracking);
		conntrack_confirm(packet, entry);
	}
	conntrack_keep(skb, packet, entry, tracking.is_reply);
	if (tracking.is_reply && entry->flags & CONNTRACK_REVERSE_DNAT)
		return reverse_translate(skb, packet, entry);
	return 0;
}

#endif /* MESHLOG_LIB_INBOUND_H */
