/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the programs know about the packet in their hands. Filled by parse.h, then step by step by the
 * others. */
#ifndef MESHLOG_LIB_PACKET_H
#define MESHLOG_LIB_PACKET_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

#include "../abi.h"

/*
 * A step with many branches is a global function: the verifier checks it once, for any arguments, instead
 * of once for every path that leads to it. It takes pointers to initialised memory only, tests them for
 * 0, and returns a number. A program that calls few of them may define it otherwise.
 */
#ifndef STEP
#define STEP __noinline int
#endif

/* A step that every packet takes: a program with room for it has it in place. */
#ifndef EVERY_STEP
#define EVERY_STEP STEP
#endif

#define NS_PER_S 1000000000ull

/* Which part of a datagram a packet is. A later one has no transport header. */
enum fragment { FRAGMENT_NONE = 0, FRAGMENT_FIRST = 1, FRAGMENT_LATER = 2 };

/* What this node has to ask of one end of a flow. */
enum side {
	SIDE_ELSEWHERE = 0, /* nothing: whose end it is has been asked, or is asked there */
	SIDE_ENDPOINT = 1,  /* its policy, by its identity */
	SIDE_HOST = 2,      /* host policies, where they are in force */
	SIDE_ENDPOINT_AUDITED = 3, /* that of an endpoint, and what it would deny passes */
};

/* Whether a packet leaves with the node's address. */
enum masquerade {
	MASQUERADE_NONE = 0,
	MASQUERADE_ENDPOINT = 1, /* an endpoint, out of the mesh */
	MASQUERADE_CLIENT = 2,	 /* the client of a service, to a backend that is not here */
};

static __always_inline __u8 endpoint_side(const struct endpoint_row *row)
{
	if (row->flags & ENDPOINT_HOST)
		return SIDE_HOST;
	return row->flags & ENDPOINT_AUDITED ? SIDE_ENDPOINT_AUDITED : SIDE_ENDPOINT;
}

static __always_inline __u8 device_side(const struct device_row *row)
{
	return row->flags & DEVICE_AUDITED ? SIDE_ENDPOINT_AUDITED : SIDE_ENDPOINT;
}

/* What the sender of a packet that is dropped is told. */
enum reject {
	REJECT_NOT = 0,
	REJECT_PORT = 1,    /* nobody is there: a reset, or port unreachable */
	REJECT_TOO_BIG = 2, /* packet->mtu is what would fit */
};

struct packet {
	struct address source; /* as seen on the wire */
	struct address dest;   /* after DNAT: the backend */
	__u64 now; /* CLOCK_MONOTONIC as of the last tick, some ms back: to read the clock itself costs as much as a lookup */
	__u64 policy_epoch;
	__u64 stamp; /* of the copies that count; 0: none does (recent.h) */
	__u32 source_identity;
	__u32 dest_identity;
	__u32 l3_end; /* bytes from the start of the frame to the end of the IP packet */
	__be32 fragment_id;
	__u32 mtu; /* bytes of an IP packet, with REJECT_TOO_BIG */
	__u16 l4_offset; /* of a later fragment: where its bytes begin */
	__be16 source_port; /* ICMP echo: the id at the end that asks, 0 at the end that answers */
	__be16 dest_port;
	__be16 masquerade_port; /* that the flow is said to have; 0: nothing is said */
	__u16 endpoint_id; /* whose device it is, then whose policy spoke */
	__u16 source_endpoint_id; /* with SIDE_ENDPOINT */
	__u16 dest_endpoint_id;
	__u16 line; /* where it was dropped */
	__u8 file;
	__u8 family; /* 4 or 6; 0: neither */
	__u8 protocol;
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 traffic_direction;
	__u8 policy_direction;
	__u8 match;
	__u8 masquerade; /* enum masquerade */
	__u8 answers;	 /* 1: its source is a frontend now, an address that the host's stack would take for its own */
	__u8 fragment;	 /* enum fragment */
	__u8 source_side; /* enum side */
	__u8 dest_side;
	__u8 dsr;    /* 1: the backend's node is to answer the client itself */
	__u8 reject; /* enum reject */
	__u8 audited; /* 1: it passes because of audit */
} __attribute__((aligned(8)));

struct address_port {
	struct address address;
	__be16 port;
	__u16 reserved;
};

/* Steps return 0 to go on, a TC_ACT_* where the packet's way is decided, or -(enum drop_reason). */
#define DROP(packet, in_file, reason) ((packet)->line = __LINE__, (packet)->file = (in_file), -(int)(reason))

/* In assembly, because the compiler would keep the 32-bit load in a register or on the stack and widen it
 * later, and the verifier would no longer see a packet pointer. */
static __always_inline void *packet_data(const struct __sk_buff *skb)
{
	void *data;

	asm volatile("%0 = *(u32 *)(%1 + %2)"
		     : "=r"(data)
		     : "r"(skb), "i"(__builtin_offsetof(struct __sk_buff, data)));
	return data;
}

static __always_inline void *packet_data_end(const struct __sk_buff *skb)
{
	void *data_end;

	asm volatile("%0 = *(u32 *)(%1 + %2)"
		     : "=r"(data_end)
		     : "r"(skb), "i"(__builtin_offsetof(struct __sk_buff, data_end)));
	return data_end;
}

#define TCP_FLAG_BYTE_FIN 0x01
#define TCP_FLAG_BYTE_SYN 0x02
#define TCP_FLAG_BYTE_RST 0x04
#define TCP_FLAG_BYTE_ACK 0x10

static __always_inline int address_equal(const struct address *left, const struct address *right)
{
	return left->words[3] == right->words[3] && left->words[2] == right->words[2] &&
	       left->words[1] == right->words[1] && left->words[0] == right->words[0];
}

/* The packet as its other end would have sent it. */
static __always_inline void packet_turn(struct packet *packet)
{
	struct address address = packet->source;
	__u32 identity = packet->source_identity;
	__u16 endpoint_id = packet->source_endpoint_id;
	__be16 port = packet->source_port;
	__u8 side = packet->source_side;

	packet->source = packet->dest;
	packet->dest = address;
	packet->source_identity = packet->dest_identity;
	packet->dest_identity = identity;
	packet->source_endpoint_id = packet->dest_endpoint_id;
	packet->dest_endpoint_id = endpoint_id;
	packet->source_port = packet->dest_port;
	packet->dest_port = port;
	packet->source_side = packet->dest_side;
	packet->dest_side = side;
}

static __always_inline int address_is_zero(const struct address *address)
{
	return (address->words[0] | address->words[1] | address->words[2] | address->words[3]) == 0;
}

#endif /* MESHLOG_LIB_PACKET_H */
