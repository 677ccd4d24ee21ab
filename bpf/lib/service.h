/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* From a frontend to one of its backends. The choice is a function of the packet, and can be replayed. */
#ifndef MESHLOG_LIB_SERVICE_H
#define MESHLOG_LIB_SERVICE_H

#include "../maps.h"
#include "conntrack.h"
#include "packet.h"

#define ROTATE_LEFT(word, bits) ((word) << (bits) | (word) >> (32 - (bits)))

/* Bob Jenkins' lookup3, as the kernel's jhash(). */
#define JHASH_MIX(a, b, c) ({ \
	a -= c; a ^= ROTATE_LEFT(c, 4); c += b; \
	b -= a; b ^= ROTATE_LEFT(a, 6); a += c; \
	c -= b; c ^= ROTATE_LEFT(b, 8); b += a; \
	a -= c; a ^= ROTATE_LEFT(c, 16); c += b; \
	b -= a; b ^= ROTATE_LEFT(a, 19); a += c; \
	c -= b; c ^= ROTATE_LEFT(b, 4); b += a; })

#define JHASH_FINAL(a, b, c) ({ \
	c ^= b; c -= ROTATE_LEFT(b, 14); \
	a ^= c; a -= ROTATE_LEFT(c, 11); \
	b ^= a; b -= ROTATE_LEFT(a, 25); \
	c ^= b; c -= ROTATE_LEFT(b, 16); \
	a ^= c; a -= ROTATE_LEFT(c, 4); \
	b ^= a; b -= ROTATE_LEFT(a, 14); \
	c ^= b; c -= ROTATE_LEFT(b, 24); })

static __always_inline __u32 tuple_hash(const struct packet *packet)
{
	const __be32 *source = packet->source.words, *dest = packet->dest.words;
	__u32 seed = 0xdeadbeef + 10 * 4;
	__u32 a = seed + source[0], b = seed + source[1], c = seed + source[2];

	JHASH_MIX(a, b, c);
	a += source[3];
	b += dest[0];
	c += dest[1];
	JHASH_MIX(a, b, c);
	a += dest[2];
	b += dest[3];
	c += (__u32)packet->source_port << 16 | packet->dest_port;
	JHASH_MIX(a, b, c);
	a += packet->protocol;
	JHASH_FINAL(a, b, c);
	return c;
}

static __always_inline struct service_row *service_find(const struct packet *packet, __u32 scope)
{
	struct service_key key = {
		.address = packet->dest,
		.port = packet->dest_port,
		.protocol = packet->protocol,
		.scope = (__u8)scope,
	};

	return bpf_map_lookup_elem(&services, &key);
}

/* Whether the service's source ranges keep the client out. */
static __always_inline int source_is_refused(const struct packet *packet, const struct service_row *service)
{
	struct source_range_key key = {
		.prefix_length = 8 * (sizeof(key) - sizeof(key.prefix_length)),
		.source_range_set = service->source_range_set,
		.address = packet->source,
	};

	return !!bpf_map_lookup_elem(&source_ranges, &key) == !!(service->flags & SERVICE_SOURCE_RANGES_DENY);
}

/* A slot of the set, by the flow's hash. */
static __always_inline __u32 service_slot(const struct packet *packet, const struct service_row *service)
{
	struct maglev_key key = {.backend_set = service->backend_set};
	__u32 hash = tuple_hash(packet), place;
	struct maglev_row *row;

	if (!service->maglev_slots)
		return hash % service->count;
	place = hash % service->maglev_slots;
	key.chunk = place / MAGLEV_CHUNK;
	row = bpf_map_lookup_elem(&maglev, &key);
	return row ? row->slots[place % MAGLEV_CHUNK] : hash % service->count;
}

static __always_inline void affinity_key_set(struct affinity_key *key, const struct packet *packet)
{
	key->client = packet->source;
	key->frontend = packet->dest;
	key->port = packet->dest_port;
	key->protocol = packet->protocol;
	key->client_kind = AFFINITY_CLIENT_ADDRESS;
}

/* The backend that the client had, if it still counts: packet->dest becomes it. */
STEP affinity_recall(struct packet *packet, const struct service_row *service)
{
	struct affinity_backend_key known = {};
	struct affinity_key key = {};
	struct affinity_row *row;

	if (!packet || !service)
		return 0;
	affinity_key_set(&key, packet);
	row = bpf_map_lookup_elem(&affinity, &key);
	if (!row || row->last_used_ns + service->affinity_s * NS_PER_S <= packet->now)
		return 0;
	known.backend_set = service->backend_set;
	known.address = row->address;
	known.port = row->port;
	if (!bpf_map_lookup_elem(&affinity_backends, &known))
		return 0;
	row->last_used_ns = packet->now;
	packet->dest = known.address;
	packet->dest_port = known.port;
	return 1;
}

/* `packet` has the frontend yet. */
STEP affinity_remember(const struct packet *packet, const struct backend_row *backend)
{
	struct affinity_key key = {};
	struct affinity_row row = {};

	if (!packet || !backend)
		return 0;
	affinity_key_set(&key, packet);
	row.last_used_ns = packet->now;
	row.address = backend->address;
	row.port = backend->port;
	bpf_map_update_elem(&affinity, &key, &row, BPF_ANY);
	return 0;
}

enum service_outcome {
	SERVICE_NONE = 0,
	SERVICE_TRANSLATED = 1,
	SERVICE_HAIRPIN = 2, /* the backend is the endpoint that asks */
};

/* A backend for the flow of a new packet: packet->dest becomes it. 0, or a drop. */
static __always_inline int service_choose(struct packet *packet, const struct service_row *service)
{
	struct backend_key key = {.backend_set = service->backend_set};
	struct backend_row *backend;

	if (service->affinity_s && affinity_recall(packet, service))
		return 0;
	key.slot = service_slot(packet, service);
	backend = bpf_map_lookup_elem(&backends, &key);
	if (!backend)
		return DROP(packet, FILE_SERVICE, SERVICE_BACKEND_NOT_FOUND);
	if (service->affinity_s)
		affinity_remember(packet, backend);
	packet->dest = backend->address;
	packet->dest_port = backend->port;
	return 0;
}

/* Sends packet->dest to a backend, if it is a frontend of that enum service_scope. An enum service_outcome, or a
 * drop. */
STEP service_translate(struct packet *packet, __u32 scope)
{
	struct service_row *service;
	int result;

	if (!packet)
		return 0;
	service = service_find(packet, scope);
	if (!service)
		return SERVICE_NONE;
	if (service->source_range_set && source_is_refused(packet, service))
		return DROP(packet, FILE_SERVICE, DENIED_BY_LB_SRC_RANGE_CHECK);
	if (service->count == 0) {
		/* Another node may have one: whoever sends from outside is to notice by itself. */
		packet->reject = scope == SERVICE_SCOPE_EXTERNAL && service->flags & SERVICE_LOCAL_BACKENDS ? REJECT_NOT
													  : REJECT_PORT;
		return DROP(packet, FILE_SERVICE, SERVICE_BACKEND_NOT_FOUND);
	}
	packet->dsr = !!(service->flags & SERVICE_DSR);
	result = service_choose(packet, service);
	if (result)
		return result;
	return address_equal(&packet->dest, &packet->source) ? SERVICE_HAIRPIN : SERVICE_TRANSLATED;
}

#endif /* MESHLOG_LIB_SERVICE_H */
