// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * A source of datagrams and their sinks. The source is run on live frames, whose pages come back as the path has left
 * them; hence it writes each whole. A sink counts what comes of them, and lets all else pass.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

enum frame { FRAME_BYTES = 64 };

struct frame_row {
	__u64 words[FRAME_BYTES / 8];
};

/* What is sent: Ethernet, IPv4 without options, UDP without a checksum. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct frame_row);
} frame SEC(".maps");

/* Frames sent, and frames that came to a sink. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} counted SEC(".maps");

enum counter { COUNTER_SENT = 0, COUNTER_ARRIVED = 1 };

/* The device to send by, and whether each frame is from another port than the one before. */
const volatile __u32 frames_ifindex = 0;
const volatile __u32 frames_renew = 0;

static __always_inline __u64 count_up(__u32 counter)
{
	__u64 *count = bpf_map_lookup_elem(&counted, &counter);

	return count ? __sync_fetch_and_add(count, 1) : 0;
}

SEC("xdp")
int source(struct xdp_md *xdp)
{
	void *data = (void *)(long)xdp->data, *end = (void *)(long)xdp->data_end;
	struct udphdr *udp = data + sizeof(struct ethhdr) + sizeof(struct iphdr);
	__u32 first = 0;
	struct frame_row *row = bpf_map_lookup_elem(&frame, &first);

	if (!row || data + FRAME_BYTES > end)
		return XDP_ABORTED;
	__builtin_memcpy(data, row, FRAME_BYTES);
	if (frames_renew)
		udp->source = bpf_htons((__u16)(bpf_ntohs(udp->source) + count_up(COUNTER_SENT)));
	return (int)bpf_redirect(frames_ifindex, 0);
}

static __always_inline int is_one(void *data, void *end)
{
	struct ethhdr *ethernet = data;
	struct iphdr *header = (void *)(ethernet + 1);

	if ((void *)(header + 1) > end || ethernet->h_proto != bpf_htons(ETH_P_IP) || header->protocol != IPPROTO_UDP)
		return 0;
	count_up(COUNTER_ARRIVED);
	return 1;
}

SEC("tc")
int sink(struct __sk_buff *skb)
{
	return is_one((void *)(long)skb->data, (void *)(long)skb->data_end) ? TC_ACT_SHOT : TC_ACT_OK;
}

SEC("xdp")
int sink_xdp(struct xdp_md *xdp)
{
	return is_one((void *)(long)xdp->data, (void *)(long)xdp->data_end) ? XDP_DROP : XDP_PASS;
}

char program_license[] SEC("license") = "Dual BSD/GPL";
