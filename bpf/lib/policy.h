/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* May this identity talk to that one? The rules stand beside the policy maps in abi.h. */
#ifndef MESHLOG_LIB_POLICY_H
#define MESHLOG_LIB_POLICY_H

#include "../config.h"
#include "../maps.h"
#include "notify.h"
#include "packet.h"
#include "parse.h"
#include "recent.h"

static __always_inline __u8 policy_match_of(__u32 shape, __u32 remote_identity)
{
	if (shape == 0)
		return remote_identity ? POLICY_MATCH_L3_ONLY : POLICY_MATCH_ALL;
	if (shape == 1)
		return remote_identity ? POLICY_MATCH_L3_PROTO : POLICY_MATCH_PROTO_ONLY;
	return remote_identity ? POLICY_MATCH_L3_L4 : POLICY_MATCH_L4_ONLY;
}

static __always_inline __be16 port_masked(__be16 port, __u32 prefix)
{
	return bpf_htons((__u16)(bpf_ntohs(port) & (0xffff0000u >> (prefix & 31))));
}

/* Shapes of port ranges are rare, and passed over all at once. */
#define SHAPE_PORT_ANY 1
#define SHAPE_PORT_LONGEST (POLICY_SHAPES - 2)
#define SHAPES_PORT_RANGES ((2u << SHAPE_PORT_LONGEST) - (2u << SHAPE_PORT_ANY))

/* Looks up every shape in use, the narrowest first, so that `match` tells the narrowest row that allowed.
 * A deny row ends the search. The port of an ICMP message is its type. 0: no row. */
STEP policy_find(struct packet *packet, __u32 subject_identity, __u32 remote_identity, __u32 shapes)
{
	struct policy_key key = {.subject_identity = subject_identity};
	int verdict = 0;
	__be16 port;

	if (!packet)
		return 0;
	key.direction = packet->policy_direction;
	port = is_icmp(packet->protocol) ? bpf_htons(packet->icmp_type) : packet->dest_port;

	for (int shape = POLICY_SHAPES - 1; shape >= 0; shape--) {
		if (shape == SHAPE_PORT_LONGEST && !(shapes & SHAPES_PORT_RANGES))
			shape = SHAPE_PORT_ANY;
		if (!(shapes & (1u << shape)))
			continue;
		key.protocol = shape ? packet->protocol : 0;
		key.port_prefix = shape ? (__u8)(shape - 1) : 0;
		key.port = shape ? port_masked(port, (__u32)shape - 1) : 0;
		for (int any = 0; any < 2; any++) {
			struct policy_row *row;

			key.remote_identity = any ? 0 : remote_identity;
			row = bpf_map_lookup_elem(&policy, &key);
			if (!row)
				continue;
			if (row->verdict != POLICY_VERDICT_ALLOW) {
				packet->match = policy_match_of((__u32)shape, key.remote_identity);
				return POLICY_VERDICT_DENY;
			}
			if (!verdict)
				packet->match = policy_match_of((__u32)shape, key.remote_identity);
			verdict = POLICY_VERDICT_ALLOW;
		}
	}
	return verdict;
}

/* As policies see the address: the number of its facet, or its identity. */
STEP policy_facet(const struct address *address, __u32 identity)
{
	struct facet_key key = {.identity = identity};
	struct facet_row *row;

	if (!address)
		return 0;
	key.address = *address;
	row = bpf_map_lookup_elem(&facets, &key);
	return (int)(row ? row->facet : identity);
}

/* Of the end that packet->policy_direction is about, and of the other one. */
static __always_inline __u32 policy_own_facet(const struct packet *packet, __u32 identity)
{
	return (__u32)policy_facet(packet->policy_direction == POLICY_INGRESS ? &packet->dest : &packet->source, identity);
}

static __always_inline __u32 policy_remote_facet(const struct packet *packet, __u32 identity)
{
	return (__u32)policy_facet(packet->policy_direction == POLICY_INGRESS ? &packet->source : &packet->dest, identity);
}

/* The notification of the drop tells all that the one of a denial would. */
static __always_inline int denial_is_told(void)
{
	return config_notify_denials || !config_notify_drops;
}

/* What the rows of a subject say, in the direction named by packet->policy_direction: 0, or a drop. */
static __always_inline int policy_ask(struct packet *packet, const struct policy_subject_row *subject,
				      __u32 subject_identity, __u32 remote_identity, int is_welcome)
{
	int is_ingress = packet->policy_direction == POLICY_INGRESS;
	__u32 enforced = is_ingress ? subject->ingress_enforced : subject->egress_enforced;
	__u32 shapes = is_ingress ? subject->ingress_shapes : subject->egress_shapes;
	int verdict = 0;

	if (shapes)
		verdict = policy_find(packet, subject_identity, remote_identity, shapes);
	if (verdict == POLICY_VERDICT_DENY)
		return DROP(packet, FILE_POLICY, POLICY_DENY);
	if (verdict != POLICY_VERDICT_ALLOW && enforced && !is_welcome)
		return DROP(packet, FILE_POLICY, POLICY_DENIED);
	return 0;
}

