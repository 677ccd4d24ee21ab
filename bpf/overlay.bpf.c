// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The programs on the node's tunnel device. What comes out of the tunnel was judged by the sending node's egress policy
 * and says in its VNI who sent it; what the host stack sends into it is told here where to go.
 */
#include <linux/bpf.h>
#include <linux/if_packet.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"
#include "config.h"
#include "lib/firewall.h"
#include "lib/forward.h"
#include "lib/inbound.h"
#include "lib/ipcache.h"
#include "lib/nodeport.h"
#include "lib/notify.h"
#include "lib/parse.h"
#include "lib/scratch.h"
#include "lib/tunnel.h"

/*
 * Whether the VNI can be believed: only of a node that the mesh knows, and not about an address that another node has.
 * An address that nobody is known to have belongs to an endpoint whose record is still under way.
 */
static __always_inline int sender_judge(struct packet *packet, const struct address *node, __u32 vni)
{
	struct ipcache_row *source;

	if (!identity_is_other_node(ipcache_identity(node)))
		return DROP(packet, FILE_OVERLAY, UNKNOWN_SENDER);
	if (vni == IDENTITY_UNKNOWN || vni == IDENTITY_HOST)
		return DROP(packet, FILE_OVERLAY, INVALID_IDENTITY);
	source = ipcache_find(&packet->source);
	if (!source)
		return 0;
	if (source->identity == IDENTITY_HOST || (source->flags & IPCACHE_TUNNEL && !address_equal(&source->node, node)))
		return DROP(packet, FILE_OVERLAY, INVALID_SOURCE_IP);
	/* Prefixes have identities of their own on each node, and a node does not say that it has an API server. */
	if (vni == IDENTITY_WORLD || (vni == IDENTITY_REMOTE_NODE && identity_is_other_node(source->identity)))
		packet->source_identity = source->identity;
	return 0;
}

static __always_inline int receive(struct __sk_buff *skb, struct packet *packet)
{
	struct endpoint_row *row;
	struct address node;
	int result;
	__u32 vni;

	if (!tunnel_get(skb, &node, &vni))
		return DROP(packet, FILE_OVERLAY, INVALID_VNI);
	packet->source_identity = vni;
	result = parse_l3(skb, packet);
	if (result < 0)
		return result;
	if (!packet->family)
		return DROP(packet, FILE_OVERLAY, UNSUPPORTED_L3_PROTOCOL);
	result = sender_judge(packet, &node, vni);
	if (result)
		return result;
	row = endpoint_find(&packet->dest);
	if (!row)
		return DROP(packet, FILE_OVERLAY, UNKNOWN_L3_TARGET_ADDRESS);
	packet->dest_identity = row->identity;
	packet->endpoint_id = (__u16)row->endpoint_id;
	if (row->flags & ENDPOINT_HOST) {
		result = parse_l4(skb, packet) ? 0 : nodeport_receive(skb, packet);
		if (!result && firewall_is_up())
			result = firewall_in(skb, packet, 0);
		if (result)
			return result;
		/* The frame within was for no device in particular. */
		bpf_skb_change_type(skb, PACKET_HOST);
		return TC_ACT_OK;
	}
	result = parse_l4(skb, packet);
	if (result)
		return result;
	result = inbound_admit(skb, packet, row->endpoint_id);
	return result ? result : forward_to_endpoint(skb, packet, row);
}

/* Ingress of the tunnel device: what other nodes send, unwrapped. */
SEC("tc")
int from_overlay(struct __sk_buff *skb)
{
	struct packet *packet = packet_in(TRAFFIC_INGRESS, POLICY_INGRESS);

	if (!packet)
		return TC_ACT_SHOT;
	packet_begin(packet);
	return finish(skb, packet, receive(skb, packet));
}

/* Whose packet is it that the host stack sends into the tunnel? */
static __always_inline __u32 stack_source_identity(const struct packet *packet)
{
	struct endpoint_row *row = endpoint_find(&packet->source);

	return row ? row->identity : ipcache_identity(&packet->source);
}

static __always_inline int wrap(struct __sk_buff *skb, struct packet *packet)
{
	struct ipcache_row *remote;
	int result;

	result = parse_l3(skb, packet);
	if (result < 0)
		return result;
	/* The device loses what has no key; nobody is meant to hear it. */
	if (!packet->family || (packet->family == 6 && address_is_link_local_or_multicast(&packet->dest)))
		return TC_ACT_OK;
	packet->source_identity = stack_source_identity(packet);
	remote = ipcache_find(&packet->dest);
	if (!remote || !(remote->flags & IPCACHE_TUNNEL))
		return DROP(packet, FILE_OVERLAY, NO_TUNNEL_OR_ENCAPSULATION_ENDPOINT);
	packet->dest_identity = remote->identity;
	if (packet->source_identity == IDENTITY_HOST && firewall_is_up()) {
		result = firewall_parse(skb, packet, 0);
		if (!result)
			result = firewall_out(skb, packet);
		if (result < 0)
			return result;
	}
	result = tunnel_set(skb, packet, &remote->node);
	return result ? result : TC_ACT_OK;
}

/* Egress of the tunnel device. What the programs of endpoints send has its key already. */
SEC("tc")
int to_overlay(struct __sk_buff *skb)
{
	struct packet packet = {.traffic_direction = TRAFFIC_EGRESS, .policy_direction = POLICY_EGRESS};
	struct address node;
	__u32 vni;

	if (tunnel_get(skb, &node, &vni))
		return TC_ACT_OK;
	packet_begin(&packet);
	return finish(skb, &packet, wrap(skb, &packet));
}

char program_license[] SEC("license") = "Dual BSD/GPL";
