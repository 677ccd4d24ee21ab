/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Every map of the node, declared once; each object takes them by name from the node's pin directory. Those of joined
 * sockets, which not every kernel has, stand in lib/joined.h.
 * Keys, rows and sizes are those of abi.h. Hashes that are mostly empty grow on use (BPF_F_NO_PREALLOC);
 * conntrack, whose entries come and go with every flow, is allocated at once.
 */
#ifndef MESHLOG_MAPS_H
#define MESHLOG_MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, ENDPOINTS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct endpoint_key);
	__type(value, struct endpoint_row);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} endpoints SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, DEVICES_MAX);
	__type(key, struct device_key);
	__type(value, struct device_row);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} devices SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, IPCACHE_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct ipcache_key);
	__type(value, struct ipcache_row);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} ipcache SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, FACETS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct facet_key);
	__type(value, struct facet_row);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} facets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, POLICY_SUBJECTS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct policy_subject_key);
	__type(value, struct policy_subject_row);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} policy_subjects SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, POLICY_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct policy_key);
	__type(value, struct policy_row);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} policy SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SERVICES_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct service_key);
	__type(value, struct service_row);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} services SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, BACKENDS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct backend_key);
	__type(value, struct backend_row);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} backends SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAGLEV_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct maglev_key);
	__type(value, struct maglev_row);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} maglev SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, SOURCE_RANGES_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct source_range_key);
	__type(value, struct source_range_row);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} source_ranges SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, AFFINITY_BACKENDS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct affinity_backend_key);
	__type(value, struct affinity_backend_row);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} affinity_backends SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, AFFINITY_MAX);
	__type(key, struct affinity_key);
	__type(value, struct affinity_row);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} affinity SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32); /* struct node_state_key: BTF wants an integer for an array */
	__type(value, struct node_state_row);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} node_state SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32); /* struct tunnel_key */
	__type(value, struct tunnel_row);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tunnel SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, CONNTRACK_MAX);
	__type(key, struct conntrack_key);
	__type(value, struct conntrack_row);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} conntrack SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, NAT_MAX);
	__type(key, struct nat_key);
	__type(value, struct nat_row);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} nat SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, FRAGMENTS_MAX);
	__type(key, struct fragment_key);
	__type(value, struct fragment_row);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} fragments SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, SOCKET_FLOWS_MAX);
	__type(key, struct socket_flow_key);
	__type(value, struct socket_flow_row);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} socket_flows SEC(".maps");

/* With lib/joined.h; older programs of that object read it, so it is here for good. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32); /* struct socket_switch_key */
	__type(value, struct socket_switch_row);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} socket_switch SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, METRICS_MAX);
	__type(key, __u32); /* struct metrics_key */
	__type(value, struct metrics_row);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} metrics SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, NOTIFICATION_BYTES);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} notifications SEC(".maps");

/* lib/scratch.h */
struct scratch {
	__u64 words[18];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct scratch);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} scratch SEC(".maps");

/* lib/recent.h */
enum recent_size { RECENT_BITS = 9, RECENT_ROWS = 1 << RECENT_BITS };

struct recent_clock {
	__u64 tick; /* jiffies */
	__u64 now;  /* CLOCK_MONOTONIC, read in that tick; 0: not yet */
};

struct recent_endpoint {
	__u64 stamp;
	struct address address;
	__u32 is_known; /* 0: there is no such row */
	struct endpoint_row row;
};

struct recent_ipcache {
	__u64 stamp;
	struct address address;
	struct ipcache_row row;
	__u32 is_known;
	__u32 reserved;
};

struct recent_device {
	__u64 stamp;
	__u32 ifindex;
	__u32 is_known;
	struct device_row row;
};

struct recent_subject {
	__u64 stamp;
	__u32 identity;
	__u32 is_known;
	struct policy_subject_row row;
	__u32 reserved;
};

struct recent_hop {
	__u64 stamp;
	struct address source; /* all zero: of what the node itself sends */
	struct address dest;
	__u32 ifindex;
	__u8 dest_mac[6];
	__u8 source_mac[6];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32); /* struct row_changes_key */
	__type(value, struct row_changes_row);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} row_changes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct recent_clock);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} recent_clock SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, RECENT_ROWS);
	__type(key, __u32);
	__type(value, struct recent_endpoint);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} recent_endpoints SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, RECENT_ROWS);
	__type(key, __u32);
	__type(value, struct recent_ipcache);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} recent_ipcache SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, RECENT_ROWS);
	__type(key, __u32);
	__type(value, struct recent_device);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} recent_devices SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, RECENT_ROWS);
	__type(key, __u32);
	__type(value, struct recent_subject);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} recent_subjects SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, RECENT_ROWS);
	__type(key, __u32);
	__type(value, struct recent_hop);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} recent_hops SEC(".maps");

#endif /* MESHLOG_MAPS_H */
