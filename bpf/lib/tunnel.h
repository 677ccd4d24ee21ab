/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Packets between nodes inside VXLAN or Geneve, with the sender's identity as the VNI: into the tunnel and out of it.
 * What the tunnel's own header says beside the VNI, the device writes from the key that is set here.
 */
#ifndef MESHLOG_LIB_TUNNEL_H
#define MESHLOG_LIB_TUNNEL_H

#include "../maps.h"
#include "ipcache.h"
#include "packet.h"
#include "parse.h"

#define TUNNEL_TTL 64
#define TUNNEL_VNI_MAX 0xffffff

/* Without the fields that came with Linux 6.0, and that older headers lack. */
#define TUNNEL_KEY_BYTES (__builtin_offsetof(struct bpf_tunnel_key, tunnel_label) + sizeof(__u32))

/* ifindex of this node's tunnel device; 0: none. */
static __always_inline __u32 tunnel_ifindex(void)
{
	struct tunnel_key key = {.index = 0};
	struct tunnel_row *row = bpf_map_lookup_elem(&tunnel, &key);

	return row ? row->ifindex : 0;
}

/* What another node is to take the sender for. To it this node's host is a remote node, and so is this node where it
 * answers for a frontend. Which node it is, and which prefix, are found there by the address: their numbers do not fit,
 * and are each cluster's own. */
static __always_inline __u32 tunnel_vni(__u32 identity)
{
	if (identity == IDENTITY_HOST || identity == IDENTITY_UNKNOWN || identity_is_other_node(identity))
		return IDENTITY_REMOTE_NODE;
	return identity > TUNNEL_VNI_MAX ? IDENTITY_WORLD : identity;
}

/* Tells the tunnel device where the packet goes. 0, or a drop. */
STEP tunnel_set(struct __sk_buff *skb, struct packet *packet, const struct address *node)
{
	struct bpf_tunnel_key key = {};
	__u64 flags = 0;

	if (!packet || !node)
		return 0;
	key.tunnel_id = tunnel_vni(packet->source_identity);
	key.tunnel_ttl = TUNNEL_TTL;
	if (address_is_ipv4(node)) {
		key.remote_ipv4 = bpf_ntohl(node->words[3]);
		/* The packet within has its own checksum. Over IPv6 a receiver wants one outside too. */
		flags = BPF_F_ZERO_CSUM_TX;
	} else {
		for (int word = 0; word < 4; word++)
			key.remote_ipv6[word] = node->words[word];
		flags = BPF_F_TUNINFO_IPV6;
	}
	if (bpf_skb_set_tunnel_key(skb, &key, TUNNEL_KEY_BYTES, flags))
		return DROP(packet, FILE_OVERLAY, NO_TUNNEL_OR_ENCAPSULATION_ENDPOINT);
	return 0;
}

/* Whether a key is set already, and the node and the VNI in it: of the receiver on the way out, of the sender on the
 * way in. */
static __always_inline int tunnel_get(struct __sk_buff *skb, struct address *node, __u32 *vni)
{
	struct bpf_tunnel_key key = {};

	if (!bpf_skb_get_tunnel_key(skb, &key, TUNNEL_KEY_BYTES, 0)) {
		address_from_ipv4(node, bpf_htonl(key.remote_ipv4));
	} else {
		if (bpf_skb_get_tunnel_key(skb, &key, TUNNEL_KEY_BYTES, BPF_F_TUNINFO_IPV6))
			return 0;
		for (int word = 0; word < 4; word++)
			node->words[word] = key.remote_ipv6[word];
	}
	*vni = key.tunnel_id;
	return 1;
}

/* Whether the packet, or a segment that it will be cut into, is larger than what the tunnel carries in one piece. */
static __always_inline int tunnel_is_too_narrow(struct __sk_buff *skb, __u32 ifindex)
{
	__u32 mtu = 0;

	return bpf_check_mtu(skb, ifindex, &mtu, 0, BPF_MTU_CHK_SEGS) > 0;
}

#endif /* MESHLOG_LIB_TUNNEL_H */
