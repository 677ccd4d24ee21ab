/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Whose address is it, and where does it live? */
#ifndef MESHLOG_LIB_IPCACHE_H
#define MESHLOG_LIB_IPCACHE_H

#include "../config.h"
#include "../maps.h"
#include "packet.h"

static __always_inline void node_address(__u8 family, struct address *address)
{
	address_from_config(address, family == 4 ? &config_node_ipv4 : &config_node_ipv6);
}

static __always_inline struct endpoint_row *endpoint_find(const struct address *address)
{
	struct endpoint_key key = {.address = *address};

	return bpf_map_lookup_elem(&endpoints, &key);
}

static __always_inline struct ipcache_row *ipcache_find(const struct address *address)
{
	struct ipcache_key key = {.prefix_length = 128, .address = *address};

	return bpf_map_lookup_elem(&ipcache, &key);
}

static __always_inline __u32 ipcache_identity(const struct address *address)
{
	struct ipcache_row *row = ipcache_find(address);

	return row ? row->identity : IDENTITY_WORLD;
}

/* Another node, one with an API server or with an identity of its own too: no endpoint and not the world. */
static __always_inline int identity_is_other_node(__u32 identity)
{
	return identity == IDENTITY_REMOTE_NODE || identity == IDENTITY_KUBE_APISERVER ||
	       identity >> IDENTITY_SCOPE_SHIFT == IDENTITY_SCOPE_NODE;
}

#endif /* MESHLOG_LIB_IPCACHE_H */
