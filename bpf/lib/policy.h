/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* May this identity talk to that one? The rules stand beside the policy maps in abi.h. */
#ifndef MESHLOG_LIB_POLICY_H
#define MESHLOG_LIB_POLICY_H

#include "../config.h"
#include "../maps.h"
#include "notify.h"
#include "packet.h"

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

/* Judges one direction, named by packet->policy_direction. 0, or a drop. */
static __always_inline int policy_judge(struct packet *packet, __u32 subject_identity, __u32 remote_identity)
{
	struct policy_subject_key key = {.identity = subject_identity};
	struct policy_subject_row *subject = bpf_map_lookup_elem(&policy_subjects, &key);
	__u32 enforced, shapes;
	int verdict = 0;

	packet->match = POLICY_MATCH_NONE;
	if (!subject)
		return DROP(packet, FILE_POLICY, NO_CONFIGURATION_AVAILABLE_TO_PERFORM_POLICY_DECISION);
	if (packet->policy_direction == POLICY_INGRESS) {
		enforced = subject->ingress_enforced;
		shapes = subject->ingress_shapes;
	} else {
		enforced = subject->egress_enforced;
		shapes = subject->egress_shapes;
	}
	if (shapes)
		verdict = policy_find(packet, subject_identity, remote_identity, shapes);
	if (verdict == POLICY_VERDICT_DENY)
		return DROP(packet, FILE_POLICY, POLICY_DENY);
	if (verdict != POLICY_VERDICT_ALLOW && enforced)
		return DROP(packet, FILE_POLICY, POLICY_DENIED);
	return 0;
}

/* The notification of the drop tells all that the one of a denial would. */
static __always_inline int denial_is_told(void)
{
	return config_notify_denials || !config_notify_drops;
}

static __always_inline void policy_notify(struct __sk_buff *skb, const struct packet *packet, int result)
{
	if (config_notify_verdicts && (!result || denial_is_told()))
		notify(skb, packet, NOTIFICATION_VERDICT, result ? (__u32)-result : FORWARDED,
		       result ? VERDICT_DENY : VERDICT_ALLOW);
}

STEP policy_judge_egress(struct __sk_buff *skb, struct packet *packet, __u32 endpoint_id, __u32 is_new)
{
	int result;

	if (!packet)
		return 0;
	packet->policy_direction = POLICY_EGRESS;
	packet->endpoint_id = (__u16)endpoint_id;
	result = policy_judge(packet, packet->source_identity, packet->dest_identity);
	if (is_new)
		policy_notify(skb, packet, result);
	return result;
}

STEP policy_judge_ingress(struct __sk_buff *skb, struct packet *packet, __u32 endpoint_id, __u32 is_new)
{
	int result;

	if (!packet)
		return 0;
	packet->policy_direction = POLICY_INGRESS;
	packet->endpoint_id = (__u16)endpoint_id;
	result = policy_judge(packet, packet->dest_identity, packet->source_identity);
	if (is_new)
		policy_notify(skb, packet, result);
	return result;
}

/* The node's host needs no row to come in; a deny row keeps it out. Told is only the denial. */
STEP policy_judge_host(struct __sk_buff *skb, struct packet *packet, __u32 endpoint_id, __u32 is_new)
{
	struct policy_subject_key key = {};
	struct policy_subject_row *subject;
	int result;

	if (!packet)
		return 0;
	packet->policy_direction = POLICY_INGRESS;
	packet->endpoint_id = (__u16)endpoint_id;
	packet->match = POLICY_MATCH_NONE;
	key.identity = packet->dest_identity;
	subject = bpf_map_lookup_elem(&policy_subjects, &key);
	if (!subject || !subject->ingress_shapes)
		return 0;
	if (policy_find(packet, key.identity, packet->source_identity, subject->ingress_shapes) != POLICY_VERDICT_DENY)
		return 0;
	result = DROP(packet, FILE_POLICY, POLICY_DENY);
	if (is_new)
		policy_notify(skb, packet, result);
	return result;
}

#endif /* MESHLOG_LIB_POLICY_H */
