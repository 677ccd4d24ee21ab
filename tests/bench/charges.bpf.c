// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * What this machine charges for the single things that the programs are made of, each done CHARGED times in a run, on the
 * maps of the programs themselves. `empty` is the cost of a test run.
 */
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"
#include "maps.h"

enum charged { CHARGED = 8 };

/* The device that leads to 192.168.9.0/24. */
const volatile __u32 charged_ifindex = 0;

#define TIMES(step) step(0) step(1) step(2) step(3) step(4) step(5) step(6) step(7)
#define PROGRAM(name, begin, step)                                                                                     \
	SEC("tc") int name(struct __sk_buff *skb)                                                                      \
	{                                                                                                              \
		__u64 sum = 0;                                                                                         \
		begin TIMES(step) return sum == 42;                                                                    \
	}
#define MAPPED(number) {{0, 0, __bpf_constant_htonl(0xffff), number}}

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

__noinline int nothing(struct __sk_buff *skb, __u32 number)
{
	return skb->len ^ number;
}

static __always_inline void flow_key(struct conntrack_key *key, __u32 first, __u32 number)
{
	struct conntrack_key made = {.low = MAPPED(first), .high = MAPPED(number), .protocol = IPPROTO_TCP};

	*key = made;
}

static __always_inline void flow_write(__u32 first, __u32 number)
{
	struct conntrack_row row = {};
	struct conntrack_key key;

	flow_key(&key, first, number);
	bpf_map_update_elem(&conntrack, &key, &row, BPF_ANY);
}

/* Rows for all that is looked up. */
SEC("tc")
int fill(struct __sk_buff *skb)
{
	for (__u32 number = 0; number < CHARGED; number++) {
		struct endpoint_key endpoint = {.address = MAPPED(number)};
		struct ipcache_key ipv4 = {.prefix_length = 128, .address = MAPPED(number)};
		struct ipcache_key ipv6 = {.prefix_length = 128, .address = {{1, 2, 3, number}}};
		struct endpoint_row at = {};
		struct ipcache_row node = {};

		bpf_map_update_elem(&endpoints, &endpoint, &at, BPF_ANY);
		bpf_map_update_elem(&ipcache, &ipv4, &node, BPF_ANY);
		bpf_map_update_elem(&ipcache, &ipv6, &node, BPF_ANY);
		flow_write(7, number);
	}
	return 0;
}

#define CALL(number) sum += nothing(skb, number);
PROGRAM(call, , CALL)

#define FIND(map, key) ({                                                                                              \
	__u32 *found = bpf_map_lookup_elem(&map, &key);                                                                \
	if (found)                                                                                                     \
		sum += *found;                                                                                         \
})
#define ARRAY(number) ({ __u32 key = number; FIND(metrics, key); });
PROGRAM(array_lookup, , ARRAY)

#define HASH(number) ({ struct endpoint_key key = {.address = MAPPED(number)}; FIND(endpoints, key); });
PROGRAM(hash_lookup, , HASH)

#define FLOW(number) ({ struct conntrack_key key; flow_key(&key, 7, number); FIND(conntrack, key); });
PROGRAM(flow_lookup, , FLOW)

#define FLOW_MISSED(number) ({ struct conntrack_key key; flow_key(&key, 8, number); FIND(conntrack, key); });
PROGRAM(flow_missed, , FLOW_MISSED)

#define FLOW_NEW(number) flow_write(begun, number);
PROGRAM(flow_new, __u32 begun = (__u32)bpf_ktime_get_ns() | 16;, FLOW_NEW)

#define PREFIX4(number) ({                                                                                             \
	struct ipcache_key key = {.prefix_length = 128, .address = MAPPED(number)};                                    \
	FIND(ipcache, key);                                                                                            \
});
PROGRAM(prefix_lookup_ipv4, , PREFIX4)

#define PREFIX6(number) ({                                                                                             \
	struct ipcache_key key = {.prefix_length = 128, .address = {{1, 2, 3, number}}};                               \
	FIND(ipcache, key);                                                                                            \
});
PROGRAM(prefix_lookup_ipv6, , PREFIX6)

#define CLOCK(number) sum += bpf_ktime_get_coarse_ns();
PROGRAM(clock, , CLOCK)

#define DIFFERENCE(number) ({                                                                                          \
	__be32 from[4] = {number, 1, 2, 3}, to[4] = {4, number, 5, 6};                                                 \
	sum += bpf_csum_diff(from, sizeof(from), to, sizeof(to), 0);                                                   \
});
PROGRAM(checksum_difference, , DIFFERENCE)

#define CORRECT(number) sum += bpf_l4_csum_replace(skb, 50, number, 5, BPF_F_PSEUDO_HDR | 4);
PROGRAM(checksum_correction, , CORRECT)

#define NEIGHBOUR(number) ({                                                                                           \
	struct bpf_redir_neigh next_hop = {.nh_family = 2, .ipv4_nh = number};                                         \
	sum += bpf_redirect_neigh(5, &next_hop, sizeof(next_hop), 0);                                                  \
});
PROGRAM(redirect, , NEIGHBOUR)

/* To 192.168.9.2, by the routes of the caller's namespace. */
#define ROUTE(number) ({                                                                                               \
	struct bpf_fib_lookup lookup = {                                                                               \
		.family = 2,                                                                                           \
		.ifindex = charged_ifindex,                                                                            \
		.ipv4_dst = __bpf_constant_htonl(0xc0a80902),                                                          \
	};                                                                                                             \
	sum += bpf_fib_lookup(skb, &lookup, sizeof(lookup), BPF_FIB_LOOKUP_OUTPUT);                                    \
});
PROGRAM(route_lookup, , ROUTE)

char program_license[] SEC("license") = "Dual BSD/GPL";
