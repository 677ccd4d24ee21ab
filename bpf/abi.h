/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The one door between the programs and user space: every map key, map value, notification and constant
 * that both sides use. The Python side (datapath/abi/types.py) is generated from this file's BTF.
 *
 * Rules. Constants are enums (macros vanish from BTF). Fields in network order have a __be type. No implicit
 * padding: fields called reserved* are always zero. An address is always 16 bytes, IPv4 as ::ffff:a.b.c.d, so
 * that both families go through the same code. A retired number is never used again. A new field is zero in rows that
 * come from a version without it, and zero must mean what was so before.
 */
#ifndef MESHLOG_ABI_H
#define MESHLOG_ABI_H

#include <linux/types.h>

enum abi_version { ABI_VERSION = 1 };

enum limit {
	ENDPOINTS_MAX = 65536,
	DEVICES_MAX = 4096,
	IPCACHE_MAX = 512000,
	FACETS_MAX = 512000,
	POLICY_SUBJECTS_MAX = 16384,
	POLICY_MAX = 262144,
	SERVICES_MAX = 65536,
	BACKENDS_MAX = 262144,
	SOURCE_RANGES_MAX = 65536,
	AFFINITY_BACKENDS_MAX = 131072,
	AFFINITY_MAX = 65536,
	MAGLEV_MAX = 131072, /* chunks: 4096 tables of the default size */
	MAGLEV_CHUNK = 512,  /* slots of one */
	CONNTRACK_MAX = 262144,
	NAT_MAX = 131072,
	UNMASQUERADED_MAX = 32,
	FRAGMENTS_MAX = 8192,
	SOCKET_FLOWS_MAX = 65536,
	SOCKET_ENDS_MAX = 65536,
	METRICS_MAX = 1024,
	NOTIFICATION_BYTES = 4194304,
};

/* ::ffff:a.b.c.d for IPv4. */
struct address {
	__be32 words[4];
};

/* Low reserved identities, with the numbers that Cilium's users know. */
enum identity {
	IDENTITY_UNKNOWN = 0,
	IDENTITY_HOST = 1,
	IDENTITY_WORLD = 2,
	IDENTITY_UNMANAGED = 3,
	IDENTITY_HEALTH = 4,
	IDENTITY_INIT = 5,
	IDENTITY_REMOTE_NODE = 6,
	IDENTITY_KUBE_APISERVER = 7,
	IDENTITY_INGRESS = 8,
};

/* The top byte of an identity, as in Cilium. Those of prefixes, of nodes and of facets are numbers of this node's cluster
 * only, and stand in no tunnel's header. */
enum identity_scope {
	IDENTITY_SCOPE_SHIFT = 24,
	IDENTITY_SCOPE_PREFIX = 1,
	IDENTITY_SCOPE_NODE = 2, /* another node that policies tell apart from the rest */
	IDENTITY_SCOPE_FACET = 3, /* some addresses of an identity: in policy rows only */
};

/* endpoints: the address of a local endpoint, or of this node itself, -> where it is. */
struct endpoint_key {
	struct address address;
};

enum endpoint_flag {
	ENDPOINT_HOST = 1,   /* an address of this node: hand the packet to the host stack */
	ENDPOINT_SHAPED = 2, /* what it receives passes the queue of the host side of its device */
	ENDPOINT_AUDITED = 4, /* what its policies would deny passes, and is told */
	ENDPOINT_JOINED = 8, /* its TCP sockets may be joined to those of another such endpoint */
};

struct endpoint_row {
	__u32 ifindex; /* host side of the veth; 0 with ENDPOINT_HOST */
	__u32 identity;
	__u32 endpoint_id;
	__u16 flags;
	__u8 mac[6];      /* of the endpoint's own side */
	__u8 host_mac[6]; /* of the host side */
	__u16 reserved;
};

/* devices: ifindex of the host side -> whose it is. The source check reads it. */
struct device_key {
	__u32 ifindex;
};

enum device_flag {
	DEVICE_SHAPED_EGRESS = 1,  /* what the endpoint sends out of the node has a limit */
	DEVICE_SHAPED_INGRESS = 2, /* what it receives has one */
	DEVICE_AUDITED = 4,        /* what its policies would deny passes, and is told */
};

enum shaper {
	SHAPER_MAJOR = 0x4d4c,	/* of the queue's handle; the minor number of a class is the endpoint's id */
	SHAPER_MARK = 0x4d4c51, /* of a packet on its way to such a queue which its endpoint may receive */
};

