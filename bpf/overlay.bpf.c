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
#include "lib/entering.h"
#include "lib/firewall.h"
#include "lib/inbound.h"
#include "lib/nodeport.h"
#include "lib/notify.h"
#include "lib/reject.h"
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
	/* Prefixes and nodes have identities of their own in each cluster; a node says only that it is one. */
	if (vni == IDENTITY_WORLD || (identity_is_other_node(vni) && identity_is_other_node(source->identity)))
		packet->source_identity = source->identity;
	return 0;
}

/* `node`: filled with the sending node. */
static __always_inline int unwrap(struct __sk_buff *skb, struct packet *packet, struct address *node)
{
	struct endpoint_row *row;
	int result;
	__u32 vni;

	if (!tunnel_get(skb, node, &vni))
		return DROP(packet, FILE_OVERLAY, INVALID_VNI);
	packet->source_identity = vni;
	result = parse_l3(skb, packet);
	if (result < 0)
		return result;
	if (!packet->family)
		return DROP(packet, FILE_OVERLAY, UNSUPPORTED_L3_PROTOCOL);
	result = sender_judge(packet, node, vni);
	if (result)
		return result;
	row = local_endpoint(packet);
	if (row)
		return admit(skb, packet, row, 0);
	if (!parse_l4(skb, packet))
		result = nodeport_receive(skb, packet);
	if (result)
		return result;
	if (!endpoint_find(&packet->dest))
		return DROP(packet, FILE_OVERLAY, UNKNOWN_L3_TARGET_ADDRESS);
	result = firewall_is_up() ? firewall_in(skb, packet, 0) : 0;
	if (result)
		return result;
	/* The frame within was for no device in particular. */
	bpf_skb_change_type(skb, PACKET_HOST);
	return TC_ACT_OK;
}

static __always_inline int receive(struct __sk_buff *skb)
{
	struct packet *packet = packet_in(TRAFFIC_INGRESS, POLICY_INGRESS);
	struct address node = {};
	int result;

	if (!packet)
		return TC_ACT_SHOT;
	packet_begin(packet);
	result = finish(skb, packet, unwrap(skb, packet, &node));
	if (packet->reject == REJECT_NOT)
		return result;
	/* Back into the tunnel, in this node's name. */
	packet->source_identity = IDENTITY_HOST;
	return tunnel_set(skb, packet, &node) ? TC_ACT_SHOT : reject(skb, packet, 0);
}

/* Ingress of the tunnel device: what other nodes send, unwrapped. */
SEC("tc")
int from_overlay(struct __sk_buff *skb)
{
	return receive(skb);
}

/* What the node itself sends: an answer for a frontend takes its address; the rest is judged where host policies are in
 * force. 0, or a drop. */
static __always_inline int own_judge(struct __sk_buff *skb, struct packet *packet)
{
	int result = firewall_parse(skb, packet, 0);

	/* Whatever it is, without host policies the node may send it. */
	if (result)
		return result < 0 && firewall_is_up() ? result : 0;
	result = nodeport_outgoing(skb, packet);
	if (result)
		return result < 0 ? result : 0;
	return firewall_is_up() ? firewall_out(skb, packet) : 0;
}

static __always_inline int wrap(struct __sk_buff *skb, struct packet *packet)
{
	struct ipcache_row *remote;
	struct endpoint_row *row;
	struct address node;
	int result;

	result = parse_l3(skb, packet);
	if (result < 0)
		return result;
	/* The device loses what has no key; nobody is meant to hear it. */
	if (!packet->family || (packet->family == 6 && address_is_link_local_or_multicast(&packet->dest)))
		return TC_ACT_OK;
	remote = ipcache_find(&packet->dest);
	if (!remote || !(remote->flags & IPCACHE_TUNNEL))
		return DROP(packet, FILE_OVERLAY, NO_TUNNEL_OR_ENCAPSULATION_ENDPOINT);
	node = remote->node;
	packet->dest_identity = remote->identity;
	row = endpoint_find(&packet->source);
	packet->source_identity = row ? row->identity : ipcache_identity(&packet->source);
	if (packet->source_identity == IDENTITY_HOST) {
		result = own_judge(skb, packet);
		if (result)
			return result;
	}
	result = tunnel_set(skb, packet, &node);
	return result ? result : TC_ACT_OK;
}

/* Egress of the tunnel device. */
SEC("tc")
int to_overlay(struct __sk_buff *skb)
{
	struct packet *packet;
	struct address node;
	__u32 vni;

	/* What the programs of endpoints send has its key already. */
	if (tunnel_get(skb, &node, &vni))
		return TC_ACT_OK;
	packet = packet_in(TRAFFIC_EGRESS, POLICY_EGRESS);
	if (!packet)
		return TC_ACT_SHOT;
	packet_begin(packet);
	return finish(skb, packet, wrap(skb, packet));
}

char program_license[] SEC("license") = "Dual BSD/GPL";
