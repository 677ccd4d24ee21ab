/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * An endpoint that reaches itself through a frontend. A stack refuses packets from its own address, so the
 * client's side of the flow takes the hairpin address, and replies to that address go back where they came from.
 * No policy is asked: an endpoint may always talk to itself.
 */
#ifndef MESHLOG_LIB_HAIRPIN_H
#define MESHLOG_LIB_HAIRPIN_H

#include "conntrack.h"
#include "nat.h"
#include "packet.h"

/* From the endpoint to itself: packet->dest is the backend by now, `frontend` is where it was sent. */
static __always_inline int hairpin_forward(struct __sk_buff *skb, struct packet *packet,
					   const struct address_port *frontend)
{
	struct address_port backend = {.address = packet->dest, .port = packet->dest_port};
	struct address_port client = {.address = packet->source, .port = packet->source_port};
	int result = nat_rewrite(skb, packet, NAT_DEST, frontend, &backend);

	if (result)
		return result;
	hairpin_address(packet->family, &backend.address);
	backend.port = packet->source_port;
	return nat_rewrite(skb, packet, NAT_SOURCE, &client, &backend);
}

static __always_inline int hairpin_reply(struct __sk_buff *skb, struct packet *packet,
					 const struct conntrack_row *entry)
{
	struct address_port from = {.address = packet->source, .port = packet->source_port};
	struct address_port to = {.address = entry->translated, .port = entry->translated_port};
	int result = nat_rewrite(skb, packet, NAT_SOURCE, &from, &to);

	if (result)
		return result;
	from.address = packet->dest;
	from.port = packet->dest_port;
	packet->dest = packet->source;
	to.address = packet->source;
	to.port = packet->dest_port;
	return nat_rewrite(skb, packet, NAT_DEST, &from, &to);
}

/* The first packet, whose backend was chosen. 0, or a drop. */
STEP hairpin_new(struct __sk_buff *skb, struct packet *packet, const struct tracking *tracking,
		 const struct address_port *frontend)
{
	int result;

	if (!packet || !tracking || !frontend)
		return 0;
	result = conntrack_create_service(skb, packet, tracking, frontend, CONNTRACK_HAIRPIN);
	if (result)
		return result;
	return hairpin_forward(skb, packet, frontend);
}

/* A packet of a hairpin flow. Afterwards packet->dest is the endpoint. 0, or a drop. */
STEP hairpin_established(struct __sk_buff *skb, struct packet *packet, struct conntrack_row *entry, __u32 is_reply)
{
	struct address_port frontend = {};

	if (!packet || !entry)
		return 0;
	conntrack_keep(skb, packet, entry, is_reply);
	if (is_reply)
		return hairpin_reply(skb, packet, entry);
	frontend.address = packet->dest;
	frontend.port = packet->dest_port;
	packet->dest = entry->translated;
	packet->dest_port = entry->translated_port;
	return hairpin_forward(skb, packet, &frontend);
}

#endif /* MESHLOG_LIB_HAIRPIN_H */