struct device_row {
	struct address ipv4; /* all zero: the endpoint has none */
	struct address ipv6;
	__u32 identity;
	__u32 endpoint_id;
	__u8 mac[6];
	__u16 flags; /* enum device_flag */
};

/* ipcache: longest prefix -> identity, and the node to send to. */
struct ipcache_key {
	__u32 prefix_length; /* of the 128-bit form: an IPv4 /24 is 120 */
	struct address address;
};

enum ipcache_flag {
	IPCACHE_REMOTE_ENDPOINT = 1, /* forward to `node`; without it the host stack routes */
	IPCACHE_TUNNEL = 2,	     /* the way to `node` is the tunnel, for its endpoints and for itself */
};

struct ipcache_row {
	struct address node; /* underlay address of the endpoint's node; zero: none */
	__u32 identity;
	__u32 flags;
};

/* facets: an address and its identity -> the number of those addresses of the identity that policies see as this one.
 * Policies can tell addresses of one identity apart, by prefix and by the numbers of named ports. Where they do, each
 * address has a row, and rows of the policy that ask for the difference are by this number. */
struct facet_key {
	struct address address;
	__u32 identity;
};

struct facet_row {
	__u32 facet;
};

/* policy_subjects: identity of a local endpoint -> what is enforced, and which shapes of rows exist. IDENTITY_HOST is
 * the node itself: it has a row only while host policies are in force. */
struct policy_subject_key {
	__u32 identity;
};

enum policy_direction { POLICY_INGRESS = 0, POLICY_EGRESS = 1 };

/* Bits of policy_subject_row.ingress_shapes and egress_shapes: which kinds of keys to look up. */
enum policy_shape {
	POLICY_SHAPE_L3 = 1,      /* any protocol */
	POLICY_SHAPE_PORT_0 = 2,  /* a protocol, any port; bit (1 + n) is a port prefix of n bits, n = 0..16 */
	POLICY_SHAPES = 18,
};

enum policy_subject_flag {
	POLICY_SUBJECT_AUDIT = 1,         /* what would be denied passes, and is told */
	POLICY_SUBJECT_ASKS_LOCALHOST = 2, /* the node's own host needs a row to come in, like everyone */
	POLICY_SUBJECT_ASKS_FACETS = 4,    /* its rows are about the facets of remotes that have them */
	POLICY_SUBJECT_HAS_FACETS = 8,     /* an endpoint with a facet has the subject and the rows of that instead */
};

struct policy_subject_row {
	__u32 ingress_enforced; /* 1: what no row allows is denied */
	__u32 egress_enforced;
	__u32 ingress_shapes;
	__u32 egress_shapes;
	__u32 flags;
};

/* policy: who may talk to whom, for all endpoints of the node. A deny row wins over any allow row. Into an endpoint the
 * node's own host needs no row (unless POLICY_SUBJECT_ASKS_LOCALHOST): only deny rows keep it out. */
struct policy_key {
	__u32 subject_identity;
	__u32 remote_identity; /* or facet; 0: any */
	__be16 port;           /* masked to port_prefix bits; ICMP: the type */
	__u8 port_prefix;
	__u8 protocol; /* 0: any */
	__u8 direction;
	__u8 reserved[3];
};

enum policy_verdict { POLICY_VERDICT_ALLOW = 1, POLICY_VERDICT_DENY = 2 };

struct policy_row {
	__u32 verdict;
};

/* How a verdict was reached, for notifications. */
enum policy_match {
	POLICY_MATCH_NONE = 0,      /* no row: default deny, or nothing enforced */
	POLICY_MATCH_L3_ONLY = 1,   /* identity, any port */
	POLICY_MATCH_L3_L4 = 2,     /* identity and port */
	POLICY_MATCH_L4_ONLY = 3,   /* any identity, a port */
	POLICY_MATCH_ALL = 4,       /* any identity, any port */
	POLICY_MATCH_L3_PROTO = 5,  /* identity and protocol */
	POLICY_MATCH_PROTO_ONLY = 6 /* any identity, a protocol */
};

/*
 * services: frontend -> a set of backends. A set is named by the hash of its content. A frontend that is reached from the
 * network has a row for each side that asks, since the traffic policies may give them other backends.
 */
