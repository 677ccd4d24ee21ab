// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* The cost of a test run itself: a program that does nothing. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("tc")
int empty(struct __sk_buff *skb)
{
	return 0;
}

SEC("xdp")
int empty_xdp(struct xdp_md *xdp)
{
	return XDP_PASS;
}

char program_license[] SEC("license") = "Dual BSD/GPL";
