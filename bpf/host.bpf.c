// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The programs on the node's device to the others. What is not for a local endpoint is the host stack's: unseen, or,
 * where host policies are in force (from_network_guarded and to_network), judged. Its answers to those who asked a
 * frontend leave with the frontend's address (to_network, to_network_answering).
 */
#include <linux/bpf.h>
#include <linux/if_packet.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"
#include "config.h"
#include "lib/entering.h"
#include "lib/firewall.h"
#include "lib/inbound.h"
#include "lib/ipcache.h"
#include "lib/masquerade.h"
#include "lib/nodeport.h"
#include "lib/notify.h"
#include "lib/parse.h"
#include "lib/reject.h"
#include "lib/scratch.h"

/* From this node itself to the network. */
static __always_inline int outgoing(struct __sk_buff *skb, struct packet *packet, int parsed)
{
	int result = firewall_parse(skb, packet, parsed);

	if (result)
		return result < 0 ? result : TC_ACT_OK;
	/* An endpoint's, under the node's address: it has been judged as the endpoint's. */
	if (is_masqueraded(skb, packet))
		return TC_ACT_OK;
	result = nodeport_outgoing(skb, packet);
	if (result)
		return result < 0 ? result : TC_ACT_OK;
	packet->dest_identity = ipcache_identity(&packet->dest);
	return firewall_out(skb, packet);
}

static __always_inline int inbound(struct __sk_buff *skb, int is_guarded)
{
	struct packet *packet = packet_in(TRAFFIC_INGRESS, POLICY_INGRESS);
	struct endpoint_row *row;
	int parsed, result = 0;

	if (skb->pkt_type != PACKET_HOST)
		return TC_ACT_OK;
	if (!packet)
		return TC_ACT_SHOT;
	packet_begin(packet);
	parsed = parse_l3(skb, packet);
	row = local_endpoint(packet);
	if (row)
		return finish(skb, packet, admit(skb, packet, row, parsed));
	if (!parsed && !parse_l4(skb, packet))
		result = nodeport_receive(skb, packet);
	if (result) {
		result = finish(skb, packet, result);
		return packet->reject ? reject(skb, packet, 0) : result;
	}
	/* What is the host stack's is not ours to count, unless host policies are in force. */
	if (!is_guarded || !packet->family || !is_of_host(packet, &packet->dest))
		return TC_ACT_OK;
	packet->source_identity = ipcache_identity(&packet->source);
	return finish(skb, packet, firewall_in(skb, packet, parsed));
}

/* Ingress of the underlay device. */
SEC("tc")
int from_network(struct __sk_buff *skb)
{
	return inbound(skb, 0);
}

/* The same, where host policies are in force. */
SEC("tc")
int from_network_guarded(struct __sk_buff *skb)
{
	return inbound(skb, 1);
}

/* Egress of the underlay device, where host policies are in force. */
SEC("tc")
int to_network(struct __sk_buff *skb)
{
	struct packet *packet = packet_in(TRAFFIC_EGRESS, POLICY_EGRESS);
	int parsed;

	if (!packet)
		return TC_ACT_SHOT;
	parsed = parse_l3(skb, packet);
	if (!packet->family || !is_of_host(packet, &packet->source))
		return TC_ACT_OK;
	packet_begin(packet);
	return finish(skb, packet, outgoing(skb, packet, parsed));
}

/* The same where they are not, and a frontend has a backend in the node's own network: its answers take the frontend's
 * address, everything else passes unseen. */
SEC("tc")
int to_network_answering(struct __sk_buff *skb)
{
	struct packet *packet = packet_in(TRAFFIC_EGRESS, POLICY_EGRESS);
	int result;

	if (!packet)
		return TC_ACT_SHOT;
	if (parse_l3(skb, packet) || !packet->family || !is_of_host(packet, &packet->source))
		return TC_ACT_OK;
	packet_begin(packet);
	if (parse_l4(skb, packet))
		return TC_ACT_OK;
	result = nodeport_outgoing(skb, packet);
	return result < 0 ? finish(skb, packet, result) : TC_ACT_OK;
}

char program_license[] SEC("license") = "Dual BSD/GPL";
