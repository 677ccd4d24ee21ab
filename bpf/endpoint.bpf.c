// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The programs on the host side of every endpoint's veth. One object serves all endpoints of the node: whose
 * device it is, the row in `devices` tells.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"
#include "config.h"
#include "lib/conntrack.h"
#include "lib/forward.h"
#include "lib/hairpin.h"
#include "lib/inbound.h"
#include "lib/ipcache.h"
#include "lib/masquerade.h"
#include "lib/nat.h"
#include "lib/notify.h"
#include "lib/parse.h"
#include "lib/policy.h"
#include "lib/recent.h"
#include "lib/reject.h"
#include "lib/related.h"
#include "lib/scratch.h"
#include "lib/service.h"
#include "lib/service_error.h"

/* Where a packet goes: rows of its final destination. */
struct target {
	struct endpoint_row *local;
	struct ipcache_row *remote;
};

static __always_inline int source_mac_is(struct __sk_buff *skb, const struct device_row *device)
{
	void *data = packet_data(skb);
	void *data_end = packet_data_end(skb);
	struct ethhdr *header = data;

	if ((void *)(header + 1) > data_end)
		return 0;
	const struct mac_words *seen = (const struct mac_words *)header->h_source;
	const struct mac_words *own = (const struct mac_words *)device->mac;

	return seen->words[0] == own->words[0] && seen->words[1] == own->words[1] && seen->words[2] == own->words[2];
}

static __always_inline int source_address_is(const struct packet *packet, const struct device_row *device)
{
	if (packet->family == 4)
		return address_equal(&packet->source, &device->ipv4);
	/* All zero means that the endpoint has no such address, not that it may send without one. */
	return address_equal(&packet->source, &device->ipv6) && !address_is_zero(&packet->source);
}

/* The rest of a target whose `local` is known. */
static __always_inline void target_identify(struct packet *packet, struct target *target)
{
	target->remote = 0;
	if (target->local) {
		packet->dest_identity = target->local->identity;
		packet->dest_endpoint_id = (__u16)target->local->endpoint_id;
		packet->dest_side = endpoint_side(target->local);
		return;
	}
	target->remote = ipcache_recall(packet, &packet->dest);
	packet->dest_identity = target->remote ? target->remote->identity : IDENTITY_WORLD;
}

static __always_inline void target_find(struct packet *packet, struct target *target)
{
	target->local = endpoint_recall(packet, &packet->dest);
	target_identify(packet, target);
}

/* Whether a destination is neither an endpoint nor a node. */
static __always_inline int target_is_outside(const struct packet *packet, const struct target *target)
{
	if (target->local || packet->dest_identity == IDENTITY_HOST || identity_is_other_node(packet->dest_identity))
		return 0;
	return !target->remote || !(target->remote->flags & IPCACHE_REMOTE_ENDPOINT);
}

/* A flow without an entry: service lookup, policy, entry. */
static __always_inline int outbound_new(struct __sk_buff *skb, struct packet *packet, struct tracking *tracking,
					struct target *target)
{
	struct address_port frontend = {.address = packet->dest, .port = packet->dest_port};
	int translated = 0, result = 0;

	if (is_icmp_error(packet)) {
		result = service_error(skb, packet, 1);
		target_find(packet, target);
		if (result)
			return result < 0 ? result : 0;
	}
	/* An endpoint's own address is no frontend, whatever a service says. */
	target->local = endpoint_recall(packet, &packet->dest);
	if (!is_icmp(packet->protocol) && (!target->local || target->local->flags & ENDPOINT_HOST))
		translated = service_translate(packet, SERVICE_SCOPE_INTERNAL);
	if (translated < 0)
		return translated;
	if (translated)
		target->local = endpoint_recall(packet, &packet->dest);
	target_identify(packet, target);
	if (translated == SERVICE_HAIRPIN)
		return hairpin_new(skb, packet, tracking, &frontend);
	if (!is_related_error(skb, packet, 1))
		result = policy_judge_flow(skb, packet, 1);
	if (result)
		return result;
	if (target_is_outside(packet, target))
		packet->masquerade = (__u8)(is_icmp_error(packet) ? masquerade_wants_error(skb, packet)
								  : masquerade_wants(skb, packet));
	if (!translated)
		return conntrack_create(skb, packet, tracking);
	result = conntrack_create_service(skb, packet, tracking, &frontend, 0);
	if (result)
		return result;
	return nat_rewrite_dest(skb, packet, &frontend);
}

/* A flow with an entry follows it; with its next packet, of either direction, it is judged again once the policy epoch
 * has moved. */
static __always_inline int outbound_established(struct __sk_buff *skb, struct packet *packet,
						struct tracking *tracking, struct conntrack_row *entry,
						struct target *target)
{
	struct address_port wire = {.address = packet->dest, .port = packet->dest_port};
	int dnat = !tracking->is_reply && entry->flags & CONNTRACK_DNAT;
	int result;