enum service_scope {
	SERVICE_SCOPE_INTERNAL = 0, /* asked by the node's endpoints and by its own sockets */
	SERVICE_SCOPE_EXTERNAL = 1, /* asked by what comes in from the network */
};

struct service_key {
	struct address address;
	__be16 port;
	__u8 protocol;
	__u8 scope; /* enum service_scope */
};

enum service_flag {
	SERVICE_CLUSTER_IP = 1,
	SERVICE_NODE_PORT = 2,
	SERVICE_LOAD_BALANCER = 4,
	SERVICE_EXTERNAL_IP = 8,
	SERVICE_HOST_PORT = 16,
	SERVICE_LOCAL_BACKENDS = 32, /* the set holds only backends of this node: the client keeps its address */
	SERVICE_DSR = 64,	     /* the node of the backend answers the client itself */
	SERVICE_SOURCE_RANGES_DENY = 128, /* source_range_set names who may not come, instead of who may */
	SERVICE_LOCAL_REDIRECT = 256,
};

struct service_row {
	__u64 backend_set;
	__u32 count; /* of backends that new flows may go to; 0: none, refuse with SERVICE_BACKEND_NOT_FOUND */
	__u32 flags;
	__u32 affinity_s; /* seconds for which a client keeps its backend; 0: no affinity */
	__u32 maglev_slots; /* size of the set's table in `maglev`; 0: it has none, the flow's hash modulo count chooses */
	__u64 source_range_set; /* 0: any client; otherwise see source_ranges */
};

/* backends: slots below service_row.count take new flows; those above it only keep the flows that they have. */
struct backend_key {
	__u64 backend_set;
	__u32 slot; /* dense, from 0 */
	__u32 reserved;
};

enum backend_flag {
	BACKEND_TERMINATING = 1, /* it is about to go: below count only where no other backend is left */
	BACKEND_QUARANTINED = 2, /* judged unfit */
	BACKEND_MAINTENANCE = 4, /* taken out by hand, or of weight 0 */
};

struct backend_row {
	struct address address;
	__be16 port;
	__u16 flags;
	__u32 reserved;
};

/*
 * maglev: a set's lookup table, cut into chunks; slot n of the table is slot n % MAGLEV_CHUNK of chunk n / MAGLEV_CHUNK,
 * and holds a slot of `backends`. The flow's hash modulo service_row.maglev_slots chooses n. The set's name covers its
 * table too, so that a frontend takes a new table and a new set with one write.
 */
struct maglev_key {
	__u64 backend_set;
	__u32 chunk;
	__u32 reserved;
};

struct maglev_row {
	__u16 slots[MAGLEV_CHUNK]; /* host order; beyond the table's size zero */
};

/*
 * source_ranges: the clients that service_row.source_range_set names, by longest prefix. A set is named by the hash of
 * its content; one that is named and has no row for a client does not contain it.
 */
struct source_range_key {
	__u32 prefix_length; /* 64 for the set, and that of the 128-bit form: an IPv4 /24 is 184 */
	__u64 source_range_set;
	struct address address;
} __attribute__((packed, aligned(4)));

struct source_range_row {
	__u32 contained; /* 1 */
};

/*
 * affinity: the backend that a client was sent to last; written by the programs. It counts while affinity_s has not
 * passed since, and while affinity_backends says that the frontend's set still has that backend for new flows.
 */
enum affinity_client {
	AFFINITY_CLIENT_ADDRESS = 0,
	AFFINITY_CLIENT_NETNS = 1, /* the client is a socket: `client` holds its network namespace's cookie, then zeros */
};

struct affinity_key {
	struct address client;
	struct address frontend;
	__be16 port; /* of the frontend */
	__u8 protocol;
	__u8 client_kind; /* enum affinity_client */
};

struct affinity_row {
	__u64 last_used_ns; /* CLOCK_MONOTONIC; by the address of a packet as of the last tick */
	struct address address;
	__be16 port;
	__u16 reserved[3];
};

/* affinity_backends: which backends a set has for new flows, by address. Only sets of frontends with affinity. */
struct affinity_backend_key {
	__u64 backend_set;
	struct address address;
	__be16 port;
	__u16 reserved[3];
};

struct affinity_backend_row {
	__u32 slot; /* in `backends` */
};

/* node_state[0]: what all programs of the node read on every packet. */
struct node_state_key {
	__u32 index;
};

