/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* From a frontend to one of its backends. The choice is a function of the packet, and can be replayed. */
#ifndef MESHLOG_LIB_SERVICE_H
#define MESHLOG_LIB_SERVICE_H

#include "../maps.h"
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

enum service_outcome {
	SERVICE_NONE = 0,
	SERVICE_TRANSLATED = 1,
	SERVICE_HAIRPIN = 2, /* the backend is the endpoint that asks */
};

/* Sends packet->dest to a backend, if it is a frontend of that enum service_scope. An enum service_outcome, or a drop. */
STEP service_translate(struct packet *packet, __u32 scope)
{
	struct service_row *service;
	struct backend_key key = {};
	struct backend_row *backend;

	if (!packet)
		return 0;
	service = service_find(packet, scope);
	if (!service)
		return SERVICE_NONE;
	if (service->count == 0)
		return DROP(packet, FILE_SERVICE, SERVICE_BACKEND_NOT_FOUND);
	key.backend_set = service->backend_set;
	key.slot = tuple_hash(packet) % service->count;
	backend = bpf_map_lookup_elem(&backends, &key);
	if (!backend)
		return DROP(packet, FILE_SERVICE, SERVICE_BACKEND_NOT_FOUND);
	packet->dest = backend->address;
	packet->dest_port = backend->port;
	return address_equal(&packet->dest, &packet->source) ? SERVICE_HAIRPIN : SERVICE_TRANSLATED;
}

#endif /* MESHLOG_LIB_SERVICE_H */