	if (entry->flags & CONNTRACK_HAIRPIN) {
		result = hairpin_established(skb, packet, entry, tracking->is_reply);
		target_find(packet, target);
		return result;
	}
	if (dnat) {
		packet->dest = entry->translated;
		packet->dest_port = entry->translated_port;
	}
	target_find(packet, target);
	if (entry->policy_epoch != packet->policy_epoch) {
		result = tracking->is_reply ? policy_judge_reply(skb, packet) : policy_judge_flow(skb, packet, 0);
		if (result) {
			conntrack_delete(packet, tracking, entry);
			return result;
		}
		conntrack_confirm(packet, entry);
	}
	conntrack_keep(skb, packet, entry, tracking->is_reply);
	packet->masquerade =
		!tracking->is_reply && entry->flags & CONNTRACK_MASQUERADED ? MASQUERADE_ENDPOINT : MASQUERADE_NONE;
	if (dnat)
		return nat_rewrite_dest(skb, packet, &wire);
	if (tracking->is_reply && entry->flags & CONNTRACK_REVERSE_DNAT) {
		packet->answers = 1;
		result = reverse_translate(skb, packet, entry);
		packet->source = entry->translated;
		return result;
	}
	return 0;
}

static __always_inline int outbound(struct __sk_buff *skb, struct packet *packet)
{
	struct device_row *device = device_recall(packet, skb->ifindex);
	struct tracking tracking = {};
	struct conntrack_row *entry;
	struct target target = {};
	int result;

	if (!device)
		return DROP(packet, FILE_ENDPOINT, DROP_EP_NOT_READY);
	if (device->flags & DEVICE_SHAPED_EGRESS)
		skb->priority = shaper_class(device->endpoint_id);
	packet->source_identity = device->identity;
	packet->source_side = device_side(device);
	packet->endpoint_id = packet->source_endpoint_id = (__u16)device->endpoint_id;
	result = parse_l3(skb, packet);
	if (result < 0)
		return result;
	if (!source_mac_is(skb, device))
		return DROP(packet, FILE_ENDPOINT, INVALID_SOURCE_MAC);
	if (!packet->family || is_link_control(skb, packet))
		return TC_ACT_OK;
	if (!source_address_is(packet, device))
		return DROP(packet, FILE_ENDPOINT, INVALID_SOURCE_IP);
	result = parse_l4(skb, packet);
	if (result)
		return result;
	entry = conntrack_find(packet, &tracking);
	if (entry)
		result = outbound_established(skb, packet, &tracking, entry, &target);
	else
		result = outbound_new(skb, packet, &tracking, &target);
	if (result)
		return result;
	if (packet->masquerade)
		return masquerade(skb, packet);
	result = forward(skb, packet, target.local, target.remote);
	/* The host stack would refuse a source that is its own. */
	return result == TC_ACT_OK && packet->answers && !target.local ? forward_by_route(skb, packet) : result;
}

/* Ingress of the device: what the endpoint sends. */
SEC("tc")
int from_endpoint(struct __sk_buff *skb)
{
	struct packet *packet = packet_in(TRAFFIC_EGRESS, POLICY_EGRESS);
	int result;

	if (!packet)
		return TC_ACT_SHOT;
	packet_begin(packet);
	result = finish(skb, packet, outbound(skb, packet));
	return packet->reject ? reject(skb, packet, 1) : result;
}

/* Whose packet is it that the node's own stack sends to an endpoint? */
static __always_inline __u32 stack_source_identity(const struct packet *packet)
{
	struct endpoint_row *row = endpoint_recall(packet, &packet->source);

	if (row)
		return row->identity;
	/* A link-local source is the other end of the link, which is this node. */
	if (packet->family == 6 && (bpf_ntohl(packet->source.words[0]) & 0xffc00000) == 0xfe800000)
		return IDENTITY_HOST;
	return source_recall(packet);
}

static __always_inline int deliver(struct __sk_buff *skb, struct packet *packet)
{
	struct device_row *device = device_recall(packet, skb->ifindex);
	int result;

	if (!device)
		return DROP(packet, FILE_ENDPOINT, DROP_EP_NOT_READY);
	if (device->flags & DEVICE_SHAPED_INGRESS)
		skb->priority = shaper_class(device->endpoint_id);
	/* Another program of this node has let it in. The mark is lost between namespaces, so none comes from outside. */
	if (skb->mark == SHAPER_MARK) {
		skb->mark = 0;
		return TC_ACT_OK;
	}
	packet->dest_identity = device->identity;
	packet->endpoint_id = (__u16)device->endpoint_id;
	result = parse_l3(skb, packet);
	if (result < 0)
		return result;
	if (!packet->family || is_link_control(skb, packet))
		return TC_ACT_OK;
	result = parse_l4(skb, packet);
	if (result)
		return result;
	packet->source_identity = stack_source_identity(packet);
	if (packet->source_identity == IDENTITY_HOST)
		packet->source_side = SIDE_HOST;
	packet->dest_side = device_side(device);
	result = inbound_admit(skb, packet, device->endpoint_id);
	return result ? result : TC_ACT_OK;
}

/* Egress of the device: what the node's own stack sends to the endpoint. */
SEC("tc")
int to_endpoint(struct __sk_buff *skb)
{
	struct packet packet = {.traffic_direction = TRAFFIC_INGRESS, .policy_direction = POLICY_INGRESS};

	packet_begin(&packet);
	return finish(skb, &packet, deliver(skb, &packet));
}

char program_license[] SEC("license") = "Dual BSD/GPL";
