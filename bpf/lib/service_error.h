/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * ICMP errors about flows to a frontend. Each end knows the other by another address than the packet had that went
 * wrong, so the quote is rewritten to what the end has sent: the client's to the frontend, the backend's to the client.
 */
#ifndef MESHLOG_LIB_SERVICE_ERROR_H
#define MESHLOG_LIB_SERVICE_ERROR_H

#include "conntrack.h"
#include "masquerade.h"
#include "nat.h"
#include "packet.h"
#include "quote.h"

/* One end of the quote becomes `to`. 0, or a drop. */
static __noinline int quote_put(struct __sk_buff *skb, struct packet *packet, const struct packet *quoted,
				     __u32 end, const struct address_port *to)
{
	struct address_port from = {};

	from.address = end == NAT_DEST ? quoted->dest : quoted->source;
	from.port = end == NAT_DEST ? quoted->dest_port : quoted->source_port;
	return quote_rewrite(skb, packet, quote_place(quoted, end), &from, to);
}

/* The error itself: from `packet`'s source to `source`, and to `dest`. 0, or a drop. */
static __noinline int error_readdress(struct __sk_buff *skb, struct packet *packet, const struct address *source,
					   const struct address *dest)
{
	struct address_port from = {}, to = {};
	int result = 0;

	if (!address_equal(&packet->source, source)) {
		from.address = packet->source;
		to.address = packet->source = *source;
		result = nat_rewrite(skb, packet, NAT_SOURCE, &from, &to);
	}
	if (result || address_equal(&packet->dest, dest))
		return result;
	from.address = packet->dest;
	to.address = packet->dest = *dest;
	return nat_rewrite(skb, packet, NAT_DEST, &from, &to);
}

/* To the client, about what it has sent. 1, or a drop. */
static __noinline int error_to_client(struct __sk_buff *skb, struct packet *packet, const struct packet *quoted,
		     const struct conntrack_row *entry)
{
	struct address_port frontend = {};
	struct address dest, source;
	int result;

	frontend.address = entry->translated;
	frontend.port = entry->translated_port;
	dest = packet->dest;
	source = packet->source;
	if (address_equal(&source, &quoted->dest)) {
		source = frontend.address;
		packet->answers = 1;
	}
	result = quote_put(skb, packet, quoted, NAT_DEST, &frontend);
	if (!result)
		result = error_readdress(skb, packet, &source, &dest);
	return result ? result : 1;
}

/* The node's end of a flow between `client` and `backend` that left with the node's address. */
static __noinline struct address_port *masqueraded_end(const struct packet *quoted,
						      const struct address_port *backend)
{
	struct nat_key key = {};

	key.near = quoted->dest;
	key.near_port = quoted->dest_port;
	key.far = backend->address;
	key.far_port = backend->port;
	key.protocol = quoted->protocol;
	key.direction = NAT_OUTBOUND;
	return bpf_map_lookup_elem(&nat, &key);
}

/* To the backend, about what it has answered. 1, or a drop. */
static __noinline int error_to_backend(struct __sk_buff *skb, struct packet *packet, const struct packet *quoted,
		      const struct conntrack_row *entry)
{
	struct address_port backend = {};
	struct address_port *node = 0;
	struct address source;
	int result;

	backend.address = entry->translated;
	backend.port = entry->translated_port;
	source = packet->source;
	if (entry->flags & CONNTRACK_MASQUERADED) {
		node = masqueraded_end(quoted, &backend);
		if (!node)
			return DROP(packet, FILE_NODEPORT, NO_MAPPING_FOR_NAT_MASQUERADE);
		source = node->address;
		result = quote_put(skb, packet, quoted, NAT_DEST, node);
		if (result)
			return result;
	}
	result = quote_put(skb, packet, quoted, NAT_SOURCE, &backend);
	if (!result)
		result = error_readdress(skb, packet, &source, &backend.address);
	return result ? result : 1;
}

/* The entry of the quoted packet's flow, and whether it was its initiator that sent it. */
static __noinline struct conntrack_row *quoted_entry(const struct packet *quoted, __u32 *from_client)
{
	struct tracking tracking = {};
	struct conntrack_row *entry;

	conntrack_key_of(quoted, &tracking);
	entry = bpf_map_lookup_elem(&conntrack, &tracking.key);
	if (entry)
		*from_client = tracking.source_is_high == !!(entry->flags & CONNTRACK_INITIATOR_HIGH);
	return entry;
}

/*
 * An ICMP error. 1: it is about a flow to a frontend, and reads now as its receiver will understand it; packet->dest is
 * where it goes. 0: it is not about one; or a drop. `from_target`: only from the other end of the flow, as in
 * is_related_error().
 */
STEP service_error(struct __sk_buff *skb, struct packet *packet, __u32 from_target)
{
	struct conntrack_row *entry;
	struct packet *quoted;
	__u32 from_client;

	if (!packet || !is_icmp_error(packet))
		return 0;
	quoted = scratch_packet(SCRATCH_QUOTE);
	if (!quoted || !quote_read(skb, packet, quoted) || !address_equal(&quoted->source, &packet->dest))
		return 0;
	if (from_target && !address_equal(&quoted->dest, &packet->source))
		return 0;
	entry = quoted_entry(quoted, &from_client);
	if (!entry || entry->expires_ns <= packet->now || entry->flags & CONNTRACK_HAIRPIN)
		return 0;
	if (from_client && entry->flags & CONNTRACK_REVERSE_DNAT)
		return error_to_client(skb, packet, quoted, entry);
	if (!from_client && entry->flags & CONNTRACK_DNAT)
		return error_to_backend(skb, packet, quoted, entry);
	return 0;
}

#endif /* MESHLOG_LIB_SERVICE_ERROR_H */
