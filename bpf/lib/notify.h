/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the programs tell: metrics for every packet, notifications for drops and verdicts. */
#ifndef MESHLOG_LIB_NOTIFY_H
#define MESHLOG_LIB_NOTIFY_H

#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "../config.h"
#include "../maps.h"
#include "metrics.h"
#include "packet.h"

static __always_inline int is_icmp(__u8 protocol)
{
	return protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6;
}

STEP notify(struct __sk_buff *skb, const struct packet *packet, __u32 type, __u32 reason, __u32 verdict)
{
	struct notification *record;

	if (!packet)
		return 0;
	record = bpf_ringbuf_reserve(&notifications, sizeof(*record), 0);
	if (!record) {
		count(NOTIFICATIONS_LOST, packet->traffic_direction, skb->len);
		return 0;
	}
	record->timestamp_ns = bpf_ktime_get_ns();
	record->policy_epoch = packet->policy_epoch;
	record->source = packet->source;
	record->dest = packet->dest;
	record->source_identity = packet->source_identity;
	record->dest_identity = packet->dest_identity;
	record->ifindex = skb->ifindex;
	record->length = skb->len;
	record->source_port = packet->source_port;
	record->dest_port = packet->dest_port;
	if (is_icmp(packet->protocol)) {
		record->source_port = 0;
		record->dest_port = bpf_htons((__u16)(packet->icmp_type << 8 | packet->icmp_code));
	}
	record->endpoint_id = packet->endpoint_id;
	record->line = type == NOTIFICATION_DROP ? packet->line : 0;
	record->type = (__u8)type;
	record->drop_reason = (__u8)reason;
	record->policy_direction = packet->policy_direction;
	record->protocol = packet->protocol;
	record->tcp_flags = packet->tcp_flags;
	record->verdict = (__u8)verdict;
	record->match = packet->match;
	record->file = type == NOTIFICATION_DROP ? packet->file : 0;
	bpf_ringbuf_submit(record, 0);
	return 0;
}

/* The one end of every program: `result` is a TC_ACT_* or -(enum drop_reason). */
static __always_inline int finish(struct __sk_buff *skb, const struct packet *packet, int result)
{
	if (result >= 0) {
		count(FORWARDED, packet->traffic_direction, skb->len);
		return result;
	}
	/* A packet that the destination's policy refuses at its source's device is counted as ingress. */
	count((__u32)-result, packet->policy_direction == POLICY_INGRESS ? TRAFFIC_INGRESS : TRAFFIC_EGRESS,
	      skb->len);
	if (config_notify_drops)
		notify(skb, packet, NOTIFICATION_DROP, (__u32)-result, VERDICT_DENY);
	return TC_ACT_SHOT;
}

#endif /* MESHLOG_LIB_NOTIFY_H */