/* Neighbour discovery reaches nobody beyond the link, and without it nothing does. */
static __always_inline int is_neighbour_discovery(const struct packet *packet)
{
	return packet->protocol == IPPROTO_ICMPV6 && packet->icmp_type >= ND_ROUTER_SOLICITATION &&
	       packet->icmp_type <= ND_REDIRECT;
}

/* Judges one direction of a flow whose forward packet this is, if it is this node's to judge. 0, or a drop. */
STEP policy_judge(struct __sk_buff *skb, struct packet *packet, __u32 direction, __u32 is_new)
{
	struct policy_subject_row *subject;
	__u32 identity = IDENTITY_HOST, own, remote, side, reason;
	int result, is_localhost, is_endpoint;

	if (!packet)
		return 0;
	own = direction == POLICY_INGRESS ? packet->dest_identity : packet->source_identity;
	remote = direction == POLICY_INGRESS ? packet->source_identity : packet->dest_identity;
	side = direction == POLICY_INGRESS ? packet->dest_side : packet->source_side;
	if (side == SIDE_ELSEWHERE || (side == SIDE_HOST && is_neighbour_discovery(packet)))
		return 0;
	packet->policy_direction = (__u8)direction;
	packet->endpoint_id = direction == POLICY_INGRESS ? packet->dest_endpoint_id : packet->source_endpoint_id;
	packet->match = POLICY_MATCH_NONE;
	is_endpoint = side == SIDE_ENDPOINT || side == SIDE_ENDPOINT_AUDITED;
	if (is_endpoint)
		identity = own;
	/* The host may talk to its endpoints unless a row denies it: probes and the agents of the node live there. */
	is_localhost = is_endpoint && direction == POLICY_INGRESS && remote == IDENTITY_HOST;
	subject = subject_recall(packet, identity);
	if (!subject) {
		if (side == SIDE_HOST || is_localhost)
			return 0;
		return DROP(packet, FILE_POLICY, NO_CONFIGURATION_AVAILABLE_TO_PERFORM_POLICY_DECISION);
	}
	if (subject->flags & POLICY_SUBJECT_HAS_FACETS) {
		identity = policy_own_facet(packet, identity);
		subject = subject_recall(packet, identity);
		if (!subject)
			return DROP(packet, FILE_POLICY, NO_CONFIGURATION_AVAILABLE_TO_PERFORM_POLICY_DECISION);
	}
	if (subject->flags & POLICY_SUBJECT_ASKS_FACETS)
		remote = policy_remote_facet(packet, remote);
	if (subject->flags & POLICY_SUBJECT_ASKS_LOCALHOST)
		is_localhost = 0;
	result = policy_ask(packet, subject, identity, remote, is_localhost);
	reason = (__u32)-result;
	if (result && (side == SIDE_ENDPOINT_AUDITED || subject->flags & POLICY_SUBJECT_AUDIT)) {
		packet->audited = 1;
		result = 0;
	}
	if (!is_new || !config_notify_verdicts)
		return result;
	if (result ? denial_is_told() : reason || !is_localhost)
		notify(skb, packet, NOTIFICATION_VERDICT, reason,
		       result ? VERDICT_DENY : reason ? VERDICT_AUDIT : VERDICT_ALLOW);
	return result;
}

/* Both directions of a flow whose forward packet this is: egress of who sends, and ingress of who receives if it lives
 * here, since nobody will ask again. 0, or a drop. */
static __always_inline int policy_judge_flow(struct __sk_buff *skb, struct packet *packet, __u32 is_new)
{
	int result = 0;

	packet->audited = 0;
	if (packet->source_side != SIDE_ELSEWHERE)
		result = policy_judge(skb, packet, POLICY_EGRESS, is_new);
	if (!result && packet->dest_side != SIDE_ELSEWHERE)
		result = policy_judge(skb, packet, POLICY_INGRESS, is_new);
	return result;
}

/* A reply: would its flow be let begin now? 0; or a drop, and the packet has the ends of the flow. */
STEP policy_judge_reply(struct __sk_buff *skb, struct packet *packet)
{
	__u8 icmp_type;
	int result;

	if (!packet)
		return 0;
	icmp_type = packet->icmp_type;
	packet_turn(packet);
	if (packet->protocol == IPPROTO_ICMP)
		packet->icmp_type = ICMP_ECHO_REQUEST;
	else if (packet->protocol == IPPROTO_ICMPV6)
		packet->icmp_type = ICMPV6_ECHO_REQUEST;
	result = policy_judge_flow(skb, packet, 0);
	if (result)
		return result;
	packet_turn(packet);
	packet->icmp_type = icmp_type;
	return 0;
}

#endif /* MESHLOG_LIB_POLICY_H */
