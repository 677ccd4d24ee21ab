/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What comes from others, on the underlay or out of the tunnel, to one of this node's endpoints. */
#ifndef MESHLOG_LIB_ENTERING_H
#define MESHLOG_LIB_ENTERING_H

#include "forward.h"
#include "inbound.h"
#include "ipcache.h"
#include "packet.h"
#include "parse.h"
#include "recent.h"

/* By the address alone, well formed or not: only an endpoint's packets are ours to refuse. */
static __always_inline struct endpoint_row *local_endpoint(struct packet *packet)
{
	struct endpoint_row *row;

	if (!packet->family)
		return 0;
	row = endpoint_recall(packet, &packet->dest);
	return row && !(row->flags & ENDPOINT_HOST) ? row : 0;
}

static __always_inline int admit(struct __sk_buff *skb, struct packet *packet, const struct endpoint_row *row,
				 int parsed)
{
	int result;

	packet->dest_identity = row->identity;
	packet->endpoint_id = (__u16)row->endpoint_id;
	if (parsed)
		return parsed;
	result = parse_l4(skb, packet);
	if (result)
		return result;
	source_identify(packet);
	/* Nobody on the network is this node. */
	if (packet->source_identity == IDENTITY_HOST)
		return DROP(packet, FILE_HOST, INVALID_SOURCE_IP);
	packet->dest_side = endpoint_side(row);
	result = inbound_admit(skb, packet, row->endpoint_id);
	if (result)
		return result;
	return forward_to_endpoint(skb, packet, row);
}

#endif /* MESHLOG_LIB_ENTERING_H */