struct node_state_row {
	/* Revision of the last record that changed a policy or ipcache row. A conntrack entry allowed under another
	 * epoch is judged again with its next packet. */
	__u64 policy_epoch;
};

/* row_changes[0]: of rows that the programs keep copies of (endpoints, devices, ipcache, policy_subjects). Not derived: the
 * agent counts up before it writes such rows and again when they stand. */
struct row_changes_key {
	__u32 index;
};

struct row_changes_row {
	__u64 count; /* odd: rows are being written, and no copy counts */
};

/* tunnel[0]: the node's device that encapsulates, with the sender's identity in the VNI. */
struct tunnel_key {
	__u32 index;
};

struct tunnel_row {
	__u32 ifindex; /* 0: none */
};

/*
 * conntrack: one entry per plain flow, found by the packet's own five-tuple in either direction, since the two
 * ends are put in order. A flow to a frontend has a second entry, for the tuple between client and backend.
 */
struct conntrack_key {
	struct address low; /* the end that compares lower (address, then port), byte by byte */
	struct address high;
	__be16 low_port;
	__be16 high_port;
	__u8 protocol;
	__u8 reserved[3];
};

enum conntrack_flag {
	CONNTRACK_INITIATOR_HIGH = 1,  /* the high end sent the first packet */
	CONNTRACK_DNAT = 2,            /* forward packets go to `translated`: the backend */
	CONNTRACK_REVERSE_DNAT = 4,    /* reply packets get the source `translated`: the frontend */
	CONNTRACK_SEEN_REPLY = 8,
	CONNTRACK_CLOSING_FORWARD = 16, /* FIN seen from the initiator */
	CONNTRACK_CLOSING_REPLY = 32,
	CONNTRACK_RESET = 64,
	CONNTRACK_MASQUERADED = 128, /* leaves the node with the node's address: the ports stand in `nat` */
	CONNTRACK_HAIRPIN = 256,     /* an endpoint talks to itself: the client's side has the hairpin address */
	CONNTRACK_AUDITED = 512,     /* when it was judged last, it would have been denied without audit */
	CONNTRACK_DSR = 1024, /* no answers pass here: the backend's node sends them to the client */
};

enum conntrack_lifetime { /* seconds, where the configuration says nothing else */
	CONNTRACK_LIFETIME_SYN = 60,
	CONNTRACK_LIFETIME_TCP = 8000,
	CONNTRACK_LIFETIME_CLOSING = 10,
	CONNTRACK_LIFETIME_OTHER = 60,
};

struct conntrack_row {
	__u64 expires_ns; /* CLOCK_MONOTONIC, as of the last tick */
	__u64 policy_epoch;
	__u64 forward_packets;
	__u64 forward_bytes;
	__u64 reply_packets;
	__u64 reply_bytes;
	struct address translated;
	__be16 translated_port;
	__u16 flags;
	__u32 source_identity; /* of the initiator */
	__u8 forward_tcp_flags; /* union of the flags seen */
	__u8 reply_tcp_flags;
	__be16 masquerade_port; /* of the client of a service, with CONNTRACK_MASQUERADED; 0: `nat` tells */
	__u16 reserved[2];
};

/*
 * nat: the ports of masqueraded flows. Two entries per flow: OUTBOUND by the endpoint's own end, to the node's end;
 * INBOUND by the node's end, to the endpoint's. ICMP echo: the id is the port of the end that asks. An entry has no
 * lifetime of its own: it lives as long as the flow's conntrack entry.
 */
enum nat_direction { NAT_OUTBOUND = 0, NAT_INBOUND = 1 };

struct nat_key {
	struct address near; /* the endpoint, or this node */
	struct address far;  /* outside the mesh */
	__be16 near_port;
	__be16 far_port;
	__u8 protocol;
	__u8 direction;
	__u8 reserved[2];
};

struct nat_row {
	struct address address;
	__be16 port;
	__u16 reserved;
};

/*
 * fragments: of a datagram whose first fragment was seen, what only that one tells. Later fragments go its way; one that
 * comes before it is dropped. Addresses are those on the wire where the program stands.
 */
struct fragment_key {
	struct address source;
	struct address dest;
	__be32 id;
	__u8 protocol; /* 0 of IPv6, which numbers the datagrams of two ends together (RFC 8200, section 4.5) */
	__u8 reserved[3];
};

struct fragment_row {
	__be16 source_port;
	__be16 dest_port;
	__u8 protocol;
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 reserved;
};

