/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Rows that this CPU has found a moment ago, and the clock. A lookup in a hash or a trie costs as much as thirty in an
 * array, so the hot paths keep a copy of what they found, each in the one place that its key gives.
 *
 * A copy counts only while its stamp is the packet's: the same tick of the kernel's clock, and no row written since by
 * the agent (abi.h, row_changes); while rows are being written none counts. So what a packet sees is what a lookup
 * would have given it, and never older than a tick even where someone else wrote the row.
 *
 * A copy stands until the next row of its kind is recalled: a caller holds one of each kind at a time.
 */
#ifndef MESHLOG_LIB_RECENT_H
#define MESHLOG_LIB_RECENT_H

#include "../maps.h"
#include "ipcache.h"
#include "packet.h"

#define RECENT_CHANGES_BITS 20 /* more writes than this within a tick are none that an agent can do */

/* Reads what every later step needs once: the clock, the epoch, and which copies count. */
static __always_inline void packet_begin(struct packet *packet)
{
	__u32 first = 0;
	struct node_state_row *state = bpf_map_lookup_elem(&node_state, &first);
	struct row_changes_row *changes = bpf_map_lookup_elem(&row_changes, &first);
	struct recent_clock *clock = bpf_map_lookup_elem(&recent_clock, &first);
	__u64 tick = bpf_jiffies64();

	packet->policy_epoch = state ? state->policy_epoch : 0;
	if (!changes || !clock)
		return;
	if (clock->tick != tick || !clock->now) {
		clock->tick = tick;
		clock->now = bpf_ktime_get_coarse_ns();
	}
	packet->now = clock->now;
	if (!(changes->count & 1))
		packet->stamp = tick << RECENT_CHANGES_BITS | (changes->count & ((1 << RECENT_CHANGES_BITS) - 1));
}

static __always_inline __u32 recent_place(__u32 number)
{
	return number * 0x9e3779b1 >> (32 - RECENT_BITS);
}

static __always_inline __u32 address_place(const struct address *address)
{
	return recent_place(address->words[0] * 31 ^ address->words[1] * 17 ^ address->words[2] * 7 ^ address->words[3]);
}

static __always_inline int stamp_counts(const struct packet *packet, __u64 stamp)
{
	return stamp == packet->stamp && stamp;
}

STEP recent_endpoint_find(const struct packet *packet, const struct address *address, struct recent_endpoint *recent)
{
	struct endpoint_row *row;

	if (!packet || !address || !recent)
		return 0;
	row = endpoint_find(address);
	recent->stamp = packet->stamp;
	recent->address = *address;
	recent->is_known = !!row;
	if (row)
		recent->row = *row;
	return 0;
}

/* As endpoint_find(). */
static __always_inline struct endpoint_row *endpoint_recall(const struct packet *packet, const struct address *address)
{
	__u32 place = address_place(address);
	struct recent_endpoint *recent = bpf_map_lookup_elem(&recent_endpoints, &place);

	if (!recent)
		return 0;
	if (!stamp_counts(packet, recent->stamp) || !address_equal(address, &recent->address))
		recent_endpoint_find(packet, address, recent);
	return recent->is_known ? &recent->row : 0;
}

STEP recent_ipcache_find(const struct packet *packet, const struct address *address, struct recent_ipcache *recent)
{
	struct ipcache_row *row;

	if (!packet || !address || !recent)
		return 0;
	row = ipcache_find(address);
	recent->stamp = packet->stamp;
	recent->address = *address;
	recent->is_known = !!row;
	if (row)
		recent->row = *row;
	return 0;
}

/* As ipcache_find(). */
static __always_inline struct ipcache_row *ipcache_recall(const struct packet *packet, const struct address *address)
{
	__u32 place = address_place(address);
	struct recent_ipcache *recent = bpf_map_lookup_elem(&recent_ipcache, &place);

	if (!recent)
		return 0;
	if (!stamp_counts(packet, recent->stamp) || !address_equal(address, &recent->address))
		recent_ipcache_find(packet, address, recent);
	return recent->is_known ? &recent->row : 0;
}

static __always_inline __u32 source_recall(const struct packet *packet)
{
	struct ipcache_row *row = ipcache_recall(packet, &packet->source);

	return row ? row->identity : IDENTITY_WORLD;
}

/* Whose packet is it that came to this node? Out of the tunnel it is known; on the underlay the address tells. */
static __always_inline void source_identify(struct packet *packet)
{
	if (packet->source_identity == IDENTITY_UNKNOWN)
		packet->source_identity = source_recall(packet);
}

STEP recent_device_find(const struct packet *packet, __u32 ifindex, struct recent_device *recent)
{
	struct device_key key = {.ifindex = ifindex};
	struct device_row *row;

	if (!packet || !recent)
		return 0;
	row = bpf_map_lookup_elem(&devices, &key);
	recent->stamp = packet->stamp;
	recent->ifindex = ifindex;
	recent->is_known = !!row;
	if (row)
		recent->row = *row;
	return 0;
}

/* Whose device it is; 0: nobody's. */
static __always_inline struct device_row *device_recall(const struct packet *packet, __u32 ifindex)
{
	__u32 place = recent_place(ifindex);
	struct recent_device *recent = bpf_map_lookup_elem(&recent_devices, &place);

	if (!recent)
		return 0;
	if (!stamp_counts(packet, recent->stamp) || recent->ifindex != ifindex)
		recent_device_find(packet, ifindex, recent);
	return recent->is_known ? &recent->row : 0;
}

STEP recent_subject_find(const struct packet *packet, __u32 identity, struct recent_subject *recent)
{
	struct policy_subject_key key = {.identity = identity};
	struct policy_subject_row *row;

	if (!packet || !recent)
		return 0;
	row = bpf_map_lookup_elem(&policy_subjects, &key);
	recent->stamp = packet->stamp;
	recent->identity = identity;
	recent->is_known = !!row;
	if (row)
		recent->row = *row;
	return 0;
}

/* What is enforced for an identity; 0: there is no such row. */
static __always_inline struct policy_subject_row *subject_recall(const struct packet *packet, __u32 identity)
{
	__u32 place = recent_place(identity);
	struct recent_subject *recent = bpf_map_lookup_elem(&recent_subjects, &place);

	if (!recent)
		return 0;
	if (!stamp_counts(packet, recent->stamp) || recent->identity != identity)
		recent_subject_find(packet, identity, recent);
	return recent->is_known ? &recent->row : 0;
}

#endif /* MESHLOG_LIB_RECENT_H */
