// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The programs of the tunnel device for packets that are only tried (BPF_PROG_TEST_RUN): a trial carries no key of a
 * tunnel, so one is set from skb->cb first. Never attached.
 */
#include "overlay.bpf.c"

/* struct bpf_tunnel_key with the fields for the near end, which headers older than Linux 6.0 lack. */
struct rehearsed_key {
	__u32 tunnel_id;
	__u32 remote[4];
	__u8 tunnel_tos;
	__u8 tunnel_ttl;
	__u16 tunnel_flags;
	__u32 tunnel_label;
	__u32 local[4]; /* IPv4: the first word, in host order */
};

/* cb[0..3]: the address of the sending node; cb[4]: the VNI. What is set as the near end, from_overlay finds as the
 * sender. 1: it is set. A step of its own, since the program behind it leaves it no room on the stack. */
STEP rehearsed_key_set(struct __sk_buff *skb)
{
	struct rehearsed_key key = {.tunnel_id = skb->cb[4], .tunnel_ttl = TUNNEL_TTL};
	struct address node = {.words = {skb->cb[0], skb->cb[1], skb->cb[2], skb->cb[3]}};
	int is_ipv4 = address_is_ipv4(&node);

	for (int word = 0; word < 4; word++)
		key.local[word] = is_ipv4 ? 0 : node.words[word];
	if (is_ipv4)
		key.local[0] = bpf_ntohl(node.words[3]);
	return !bpf_skb_set_tunnel_key(skb, (struct bpf_tunnel_key *)&key, sizeof(key), is_ipv4 ? 0 : BPF_F_TUNINFO_IPV6);
}

SEC("tc")
int from_overlay_rehearsed(struct __sk_buff *skb)
{
	return rehearsed_key_set(skb) ? receive(skb) : TC_ACT_UNSPEC;
}