/*
 * socket_flows: which frontend a socket of this node asked for, when it was sent to a backend instead. What it hears
 * from the backend is shown to it as the frontend's.
 */
struct socket_flow_key {
	__u64 socket_cookie; /* SO_COOKIE: never used again */
	struct address backend;
	__be16 backend_port;
	__u8 protocol;
	__u8 reserved[5];
};

enum socket_flow_flag {
	SOCKET_FLOW_NODE_PORT = 1, /* at an address of the node under which the frontend has no row */
};

struct socket_flow_row {
	struct address frontend; /* as the socket asked for it */
	__be16 frontend_port;
	__u16 flags;
};

/*
 * socket_ends: TCP sockets of endpoints of this node whose other end is here too, by their own tuple; `sockets` has the
 * same keys. Such two are joined: what is written to one goes to the other's queue, and there is no packet.
 */
struct socket_end_key {
	struct address near; /* the socket's own address, as it sees it */
	struct address far;
	__be16 near_port;
	__be16 far_port;
	__u32 reserved;
};

struct socket_end_row {
	struct address other_near; /* the other end's key: after translation, where there is one */
	struct address other_far;
	__be16 other_near_port;
	__be16 other_far_port;
	__u32 first_byte; /* sequence number of the first byte that this end sends */
	__u64 place;	  /* of the kernel's struct tcp_sock; what is read there proves itself (lib/joined.h) */
};

/* socket_switch[0]: which version of the programs may join sockets. A socket runs the program that was there when it
 * came into `sockets`, for as long as it lives; by this an older one learns that its maps are no longer kept. */
struct socket_switch_key {
	__u32 index;
};

struct socket_switch_row {
	__u64 content_id; /* config_content_id; 0: none */
};

/* metrics: per CPU, index = reason << 2 | direction. Reason 0 counts forwarded packets. */
enum traffic_direction { TRAFFIC_UNKNOWN = 0, TRAFFIC_INGRESS = 1, TRAFFIC_EGRESS = 2 };

struct metrics_key {
	__u32 index;
};

struct metrics_row {
	__u64 packets;
	__u64 bytes;
};

/* Why a packet was dropped: the numbers and names of Hubble's flow.proto. */
enum drop_reason {
	FORWARDED = 0,
	NOTIFICATIONS_LOST = 1, /* no drop: the ring buffer was full; only counted in metrics */
	FORWARDED_AT_SOCKET = 2, /* no drop: a message that went from socket to socket; only counted in metrics */
	SOCKETS_FULL = 3, /* no drop: no room to join a socket, which uses packets; only counted in metrics */
	INVALID_SOURCE_MAC = 130,
	INVALID_SOURCE_IP = 132,
	POLICY_DENIED = 133,
	INVALID_PACKET_DROPPED = 134,
	CT_TRUNCATED_OR_INVALID_HEADER = 135,
	FRAGMENTATION_NEEDED = 136, /* its option for DSR does not fit */
	CT_UNKNOWN_L4_PROTOCOL = 137,
	UNSUPPORTED_L3_PROTOCOL = 139,
	ERROR_WRITING_TO_PACKET = 141,
	UNKNOWN_L3_TARGET_ADDRESS = 150,
	STALE_OR_UNROUTABLE_IP = 151,
	ERROR_WHILE_CORRECTING_L3_CHECKSUM = 153,
	ERROR_WHILE_CORRECTING_L4_CHECKSUM = 154,
	CT_MAP_INSERTION_FAILED = 155,
	INVALID_IPV6_EXTENSION_HEADER = 156,
	IP_FRAGMENTATION_NOT_SUPPORTED = 157,
	SERVICE_BACKEND_NOT_FOUND = 158,
	NO_TUNNEL_OR_ENCAPSULATION_ENDPOINT = 160,
	NO_CONFIGURATION_AVAILABLE_TO_PERFORM_POLICY_DECISION = 165,
	UNSUPPORTED_L2_PROTOCOL = 166,
	NO_MAPPING_FOR_NAT_MASQUERADE = 167, /* every port that was tried is taken */
	UNSUPPORTED_PROTOCOL_FOR_NAT_MASQUERADE = 168,
	FIB_LOOKUP_FAILED = 169,
	INVALID_IDENTITY = 171,
	UNKNOWN_SENDER = 172,
	FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND = 175,
	DENIED_BY_LB_SRC_RANGE_CHECK = 177,
	POLICY_DENY = 181,
	INVALID_VNI = 183,
	TTL_EXCEEDED = 196,
	DROP_EP_NOT_READY = 203,
};

