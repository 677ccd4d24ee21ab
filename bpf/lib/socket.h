/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * From a frontend to one of its backends where a socket names it, and back where the socket hears of the backend.
 * Who may talk to whom is not asked here: the packets of the socket meet the policy of their device.
 */
#ifndef MESHLOG_LIB_SOCKET_H
#define MESHLOG_LIB_SOCKET_H

#include <linux/bpf.h>
#include <linux/errno.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "../config.h"
#include "../maps.h"
#include "metrics.h"
#include "packet.h"

/* What a hook answers to the kernel. */
enum socket_verdict { SOCKET_REFUSED = 0, SOCKET_ALLOWED = 1 };

enum socket_outcome {
	SOCKET_UNCHANGED = 0,
	SOCKET_TRANSLATED = 1,
	SOCKET_WITHOUT_BACKEND = 2, /* the frontend has none: the call fails */
};

static __always_inline int socket_is_of_node(struct bpf_sock_addr *ctx)
{
	return config_node_netns_cookie && bpf_get_netns_cookie(ctx) == config_node_netns_cookie;
}

/* 127.0.0.0/8 and ::1, and the unspecified addresses, which a connect takes for them. */
static __always_inline int address_is_loopback(const struct address *address)
{
	const __be32 *words = address->words;

	if (words[0] || words[1])
		return 0;
	if (words[2] == bpf_htonl(0xffff))
		return words[3] == 0 || (bpf_ntohl(words[3]) >> 24) == 127;
	return words[2] == 0 && bpf_ntohl(words[3]) <= 1;
}

static __always_inline int address_is_mapped(const struct address *address)
{
	return !address->words[0] && !address->words[1] && address->words[2] == bpf_htonl(0xffff);
}

/* A node port answers at every address of the node, at loopback to the node's own sockets only. Its row stands under
 * the address that the node is configured with. */
static __always_inline struct service_row *socket_node_port(struct bpf_sock_addr *ctx, struct service_key *key)
{
	struct service_row *service;

	if (address_is_loopback(&key->address)) {
		if (!socket_is_of_node(ctx))
			return 0;
	} else {
		struct endpoint_row *row = bpf_map_lookup_elem(&endpoints, &key->address);

		if (!row || !(row->flags & ENDPOINT_HOST))
			return 0;
	}
	if (address_is_mapped(&key->address))
		address_from_config(&key->address, &config_node_ipv4);
	else
		address_from_config(&key->address, &config_node_ipv6);
	service = bpf_map_lookup_elem(&services, key);
	return service && service->flags & SERVICE_NODE_PORT ? service : 0;
}

static __always_inline struct service_row *socket_service(struct bpf_sock_addr *ctx, __u8 protocol,
							  const struct address_port *wanted, __u16 *flags)
{
	struct service_key key = {
		.address = wanted->address,
		.port = wanted->port,
		.protocol = protocol,
		.scope = SERVICE_SCOPE_INTERNAL,
	};
	struct service_row *service = bpf_map_lookup_elem(&services, &key);

	if (service)
		return service;
	*flags = SOCKET_FLOW_NODE_PORT;
	return socket_node_port(ctx, &key);
}

/* Every TCP connection chooses anew. Datagrams of a socket go to one backend for as long as the set stands. */
static __always_inline __u32 socket_choice(__u8 protocol, __u64 cookie)
{
	return protocol == IPPROTO_TCP ? bpf_get_prandom_u32() : (__u32)(cookie * 0x9e3779b97f4a7c15ull >> 32);
}

/* Which backend the client was sent to last, if the set still has it for new flows and its time has not passed. */
static __always_inline struct affinity_backend_row *socket_affinity(const struct service_row *service,
								    const struct affinity_key *client, __u64 now)
{
	struct affinity_row *last = bpf_map_lookup_elem(&affinity, client);
	struct affinity_backend_key key = {.backend_set = service->backend_set};

	if (!last || now - last->last_used_ns > service->affinity_s * NS_PER_S)
		return 0;
	key.address = last->address;
	key.port = last->port;
	return bpf_map_lookup_elem(&affinity_backends, &key);
}

/* A client is a network namespace: the sockets of an endpoint, or those of the node. */
static __always_inline void socket_client(struct bpf_sock_addr *ctx, const struct address_port *frontend,
					  struct affinity_key *client)
{
	__u64 cookie = bpf_get_netns_cookie(ctx);

	client->client.words[0] = (__u32)cookie;
	client->client.words[1] = (__u32)(cookie >> 32);
	client->frontend = frontend->address;
	client->port = frontend->port;
	client->protocol = (__u8)ctx->protocol;
	client->client_kind = AFFINITY_CLIENT_NETNS;
}

