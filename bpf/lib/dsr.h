/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Direct server return: the node that a client asked tells the backend's node in the packet which frontend it was, and that
 * node answers the client itself. In IPv4 an option, in IPv6 a destination option that others skip; both with the
 * type numbers that Cilium has taken. TCP carries it in what opens a connection, other protocols in every packet.
 */
#ifndef MESHLOG_LIB_DSR_H
#define MESHLOG_LIB_DSR_H

#include "../config.h"
#include "../maps.h"
#include "conntrack.h"
#include "ipcache.h"
#include "packet.h"
#include "parse.h"
#include "reject.h"
#include "service.h"

struct dsr_ipv4 {
	__u8 type;
	__u8 length;
	__be16 port;
	__be32 address;
};

struct dsr_ipv6 {
	__u8 next_header;
	__u8 words; /* of 8 bytes, without the first */
	__u8 type;
	__u8 length; /* of what follows */
	__be32 address[4];
	__be16 port;
	__be16 reserved;
};

enum dsr_type { DSR_IPV4_TYPE = 0x9a, DSR_IPV6_TYPE = 0x1b };

/* What the kernel moves stays summed up: the header's own checksum makes up for an IPv4 option. */
static __always_inline long dsr_make_room(struct __sk_buff *skb, __u32 bytes)
{
	return bpf_skb_adjust_room(skb, (int)bytes, BPF_ADJ_ROOM_NET, 0);
}

static __noinline int dsr_put_ipv4(struct __sk_buff *skb, struct packet *packet, const struct address_port *frontend)
{
	struct {
		struct iphdr header;
		struct dsr_ipv4 option;
	} put;

	if (dsr_make_room(skb, sizeof(put.option)) ||
	    bpf_skb_load_bytes(skb, L3_OFFSET, &put.header, sizeof(put.header)))
		return DROP(packet, FILE_DSR, ERROR_WRITING_TO_PACKET);
	put.header.ihl += sizeof(put.option) / 4;
	put.header.tot_len = bpf_htons((__u16)(bpf_ntohs(put.header.tot_len) + sizeof(put.option)));
	put.header.check = 0;
	put.option.type = DSR_IPV4_TYPE;
	put.option.length = sizeof(put.option);
	put.option.port = frontend->port;
	put.option.address = frontend->address.words[3];
	put.header.check = (__sum16)~checksum_fold(bpf_csum_diff(0, 0, (__be32 *)&put, sizeof(put), 0));
	if (bpf_skb_store_bytes(skb, L3_OFFSET, &put, sizeof(put), 0))
		return DROP(packet, FILE_DSR, ERROR_WRITING_TO_PACKET);
	packet->l4_offset += sizeof(put.option);
	packet->l3_end += sizeof(put.option);
	return 0;
}

static __noinline int dsr_put_ipv6(struct __sk_buff *skb, struct packet *packet, const struct address_port *frontend)
{
	struct dsr_ipv6 option = {.words = sizeof(option) / 8 - 1, .type = DSR_IPV6_TYPE, .length = sizeof(option) - 4};
	__u32 at = L3_OFFSET + __builtin_offsetof(struct ipv6hdr, payload_len);
	struct {
		__be16 payload_len;
		__u8 next_header;
		__u8 hop_limit;
	} put;

	if (dsr_make_room(skb, sizeof(option)) || bpf_skb_load_bytes(skb, at, &put, sizeof(put)))
		return DROP(packet, FILE_DSR, ERROR_WRITING_TO_PACKET);
	option.next_header = put.next_header;
	for (int word = 0; word < 4; word++)
		option.address[word] = frontend->address.words[word];
	option.port = frontend->port;
	put.payload_len = bpf_htons((__u16)(bpf_ntohs(put.payload_len) + sizeof(option)));
	put.next_header = IPPROTO_DSTOPTS;
	if (bpf_skb_store_bytes(skb, at, &put, sizeof(put), BPF_F_RECOMPUTE_CSUM) ||
	    bpf_skb_store_bytes(skb, L3_OFFSET + sizeof(struct ipv6hdr), &option, sizeof(option), BPF_F_RECOMPUTE_CSUM))
		return DROP(packet, FILE_DSR, ERROR_WRITING_TO_PACKET);
	packet->l4_offset += sizeof(option);
	packet->l3_end += sizeof(option);
	return 0;
}

