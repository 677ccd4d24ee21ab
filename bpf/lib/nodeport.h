/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Frontends that the network asks for: a node's own address, or one that is routed to it. To a backend of this node the
 * client keeps its address; to one elsewhere it takes this node's, so that the answers come back here, unless that node
 * is to answer by itself (dsr.h). Answers leave with the frontend's address, by the host's routes.
 */
#ifndef MESHLOG_LIB_NODEPORT_H
#define MESHLOG_LIB_NODEPORT_H

#include "dsr.h"
#include "forward.h"
#include "inbound.h"
#include "ipcache.h"
#include "masquerade.h"
#include "nat.h"
#include "packet.h"
#include "service.h"
#include "service_error.h"

/* Out of this node, to whatever packet->dest is. */
static __always_inline int nodeport_send(struct __sk_buff *skb, struct packet *packet)
{
	struct ipcache_row *remote = ipcache_recall(packet, &packet->dest);

	if (remote && remote->flags & IPCACHE_REMOTE_ENDPOINT)
		return forward(skb, packet, 0, remote);
	return forward_by_route(skb, packet);
}

/* To a backend elsewhere, which is packet->dest by now. */
static __always_inline int nodeport_leave(struct __sk_buff *skb, struct packet *packet,
					  const struct address_port *frontend)
{
	int result = nat_rewrite_dest(skb, packet, frontend);

	if (result)
		return result;
	if (packet->masquerade) {
		result = masquerade_source(skb, packet);
		if (result)
			return result;
		packet->source_identity = IDENTITY_REMOTE_NODE;
	}
	if (packet->dsr) {
		result = dsr_put(skb, packet, frontend);
		if (result)
			return result;
	}
	return nodeport_send(skb, packet);
}

/* May this client reach the endpoint? `entry`: the flow's, if it has one. 0, or a drop. */
static __always_inline int nodeport_judge(struct __sk_buff *skb, struct packet *packet,
					  const struct endpoint_row *row, const struct tracking *tracking,
					  struct conntrack_row *entry)
{
	packet->dest_side = endpoint_side(row);
	packet->dest_identity = row->identity;
	packet->dest_endpoint_id = (__u16)row->endpoint_id;
	source_identify(packet);
	/* Nobody on the network is this node, or the endpoint itself. */
	if (packet->source_identity == IDENTITY_HOST || address_equal(&packet->source, &packet->dest) ||
	    source_is_hairpin(packet))
		return DROP(packet, FILE_NODEPORT, INVALID_SOURCE_IP);
	return inbound_judge(skb, packet, tracking, entry);
}

/* To a backend of this node; one in its own network is the host stack's. */
static __always_inline int nodeport_deliver(struct __sk_buff *skb, struct packet *packet,
					    const struct address_port *frontend, const struct endpoint_row *row)
{
	int result = nat_rewrite_dest(skb, packet, frontend);

	if (result || row->flags & ENDPOINT_HOST)
		return result;
	return forward_to_endpoint(skb, packet, row);
}

/* How the answers of a backend elsewhere find the client. By DSR only where the backend's node will read the option. */
static __always_inline void nodeport_method(struct packet *packet, int outcome)
{
	struct ipcache_row *remote = ipcache_recall(packet, &packet->dest);

	if (!remote || !(remote->flags & IPCACHE_REMOTE_ENDPOINT) || remote->flags & IPCACHE_TUNNEL)
		packet->dsr = 0;
	/* A node whose own process asks takes nothing from the network that comes from itself. */
	if (identity_is_other_node(ipcache_identity(&packet->source)))
		packet->dsr = 0;
	/* The client is the backend: its own stack would refuse the packet. */
	if (outcome == SERVICE_HAIRPIN || packet->fragment || packet->l4_offset != plain_l4_offset(packet))
		packet->dsr = 0;
	packet->masquerade = packet->dsr ? MASQUERADE_NONE : MASQUERADE_CLIENT;
}

/* 0, or a drop; then the packet has its frontend again, which the client will hear of. */
static __always_inline int nodeport_fits(struct __sk_buff *skb, struct packet *packet,
					 const struct address_port *frontend)
{
	int result = packet->dsr ? dsr_fits(skb, packet) : 0;

	if (result) {
		packet->dest = frontend->address;
		packet->dest_port = frontend->port;
	}
	return result;
}

/* A flow without an entry. 0: not to a frontend, the host stack's; a TC_ACT_*; or a drop. */
static __always_inline int nodeport_new(struct __sk_buff *skb, struct packet *packet, const struct tracking *tracking)
{
	struct address_port frontend = {.address = packet->dest, .port = packet->dest_port};
	struct endpoint_row *row;
	int result = service_translate(packet, SERVICE_SCOPE_EXTERNAL);

	if (result <= 0)
		return result;
	row = endpoint_recall(packet, &packet->dest);
	if (!row) {
		nodeport_method(packet, result);
		result = nodeport_fits(skb, packet, &frontend);
		if (!result)
			result = conntrack_create_service(skb, packet, tracking, &frontend, packet->dsr ? CONNTRACK_DSR : 0);
		return result ? result : nodeport_leave(skb, packet, &frontend);
	}
	result = nodeport_judge(skb, packet, row, tracking, 0);
	if (!result)
		result = conntrack_create_service(skb, packet, tracking, &frontend, 0);
	return result ? result : nodeport_deliver(skb, packet, &frontend, row);
}