static __always_inline struct backend_row *socket_backend(struct bpf_sock_addr *ctx, const struct service_row *service,
							  const struct address_port *frontend, __u32 choice)
{
	struct backend_key key = {.backend_set = service->backend_set};
	struct affinity_backend_row *kept = 0;
	struct affinity_key client = {};
	struct affinity_row latest = {};
	struct backend_row *backend;

	if (service->count == 0)
		return 0;
	if (service->affinity_s) {
		latest.last_used_ns = bpf_ktime_get_ns();
		socket_client(ctx, frontend, &client);
		kept = socket_affinity(service, &client, latest.last_used_ns);
	}
	key.slot = kept ? kept->slot : choice % service->count;
	backend = bpf_map_lookup_elem(&backends, &key);
	if (backend && service->affinity_s) {
		latest.address = backend->address;
		latest.port = backend->port;
		bpf_map_update_elem(&affinity, &client, &latest, BPF_ANY);
	}
	return backend;
}

/* Writes only what is new, so that a sender of datagrams does not write with each of them. */
static __always_inline int socket_flow_keep(const struct socket_flow_key *key, const struct address_port *frontend,
					    __u16 flags)
{
	struct socket_flow_row row = {.frontend = frontend->address, .frontend_port = frontend->port, .flags = flags};
	struct socket_flow_row *known = bpf_map_lookup_elem(&socket_flows, key);

	if (known && known->frontend_port == row.frontend_port && address_equal(&known->frontend, &row.frontend))
		return 0;
	return (int)bpf_map_update_elem(&socket_flows, key, &row, BPF_ANY);
}

/* Replaces `end`, where a socket wants to send to, by a backend if it is a frontend. An enum socket_outcome. */
static __always_inline int socket_translate(struct bpf_sock_addr *ctx, struct address_port *end)
{
	__u8 protocol = (__u8)ctx->protocol;
	struct socket_flow_key flow = {.protocol = protocol};
	struct service_row *service;
	struct backend_row *backend;
	__u16 flags = 0;

	if (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP)
		return SOCKET_UNCHANGED;
	if (config_socket_node_only && !socket_is_of_node(ctx))
		return SOCKET_UNCHANGED;
	service = socket_service(ctx, protocol, end, &flags);
	/* Which address a socket will have is not known yet: whether it may come is asked at its device. */
	if (!service || service->source_range_set)
		return SOCKET_UNCHANGED;
	flow.socket_cookie = bpf_get_socket_cookie(ctx);
	backend = socket_backend(ctx, service, end, socket_choice(protocol, flow.socket_cookie));
	if (!backend)
		return SOCKET_WITHOUT_BACKEND;
	flow.backend = backend->address;
	flow.backend_port = backend->port;
	/* An answer from an address that it did not ask would be lost on the socket; its device can translate too. */
	if (socket_flow_keep(&flow, end, flags))
		return SOCKET_UNCHANGED;
	end->address = backend->address;
	end->port = backend->port;
	return SOCKET_TRANSLATED;
}

/* Replaces `end`, whom a socket hears or is connected to, by the frontend that it asked for. True: it did. */
static __always_inline int socket_reverse(struct bpf_sock_addr *ctx, struct address_port *end)
{
	struct socket_flow_key flow = {
		.socket_cookie = bpf_get_socket_cookie(ctx),
		.backend = end->address,
		.backend_port = end->port,
		.protocol = (__u8)ctx->protocol,
	};
	struct socket_flow_row *row = bpf_map_lookup_elem(&socket_flows, &flow);

	if (!row)
		return 0;
	end->address = row->frontend;
	end->port = row->frontend_port;
	return 1;
}

/* The call fails at once: as if nobody listened at the frontend, where the kernel lets a program say so. */
static __always_inline int socket_refuse(struct bpf_sock_addr *ctx, const struct address_port *frontend, __u32 line)
{
	struct notification *record;

	count(SERVICE_BACKEND_NOT_FOUND, TRAFFIC_EGRESS, 0);
	if (config_socket_errno)
		bpf_set_retval(-ECONNREFUSED);
	if (!config_notify_drops)
		return SOCKET_REFUSED;
	record = bpf_ringbuf_reserve(&notifications, sizeof(*record), 0);
	if (!record) {
		count(NOTIFICATIONS_LOST, TRAFFIC_EGRESS, 0);
		return SOCKET_REFUSED;
	}
	__builtin_memset(record, 0, sizeof(*record));
	record->timestamp_ns = bpf_ktime_get_ns();
	record->dest = frontend->address;
	record->dest_port = frontend->port;
	record->line = (__u16)line;
	record->type = NOTIFICATION_DROP;
	record->drop_reason = SERVICE_BACKEND_NOT_FOUND;
	record->policy_direction = POLICY_EGRESS;
	record->protocol = (__u8)ctx->protocol;
	record->file = FILE_SOCKET;
	bpf_ringbuf_submit(record, 0);
	return SOCKET_REFUSED;
}

#endif /* MESHLOG_LIB_SOCKET_H */