/* Before the packet is rewritten: would it still fit with the option? 0, or a drop that tells the client. */
STEP dsr_fits(struct __sk_buff *skb, struct packet *packet)
{
	int bytes = packet && packet->family == 4 ? sizeof(struct dsr_ipv4) : sizeof(struct dsr_ipv6);
	__u32 mtu = 0;

	if (!packet || (packet->protocol == IPPROTO_TCP && !is_tcp_start(packet)))
		return 0;
	if (bpf_check_mtu(skb, config_underlay_ifindex, &mtu, bytes, 0) != BPF_MTU_CHK_RET_FRAG_NEEDED)
		return 0;
	packet->reject = REJECT_TOO_BIG;
	packet->mtu = mtu - (__u32)bytes;
	return DROP(packet, FILE_DSR, FRAGMENTATION_NEEDED);
}

/* Puts the frontend into a packet that the backend's node needs it of. 0, or a drop. */
STEP dsr_put(struct __sk_buff *skb, struct packet *packet, const struct address_port *frontend)
{
	if (!packet || !frontend || (packet->protocol == IPPROTO_TCP && !is_tcp_start(packet)))
		return 0;
	return packet->family == 4 ? dsr_put_ipv4(skb, packet, frontend) : dsr_put_ipv6(skb, packet, frontend);
}

static __always_inline int dsr_read(struct __sk_buff *skb, const struct packet *packet, struct address_port *frontend)
{
	struct dsr_ipv4 ipv4;
	struct dsr_ipv6 ipv6;
	__u32 at = plain_l4_offset(packet);

	if (packet->family == 4) {
		if (packet->l4_offset != at + sizeof(ipv4) || bpf_skb_load_bytes(skb, at, &ipv4, sizeof(ipv4)) ||
		    ipv4.type != DSR_IPV4_TYPE || ipv4.length != sizeof(ipv4))
			return 0;
		address_from_ipv4(&frontend->address, ipv4.address);
		frontend->port = ipv4.port;
		return 1;
	}
	if (packet->l4_offset != at + sizeof(ipv6) || bpf_skb_load_bytes(skb, at, &ipv6, sizeof(ipv6)) ||
	    ipv6.type != DSR_IPV6_TYPE || ipv6.length != sizeof(ipv6) - 4)
		return 0;
	for (int word = 0; word < 4; word++)
		frontend->address.words[word] = ipv6.address[word];
	frontend->port = ipv6.port;
	return 1;
}

static __always_inline int is_served_directly(const struct service_key *key, __u32 flags)
{
	struct service_row *service = bpf_map_lookup_elem(&services, key);

	return service && (service->flags & flags) == flags;
}

/* 1: another node sent the packet on for `frontend`. Only for one that is served so: anyone may write an option. The
 * ports of other nodes have no rows here, but this node's own of the same number has. */
STEP dsr_find(struct __sk_buff *skb, const struct packet *packet, struct address_port *frontend)
{
	struct service_key key = {.scope = SERVICE_SCOPE_EXTERNAL};

	if (!packet || !frontend || packet->fragment == FRAGMENT_LATER || !dsr_read(skb, packet, frontend))
		return 0;
	key.address = frontend->address;
	key.port = frontend->port;
	key.protocol = packet->protocol;
	if (is_served_directly(&key, SERVICE_DSR))
		return 1;
	if (!identity_is_other_node(ipcache_identity(&key.address)))
		return 0;
	node_address(packet->family, &key.address);
	return is_served_directly(&key, SERVICE_DSR | SERVICE_NODE_PORT);
}

#endif /* MESHLOG_LIB_DSR_H */