/* A flow with an entry follows it. */
static __always_inline int nodeport_established(struct __sk_buff *skb, struct packet *packet,
						const struct tracking *tracking, struct conntrack_row *entry)
{
	struct address_port wire = {.address = packet->dest, .port = packet->dest_port};
	struct endpoint_row *row;
	int result;

	packet->dest = entry->translated;
	packet->dest_port = entry->translated_port;
	row = endpoint_recall(packet, &packet->dest);
	if (row && entry->policy_epoch != packet->policy_epoch) {
		result = nodeport_judge(skb, packet, row, tracking, entry);
		if (result)
			return result;
		conntrack_confirm(packet, entry);
	}
	conntrack_keep(skb, packet, entry, 0);
	if (!row) {
		packet->masquerade = entry->flags & CONNTRACK_MASQUERADED ? MASQUERADE_CLIENT : MASQUERADE_NONE;
		packet->masquerade_port = entry->masquerade_port;
		packet->dsr = !!(entry->flags & CONNTRACK_DSR);
		result = nodeport_fits(skb, packet, &wire);
		if (!result)
			result = nodeport_leave(skb, packet, &wire);
		conntrack_port_keep(packet, entry);
		return result;
	}
	return nodeport_deliver(skb, packet, &wire, row);
}

/* To an address that no endpoint has. 0: the host stack's; a TC_ACT_*; or a drop. */
static __always_inline int nodeport(struct __sk_buff *skb, struct packet *packet)
{
	struct tracking tracking = {};
	struct conntrack_row *entry;

	if (is_icmp(packet->protocol))
		return 0;
	entry = conntrack_find(packet, &tracking);
	if (!entry)
		return nodeport_new(skb, packet, &tracking);
	if (tracking.is_reply || !(entry->flags & CONNTRACK_DNAT))
		return 0;
	return nodeport_established(skb, packet, &tracking, entry);
}

/* The answer of a backend elsewhere; packet->dest is the client again. */
static __always_inline int nodeport_answer(struct __sk_buff *skb, struct packet *packet)
{
	struct tracking tracking = {};
	struct conntrack_row *entry = conntrack_find(packet, &tracking);
	int result;

	if (!entry || !tracking.is_reply || !(entry->flags & CONNTRACK_REVERSE_DNAT))
		return DROP(packet, FILE_NODEPORT, NO_MAPPING_FOR_NAT_MASQUERADE);
	conntrack_keep(skb, packet, entry, 1);
	result = reverse_translate(skb, packet, entry);
	if (result)
		return result;
	packet->source = entry->translated;
	return nodeport_send(skb, packet);
}

/* What leaves from this node's own address. 1: the answer to a flow to a frontend, or an error about one, which has the
 * frontend's address now; 0: none; or a drop. */
STEP nodeport_outgoing(struct __sk_buff *skb, struct packet *packet)
{
	struct tracking tracking = {};
	struct conntrack_row *entry;
	int result;

	if (!packet)
		return 0;
	if (is_icmp_error(packet))
		return service_error(skb, packet, 1);
	entry = conntrack_find(packet, &tracking);
	if (!entry || !tracking.is_reply || !(entry->flags & CONNTRACK_SERVICE))
		return 0;
	/* It has it already: from an endpoint, or from elsewhere. */
	if (entry->flags & CONNTRACK_DNAT)
		return 1;
	conntrack_keep(skb, packet, entry, 1);
	result = reverse_translate(skb, packet, entry);
	return result ? result : 1;
}

/* An ICMP error to an address that no endpoint has. 0: the host stack's; a TC_ACT_*; or a drop. */
static __always_inline int nodeport_error(struct __sk_buff *skb, struct packet *packet)
{
	struct endpoint_row *row;
	int result = service_error(skb, packet, 0);

	if (result <= 0)
		return result;
	row = endpoint_recall(packet, &packet->dest);
	if (!row)
		return nodeport_send(skb, packet);
	return row->flags & ENDPOINT_HOST ? 0 : forward_to_endpoint(skb, packet, row);
}

/* An answer to an endpoint that left with the node's address, which is the endpoint's again. */
static __always_inline int endpoint_answered(struct __sk_buff *skb, struct packet *packet,
					     const struct endpoint_row *row)
{
	int result;

	packet->masquerade = MASQUERADE_ENDPOINT;
	packet->dest_identity = row->identity;
	packet->endpoint_id = (__u16)row->endpoint_id;
	source_identify(packet);
	if (packet->source_identity == IDENTITY_HOST)
		return DROP(packet, FILE_NODEPORT, INVALID_SOURCE_IP);
	packet->dest_side = endpoint_side(row);
	result = inbound_admit(skb, packet, row->endpoint_id);
	return result ? result : forward_to_endpoint(skb, packet, row);
}

/* To an address that no endpoint has, from outside. 0: the host stack's; a TC_ACT_*; or a drop. */
static __always_inline int nodeport_receive(struct __sk_buff *skb, struct packet *packet)
{
	struct endpoint_row *row;
	struct address node;
	int result = 0;

	node_address(packet->family, &node);
	if (address_equal(&packet->dest, &node))
		result = is_icmp_error(packet) ? unmasquerade_error(skb, packet) : unmasquerade(skb, packet);
	if (result < 0)
		return result;
	if (result) {
		row = endpoint_recall(packet, &packet->dest);
		if (row)
			return endpoint_answered(skb, packet, row);
	}
	if (is_icmp_error(packet))
		return nodeport_error(skb, packet);
	return result ? nodeport_answer(skb, packet) : nodeport(skb, packet);
}

#endif /* MESHLOG_LIB_NODEPORT_H */