enum notification_type {
	NOTIFICATION_DROP = 1,
	NOTIFICATION_VERDICT = 2,
	NOTIFICATION_TRACE = 3,
};

/* VERDICT_AUDIT: it passed, and `drop_reason` tells why it would not have without audit. */
enum notification_verdict { VERDICT_DENY = 0, VERDICT_ALLOW = 1, VERDICT_AUDIT = 2 };

enum source_file {
	FILE_ENDPOINT = 1,
	FILE_HOST = 2,
	FILE_PARSE = 3,
	FILE_CONNTRACK = 4,
	FILE_POLICY = 5,
	FILE_SERVICE = 6,
	FILE_NAT = 7,
	FILE_FORWARD = 8,
	FILE_MASQUERADE = 9,
	FILE_OVERLAY = 10,
	FILE_NODEPORT = 11,
	FILE_SOCKET = 12,
	FILE_DSR = 13,
};

/* notifications: one ring buffer, records of one size, so that a reader is one array view. A reply that was refused
 * because its flow is denied now is told with the ends of the flow, as the policy sees them. */
struct notification {
	__u64 timestamp_ns; /* bpf_ktime_get_ns() */
	__u64 policy_epoch;
	struct address source;
	struct address dest;
	__u32 source_identity;
	__u32 dest_identity;
	__u32 ifindex; /* where the packet was seen */
	__u32 length;  /* bytes, as skb->len */
	__be16 source_port;
	__be16 dest_port; /* ICMP: type << 8 | code */
	__u16 endpoint_id; /* the endpoint whose policy spoke, or 0 */
	__u16 line;
	__u8 type;
	__u8 drop_reason;
	__u8 policy_direction; /* enum policy_direction */
	__u8 protocol;
	__u8 tcp_flags;
	__u8 verdict;
	__u8 match;
	__u8 file;
};

#define ABI_SIZE(name, bytes) _Static_assert(sizeof(struct name) == (bytes), "struct " #name " must be " #bytes " bytes")
ABI_SIZE(address, 16);
ABI_SIZE(endpoint_key, 16);
ABI_SIZE(endpoint_row, 28);
ABI_SIZE(device_key, 4);
ABI_SIZE(device_row, 48);
ABI_SIZE(ipcache_key, 20);
ABI_SIZE(ipcache_row, 24);
ABI_SIZE(facet_key, 20);
ABI_SIZE(facet_row, 4);
ABI_SIZE(policy_subject_key, 4);
ABI_SIZE(policy_subject_row, 20);
ABI_SIZE(policy_key, 16);
ABI_SIZE(policy_row, 4);
ABI_SIZE(service_key, 20);
ABI_SIZE(service_row, 32);
ABI_SIZE(backend_key, 16);
ABI_SIZE(backend_row, 24);
ABI_SIZE(maglev_key, 16);
ABI_SIZE(maglev_row, 1024);
ABI_SIZE(source_range_key, 28);
ABI_SIZE(source_range_row, 4);
ABI_SIZE(affinity_key, 36);
ABI_SIZE(affinity_row, 32);
ABI_SIZE(affinity_backend_key, 32);
ABI_SIZE(affinity_backend_row, 4);
ABI_SIZE(node_state_key, 4);
ABI_SIZE(node_state_row, 8);
ABI_SIZE(row_changes_key, 4);
ABI_SIZE(row_changes_row, 8);
ABI_SIZE(tunnel_key, 4);
ABI_SIZE(tunnel_row, 4);
ABI_SIZE(conntrack_key, 40);
ABI_SIZE(conntrack_row, 80);
ABI_SIZE(nat_key, 40);
ABI_SIZE(nat_row, 20);
ABI_SIZE(fragment_key, 40);
ABI_SIZE(fragment_row, 8);
ABI_SIZE(socket_flow_key, 32);
ABI_SIZE(socket_flow_row, 20);
ABI_SIZE(socket_end_key, 40);
ABI_SIZE(socket_end_row, 48);
ABI_SIZE(socket_switch_key, 4);
ABI_SIZE(socket_switch_row, 8);
ABI_SIZE(metrics_key, 4);
ABI_SIZE(metrics_row, 16);
ABI_SIZE(notification, 80);

#endif /* MESHLOG_ABI_H */
