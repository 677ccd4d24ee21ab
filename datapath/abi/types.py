"""Generated from bpf/abi.h, do not edit. Written anew by

    make -C bpf && python -m datapath.abi.generate bpf/abi_types.bpf.o > datapath/abi/types.py

ENUMS maps the name of each C enum to its constants, STRUCTS the name of each struct to its layout; each
constant also stands here under its own name.
"""

from collections.abc import Mapping

from datapath.abi.layout import Field, Struct

# enum abi_version
ABI_VERSION = 1

# enum affinity_client
AFFINITY_CLIENT_ADDRESS = 0
AFFINITY_CLIENT_NETNS = 1

# enum backend_flag
BACKEND_TERMINATING = 1
BACKEND_QUARANTINED = 2
BACKEND_MAINTENANCE = 4

# enum conntrack_flag
CONNTRACK_INITIATOR_HIGH = 1
CONNTRACK_DNAT = 2
CONNTRACK_REVERSE_DNAT = 4
CONNTRACK_SEEN_REPLY = 8
CONNTRACK_CLOSING_FORWARD = 16
CONNTRACK_CLOSING_REPLY = 32
CONNTRACK_RESET = 64
CONNTRACK_MASQUERADED = 128
CONNTRACK_HAIRPIN = 256
CONNTRACK_AUDITED = 512
CONNTRACK_DSR = 1024

# enum conntrack_lifetime
CONNTRACK_LIFETIME_SYN = 60
CONNTRACK_LIFETIME_TCP = 8000
CONNTRACK_LIFETIME_CLOSING = 10
CONNTRACK_LIFETIME_OTHER = 60

# enum device_flag
DEVICE_SHAPED_EGRESS = 1
DEVICE_SHAPED_INGRESS = 2
DEVICE_AUDITED = 4

# enum drop_reason
FORWARDED = 0
NOTIFICATIONS_LOST = 1
FORWARDED_AT_SOCKET = 2
SOCKETS_FULL = 3
INVALID_SOURCE_MAC = 130
INVALID_SOURCE_IP = 132
POLICY_DENIED = 133
INVALID_PACKET_DROPPED = 134
CT_TRUNCATED_OR_INVALID_HEADER = 135
FRAGMENTATION_NEEDED = 136
CT_UNKNOWN_L4_PROTOCOL = 137
UNSUPPORTED_L3_PROTOCOL = 139
ERROR_WRITING_TO_PACKET = 141
UNKNOWN_L3_TARGET_ADDRESS = 150
STALE_OR_UNROUTABLE_IP = 151
ERROR_WHILE_CORRECTING_L3_CHECKSUM = 153
ERROR_WHILE_CORRECTING_L4_CHECKSUM = 154
CT_MAP_INSERTION_FAILED = 155
INVALID_IPV6_EXTENSION_HEADER = 156
IP_FRAGMENTATION_NOT_SUPPORTED = 157
SERVICE_BACKEND_NOT_FOUND = 158
NO_TUNNEL_OR_ENCAPSULATION_ENDPOINT = 160
NO_CONFIGURATION_AVAILABLE_TO_PERFORM_POLICY_DECISION = 165
UNSUPPORTED_L2_PROTOCOL = 166
NO_MAPPING_FOR_NAT_MASQUERADE = 167
UNSUPPORTED_PROTOCOL_FOR_NAT_MASQUERADE = 168
FIB_LOOKUP_FAILED = 169
INVALID_IDENTITY = 171
UNKNOWN_SENDER = 172
FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND = 175
DENIED_BY_LB_SRC_RANGE_CHECK = 177
POLICY_DENY = 181
INVALID_VNI = 183
TTL_EXCEEDED = 196
DROP_EP_NOT_READY = 203

# enum endpoint_flag
ENDPOINT_HOST = 1
ENDPOINT_SHAPED = 2
ENDPOINT_AUDITED = 4
ENDPOINT_JOINED = 8

# enum identity
IDENTITY_UNKNOWN = 0
IDENTITY_HOST = 1
IDENTITY_WORLD = 2
IDENTITY_UNMANAGED = 3
IDENTITY_HEALTH = 4
IDENTITY_INIT = 5
IDENTITY_REMOTE_NODE = 6
IDENTITY_KUBE_APISERVER = 7
IDENTITY_INGRESS = 8

# enum identity_scope
IDENTITY_SCOPE_SHIFT = 24
IDENTITY_SCOPE_PREFIX = 1
IDENTITY_SCOPE_NODE = 2
IDENTITY_SCOPE_FACET = 3

# enum ipcache_flag
IPCACHE_REMOTE_ENDPOINT = 1
IPCACHE_TUNNEL = 2

# enum limit
ENDPOINTS_MAX = 65536
DEVICES_MAX = 4096
IPCACHE_MAX = 512000
FACETS_MAX = 512000
POLICY_SUBJECTS_MAX = 16384
POLICY_MAX = 262144
SERVICES_MAX = 65536
BACKENDS_MAX = 262144
SOURCE_RANGES_MAX = 65536
AFFINITY_BACKENDS_MAX = 131072
AFFINITY_MAX = 65536
MAGLEV_MAX = 131072
MAGLEV_CHUNK = 512
CONNTRACK_MAX = 262144
NAT_MAX = 131072
UNMASQUERADED_MAX = 32
FRAGMENTS_MAX = 8192
SOCKET_FLOWS_MAX = 65536
SOCKET_ENDS_MAX = 65536
METRICS_MAX = 1024
NOTIFICATION_BYTES = 4194304

# enum nat_direction
NAT_OUTBOUND = 0
NAT_INBOUND = 1

# enum notification_type
NOTIFICATION_DROP = 1
NOTIFICATION_VERDICT = 2
NOTIFICATION_TRACE = 3

# enum notification_verdict
VERDICT_DENY = 0
VERDICT_ALLOW = 1
VERDICT_AUDIT = 2

# enum policy_direction
POLICY_INGRESS = 0
POLICY_EGRESS = 1

# enum policy_match
POLICY_MATCH_NONE = 0
POLICY_MATCH_L3_ONLY = 1
POLICY_MATCH_L3_L4 = 2
POLICY_MATCH_L4_ONLY = 3
POLICY_MATCH_ALL = 4
POLICY_MATCH_L3_PROTO = 5
POLICY_MATCH_PROTO_ONLY = 6

# enum policy_shape
POLICY_SHAPE_L3 = 1
POLICY_SHAPE_PORT_0 = 2
POLICY_SHAPES = 18

# enum policy_subject_flag
POLICY_SUBJECT_AUDIT = 1
POLICY_SUBJECT_ASKS_LOCALHOST = 2
POLICY_SUBJECT_ASKS_FACETS = 4
POLICY_SUBJECT_HAS_FACETS = 8

# enum policy_verdict
POLICY_VERDICT_ALLOW = 1
POLICY_VERDICT_DENY = 2

# enum service_flag
SERVICE_CLUSTER_IP = 1
SERVICE_NODE_PORT = 2
SERVICE_LOAD_BALANCER = 4
SERVICE_EXTERNAL_IP = 8
SERVICE_HOST_PORT = 16
SERVICE_LOCAL_BACKENDS = 32
SERVICE_DSR = 64
SERVICE_SOURCE_RANGES_DENY = 128
SERVICE_LOCAL_REDIRECT = 256

# enum service_scope
SERVICE_SCOPE_INTERNAL = 0
SERVICE_SCOPE_EXTERNAL = 1

# enum shaper
SHAPER_MAJOR = 19788
SHAPER_MARK = 5065809

# enum socket_flow_flag
SOCKET_FLOW_NODE_PORT = 1

# enum source_file
FILE_ENDPOINT = 1
FILE_HOST = 2
FILE_PARSE = 3
FILE_CONNTRACK = 4
FILE_POLICY = 5
FILE_SERVICE = 6
FILE_NAT = 7
FILE_FORWARD = 8
FILE_MASQUERADE = 9
FILE_OVERLAY = 10
FILE_NODEPORT = 11
FILE_SOCKET = 12
FILE_DSR = 13

# enum traffic_direction
TRAFFIC_UNKNOWN = 0
TRAFFIC_INGRESS = 1
TRAFFIC_EGRESS = 2

ENUMS: Mapping[str, Mapping[str, int]] = {
    "abi_version": {
        "ABI_VERSION": ABI_VERSION,
    },
    "affinity_client": {
        "AFFINITY_CLIENT_ADDRESS": AFFINITY_CLIENT_ADDRESS,
        "AFFINITY_CLIENT_NETNS": AFFINITY_CLIENT_NETNS,
    },
    "backend_flag": {
        "BACKEND_TERMINATING": BACKEND_TERMINATING,
        "BACKEND_QUARANTINED": BACKEND_QUARANTINED,
        "BACKEND_MAINTENANCE": BACKEND_MAINTENANCE,
    },
    "conntrack_flag": {
        "CONNTRACK_INITIATOR_HIGH": CONNTRACK_INITIATOR_HIGH,
        "CONNTRACK_DNAT": CONNTRACK_DNAT,
        "CONNTRACK_REVERSE_DNAT": CONNTRACK_REVERSE_DNAT,
        "CONNTRACK_SEEN_REPLY": CONNTRACK_SEEN_REPLY,
        "CONNTRACK_CLOSING_FORWARD": CONNTRACK_CLOSING_FORWARD,
        "CONNTRACK_CLOSING_REPLY": CONNTRACK_CLOSING_REPLY,
        "CONNTRACK_RESET": CONNTRACK_RESET,
        "CONNTRACK_MASQUERADED": CONNTRACK_MASQUERADED,
        "CONNTRACK_HAIRPIN": CONNTRACK_HAIRPIN,
        "CONNTRACK_AUDITED": CONNTRACK_AUDITED,
        "CONNTRACK_DSR": CONNTRACK_DSR,
    },
    "conntrack_lifetime": {
        "CONNTRACK_LIFETIME_SYN": CONNTRACK_LIFETIME_SYN,
        "CONNTRACK_LIFETIME_TCP": CONNTRACK_LIFETIME_TCP,
        "CONNTRACK_LIFETIME_CLOSING": CONNTRACK_LIFETIME_CLOSING,
        "CONNTRACK_LIFETIME_OTHER": CONNTRACK_LIFETIME_OTHER,
    },
    "device_flag": {
        "DEVICE_SHAPED_EGRESS": DEVICE_SHAPED_EGRESS,
        "DEVICE_SHAPED_INGRESS": DEVICE_SHAPED_INGRESS,
        "DEVICE_AUDITED": DEVICE_AUDITED,
    },
    "drop_reason": {
        "FORWARDED": FORWARDED,
        "NOTIFICATIONS_LOST": NOTIFICATIONS_LOST,
        "FORWARDED_AT_SOCKET": FORWARDED_AT_SOCKET,
        "SOCKETS_FULL": SOCKETS_FULL,
        "INVALID_SOURCE_MAC": INVALID_SOURCE_MAC,
        "INVALID_SOURCE_IP": INVALID_SOURCE_IP,
        "POLICY_DENIED": POLICY_DENIED,
        "INVALID_PACKET_DROPPED": INVALID_PACKET_DROPPED,
        "CT_TRUNCATED_OR_INVALID_HEADER": CT_TRUNCATED_OR_INVALID_HEADER,
        "FRAGMENTATION_NEEDED": FRAGMENTATION_NEEDED,
        "CT_UNKNOWN_L4_PROTOCOL": CT_UNKNOWN_L4_PROTOCOL,
        "UNSUPPORTED_L3_PROTOCOL": UNSUPPORTED_L3_PROTOCOL,
        "ERROR_WRITING_TO_PACKET": ERROR_WRITING_TO_PACKET,
        "UNKNOWN_L3_TARGET_ADDRESS": UNKNOWN_L3_TARGET_ADDRESS,
        "STALE_OR_UNROUTABLE_IP": STALE_OR_UNROUTABLE_IP,
        "ERROR_WHILE_CORRECTING_L3_CHECKSUM": ERROR_WHILE_CORRECTING_L3_CHECKSUM,
        "ERROR_WHILE_CORRECTING_L4_CHECKSUM": ERROR_WHILE_CORRECTING_L4_CHECKSUM,
        "CT_MAP_INSERTION_FAILED": CT_MAP_INSERTION_FAILED,
        "INVALID_IPV6_EXTENSION_HEADER": INVALID_IPV6_EXTENSION_HEADER,
        "IP_FRAGMENTATION_NOT_SUPPORTED": IP_FRAGMENTATION_NOT_SUPPORTED,
        "SERVICE_BACKEND_NOT_FOUND": SERVICE_BACKEND_NOT_FOUND,
        "NO_TUNNEL_OR_ENCAPSULATION_ENDPOINT": NO_TUNNEL_OR_ENCAPSULATION_ENDPOINT,
        "NO_CONFIGURATION_AVAILABLE_TO_PERFORM_POLICY_DECISION": NO_CONFIGURATION_AVAILABLE_TO_PERFORM_POLICY_DECISION,
        "UNSUPPORTED_L2_PROTOCOL": UNSUPPORTED_L2_PROTOCOL,
        "NO_MAPPING_FOR_NAT_MASQUERADE": NO_MAPPING_FOR_NAT_MASQUERADE,
        "UNSUPPORTED_PROTOCOL_FOR_NAT_MASQUERADE": UNSUPPORTED_PROTOCOL_FOR_NAT_MASQUERADE,
        "FIB_LOOKUP_FAILED": FIB_LOOKUP_FAILED,
        "INVALID_IDENTITY": INVALID_IDENTITY,
        "UNKNOWN_SENDER": UNKNOWN_SENDER,
        "FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND": FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND,
        "DENIED_BY_LB_SRC_RANGE_CHECK": DENIED_BY_LB_SRC_RANGE_CHECK,
        "POLICY_DENY": POLICY_DENY,
        "INVALID_VNI": INVALID_VNI,
        "TTL_EXCEEDED": TTL_EXCEEDED,
        "DROP_EP_NOT_READY": DROP_EP_NOT_READY,
    },
    "endpoint_flag": {
        "ENDPOINT_HOST": ENDPOINT_HOST,
        "ENDPOINT_SHAPED": ENDPOINT_SHAPED,
        "ENDPOINT_AUDITED": ENDPOINT_AUDITED,
        "ENDPOINT_JOINED": ENDPOINT_JOINED,
    },
    "identity": {
        "IDENTITY_UNKNOWN": IDENTITY_UNKNOWN,
        "IDENTITY_HOST": IDENTITY_HOST,
        "IDENTITY_WORLD": IDENTITY_WORLD,
        "IDENTITY_UNMANAGED": IDENTITY_UNMANAGED,
        "IDENTITY_HEALTH": IDENTITY_HEALTH,
        "IDENTITY_INIT": IDENTITY_INIT,
        "IDENTITY_REMOTE_NODE": IDENTITY_REMOTE_NODE,
        "IDENTITY_KUBE_APISERVER": IDENTITY_KUBE_APISERVER,
        "IDENTITY_INGRESS": IDENTITY_INGRESS,
    },
    "identity_scope": {
        "IDENTITY_SCOPE_SHIFT": IDENTITY_SCOPE_SHIFT,
        "IDENTITY_SCOPE_PREFIX": IDENTITY_SCOPE_PREFIX,
        "IDENTITY_SCOPE_NODE": IDENTITY_SCOPE_NODE,
        "IDENTITY_SCOPE_FACET": IDENTITY_SCOPE_FACET,
    },
    "ipcache_flag": {
        "IPCACHE_REMOTE_ENDPOINT": IPCACHE_REMOTE_ENDPOINT,
        "IPCACHE_TUNNEL": IPCACHE_TUNNEL,
    },
    "limit": {
        "ENDPOINTS_MAX": ENDPOINTS_MAX,
        "DEVICES_MAX": DEVICES_MAX,
        "IPCACHE_MAX": IPCACHE_MAX,
        "FACETS_MAX": FACETS_MAX,
        "POLICY_SUBJECTS_MAX": POLICY_SUBJECTS_MAX,
        "POLICY_MAX": POLICY_MAX,
        "SERVICES_MAX": SERVICES_MAX,
        "BACKENDS_MAX": BACKENDS_MAX,
        "SOURCE_RANGES_MAX": SOURCE_RANGES_MAX,
        "AFFINITY_BACKENDS_MAX": AFFINITY_BACKENDS_MAX,
        "AFFINITY_MAX": AFFINITY_MAX,
        "MAGLEV_MAX": MAGLEV_MAX,
        "MAGLEV_CHUNK": MAGLEV_CHUNK,
        "CONNTRACK_MAX": CONNTRACK_MAX,
        "NAT_MAX": NAT_MAX,
        "UNMASQUERADED_MAX": UNMASQUERADED_MAX,
        "FRAGMENTS_MAX": FRAGMENTS_MAX,
        "SOCKET_FLOWS_MAX": SOCKET_FLOWS_MAX,
        "SOCKET_ENDS_MAX": SOCKET_ENDS_MAX,
        "METRICS_MAX": METRICS_MAX,
        "NOTIFICATION_BYTES": NOTIFICATION_BYTES,
    },
    "nat_direction": {
        "NAT_OUTBOUND": NAT_OUTBOUND,
        "NAT_INBOUND": NAT_INBOUND,
    },
    "notification_type": {
        "NOTIFICATION_DROP": NOTIFICATION_DROP,
        "NOTIFICATION_VERDICT": NOTIFICATION_VERDICT,
        "NOTIFICATION_TRACE": NOTIFICATION_TRACE,
    },
    "notification_verdict": {
        "VERDICT_DENY": VERDICT_DENY,
        "VERDICT_ALLOW": VERDICT_ALLOW,
        "VERDICT_AUDIT": VERDICT_AUDIT,
    },
    "policy_direction": {
        "POLICY_INGRESS": POLICY_INGRESS,
        "POLICY_EGRESS": POLICY_EGRESS,
    },
    "policy_match": {
        "POLICY_MATCH_NONE": POLICY_MATCH_NONE,
        "POLICY_MATCH_L3_ONLY": POLICY_MATCH_L3_ONLY,
        "POLICY_MATCH_L3_L4": POLICY_MATCH_L3_L4,
        "POLICY_MATCH_L4_ONLY": POLICY_MATCH_L4_ONLY,
        "POLICY_MATCH_ALL": POLICY_MATCH_ALL,
        "POLICY_MATCH_L3_PROTO": POLICY_MATCH_L3_PROTO,
        "POLICY_MATCH_PROTO_ONLY": POLICY_MATCH_PROTO_ONLY,
    },
    "policy_shape": {
        "POLICY_SHAPE_L3": POLICY_SHAPE_L3,
        "POLICY_SHAPE_PORT_0": POLICY_SHAPE_PORT_0,
        "POLICY_SHAPES": POLICY_SHAPES,
    },
    "policy_subject_flag": {
        "POLICY_SUBJECT_AUDIT": POLICY_SUBJECT_AUDIT,
        "POLICY_SUBJECT_ASKS_LOCALHOST": POLICY_SUBJECT_ASKS_LOCALHOST,
        "POLICY_SUBJECT_ASKS_FACETS": POLICY_SUBJECT_ASKS_FACETS,
        "POLICY_SUBJECT_HAS_FACETS": POLICY_SUBJECT_HAS_FACETS,
    },
    "policy_verdict": {
        "POLICY_VERDICT_ALLOW": POLICY_VERDICT_ALLOW,
        "POLICY_VERDICT_DENY": POLICY_VERDICT_DENY,
    },
    "service_flag": {
        "SERVICE_CLUSTER_IP": SERVICE_CLUSTER_IP,
        "SERVICE_NODE_PORT": SERVICE_NODE_PORT,
        "SERVICE_LOAD_BALANCER": SERVICE_LOAD_BALANCER,
        "SERVICE_EXTERNAL_IP": SERVICE_EXTERNAL_IP,
        "SERVICE_HOST_PORT": SERVICE_HOST_PORT,
        "SERVICE_LOCAL_BACKENDS": SERVICE_LOCAL_BACKENDS,
        "SERVICE_DSR": SERVICE_DSR,
        "SERVICE_SOURCE_RANGES_DENY": SERVICE_SOURCE_RANGES_DENY,
        "SERVICE_LOCAL_REDIRECT": SERVICE_LOCAL_REDIRECT,
    },
    "service_scope": {
        "SERVICE_SCOPE_INTERNAL": SERVICE_SCOPE_INTERNAL,
        "SERVICE_SCOPE_EXTERNAL": SERVICE_SCOPE_EXTERNAL,
    },
    "shaper": {
        "SHAPER_MAJOR": SHAPER_MAJOR,
        "SHAPER_MARK": SHAPER_MARK,
    },
    "socket_flow_flag": {
        "SOCKET_FLOW_NODE_PORT": SOCKET_FLOW_NODE_PORT,
    },
    "source_file": {
        "FILE_ENDPOINT": FILE_ENDPOINT,
        "FILE_HOST": FILE_HOST,
        "FILE_PARSE": FILE_PARSE,
        "FILE_CONNTRACK": FILE_CONNTRACK,
        "FILE_POLICY": FILE_POLICY,
        "FILE_SERVICE": FILE_SERVICE,
        "FILE_NAT": FILE_NAT,
        "FILE_FORWARD": FILE_FORWARD,
        "FILE_MASQUERADE": FILE_MASQUERADE,
        "FILE_OVERLAY": FILE_OVERLAY,
        "FILE_NODEPORT": FILE_NODEPORT,
        "FILE_SOCKET": FILE_SOCKET,
        "FILE_DSR": FILE_DSR,
    },
    "traffic_direction": {
        "TRAFFIC_UNKNOWN": TRAFFIC_UNKNOWN,
        "TRAFFIC_INGRESS": TRAFFIC_INGRESS,
        "TRAFFIC_EGRESS": TRAFFIC_EGRESS,
    },
}

STRUCTS: Mapping[str, Struct] = {
    "affinity_backend_key": Struct(
        "affinity_backend_key",
        32,
        (
            Field("backend_set", 0, 8, "u64"),
            Field("address", 8, 16, "bytes"),
            Field("port", 24, 2, "be16"),
            Field("reserved", 26, 6, "bytes"),
        ),
    ),
    "affinity_backend_row": Struct(
        "affinity_backend_row",
        4,
        (
            Field("slot", 0, 4, "u32"),
        ),
    ),
    "affinity_key": Struct(
        "affinity_key",
        36,
        (
            Field("client", 0, 16, "bytes"),
            Field("frontend", 16, 16, "bytes"),
            Field("port", 32, 2, "be16"),
            Field("protocol", 34, 1, "u8"),
            Field("client_kind", 35, 1, "u8"),
        ),
    ),
    "affinity_row": Struct(
        "affinity_row",
        32,
        (
            Field("last_used_ns", 0, 8, "u64"),
            Field("address", 8, 16, "bytes"),
            Field("port", 24, 2, "be16"),
            Field("reserved", 26, 6, "bytes"),
        ),
    ),
    "backend_key": Struct(
        "backend_key",
        16,
        (
            Field("backend_set", 0, 8, "u64"),
            Field("slot", 8, 4, "u32"),
            Field("reserved", 12, 4, "u32"),
        ),
    ),
    "backend_row": Struct(
        "backend_row",
        24,
        (
            Field("address", 0, 16, "bytes"),
            Field("port", 16, 2, "be16"),
            Field("flags", 18, 2, "u16"),
            Field("reserved", 20, 4, "u32"),
        ),
    ),
    "conntrack_key": Struct(
        "conntrack_key",
        40,
        (
            Field("low", 0, 16, "bytes"),
            Field("high", 16, 16, "bytes"),
            Field("low_port", 32, 2, "be16"),
            Field("high_port", 34, 2, "be16"),
            Field("protocol", 36, 1, "u8"),
            Field("reserved", 37, 3, "bytes"),
        ),
    ),
    "conntrack_row": Struct(
        "conntrack_row",
        80,
        (
            Field("expires_ns", 0, 8, "u64"),
            Field("policy_epoch", 8, 8, "u64"),
            Field("forward_packets", 16, 8, "u64"),
            Field("forward_bytes", 24, 8, "u64"),
            Field("reply_packets", 32, 8, "u64"),
            Field("reply_bytes", 40, 8, "u64"),
            Field("translated", 48, 16, "bytes"),
            Field("translated_port", 64, 2, "be16"),
            Field("flags", 66, 2, "u16"),
            Field("source_identity", 68, 4, "u32"),
            Field("forward_tcp_flags", 72, 1, "u8"),
            Field("reply_tcp_flags", 73, 1, "u8"),
            Field("masquerade_port", 74, 2, "be16"),
            Field("reserved", 76, 4, "bytes"),
        ),
    ),
    "device_key": Struct(
        "device_key",
        4,
        (
            Field("ifindex", 0, 4, "u32"),
        ),
    ),
    "device_row": Struct(
        "device_row",
        48,
        (
            Field("ipv4", 0, 16, "bytes"),
            Field("ipv6", 16, 16, "bytes"),
            Field("identity", 32, 4, "u32"),
            Field("endpoint_id", 36, 4, "u32"),
            Field("mac", 40, 6, "bytes"),
            Field("flags", 46, 2, "u16"),
        ),
    ),
    "endpoint_key": Struct(
        "endpoint_key",
        16,
        (
            Field("address", 0, 16, "bytes"),
        ),
    ),
    "endpoint_row": Struct(
        "endpoint_row",
        28,
        (
            Field("ifindex", 0, 4, "u32"),
            Field("identity", 4, 4, "u32"),
            Field("endpoint_id", 8, 4, "u32"),
            Field("flags", 12, 2, "u16"),
            Field("mac", 14, 6, "bytes"),
            Field("host_mac", 20, 6, "bytes"),
            Field("reserved", 26, 2, "u16"),
        ),
    ),
    "facet_key": Struct(
        "facet_key",
        20,
        (
            Field("address", 0, 16, "bytes"),
            Field("identity", 16, 4, "u32"),
        ),
    ),
    "facet_row": Struct(
        "facet_row",
        4,
        (
            Field("facet", 0, 4, "u32"),
        ),
    ),
    "fragment_key": Struct(
        "fragment_key",
        40,
        (
            Field("source", 0, 16, "bytes"),
            Field("dest", 16, 16, "bytes"),
            Field("id", 32, 4, "be32"),
            Field("protocol", 36, 1, "u8"),
            Field("reserved", 37, 3, "bytes"),
        ),
    ),
    "fragment_row": Struct(
        "fragment_row",
        8,
        (
            Field("source_port", 0, 2, "be16"),
            Field("dest_port", 2, 2, "be16"),
            Field("protocol", 4, 1, "u8"),
            Field("icmp_type", 5, 1, "u8"),
            Field("icmp_code", 6, 1, "u8"),
            Field("reserved", 7, 1, "u8"),
        ),
    ),
    "ipcache_key": Struct(
        "ipcache_key",
        20,
        (
            Field("prefix_length", 0, 4, "u32"),
            Field("address", 4, 16, "bytes"),
        ),
    ),
    "ipcache_row": Struct(
        "ipcache_row",
        24,
        (
            Field("node", 0, 16, "bytes"),
            Field("identity", 16, 4, "u32"),
            Field("flags", 20, 4, "u32"),
        ),
    ),
    "maglev_key": Struct(
        "maglev_key",
        16,
        (
            Field("backend_set", 0, 8, "u64"),
            Field("chunk", 8, 4, "u32"),
            Field("reserved", 12, 4, "u32"),
        ),
    ),
    "maglev_row": Struct(
        "maglev_row",
        1024,
        (
            Field("slots", 0, 1024, "bytes"),
        ),
    ),
    "metrics_key": Struct(
        "metrics_key",
        4,
        (
            Field("index", 0, 4, "u32"),
        ),
    ),
    "metrics_row": Struct(
        "metrics_row",
        16,
        (
            Field("packets", 0, 8, "u64"),
            Field("bytes", 8, 8, "u64"),
        ),
    ),
    "nat_key": Struct(
        "nat_key",
        40,
        (
            Field("near", 0, 16, "bytes"),
            Field("far", 16, 16, "bytes"),
            Field("near_port", 32, 2, "be16"),
            Field("far_port", 34, 2, "be16"),
            Field("protocol", 36, 1, "u8"),
            Field("direction", 37, 1, "u8"),
            Field("reserved", 38, 2, "bytes"),
        ),
    ),
    "nat_row": Struct(
        "nat_row",
        20,
        (
            Field("address", 0, 16, "bytes"),
            Field("port", 16, 2, "be16"),
            Field("reserved", 18, 2, "u16"),
        ),
    ),
    "node_state_key": Struct(
        "node_state_key",
        4,
        (
            Field("index", 0, 4, "u32"),
        ),
    ),
    "node_state_row": Struct(
        "node_state_row",
        8,
        (
            Field("policy_epoch", 0, 8, "u64"),
        ),
    ),
    "notification": Struct(
        "notification",
        80,
        (
            Field("timestamp_ns", 0, 8, "u64"),
            Field("policy_epoch", 8, 8, "u64"),
            Field("source", 16, 16, "bytes"),
            Field("dest", 32, 16, "bytes"),
            Field("source_identity", 48, 4, "u32"),
            Field("dest_identity", 52, 4, "u32"),
            Field("ifindex", 56, 4, "u32"),
            Field("length", 60, 4, "u32"),
            Field("source_port", 64, 2, "be16"),
            Field("dest_port", 66, 2, "be16"),
            Field("endpoint_id", 68, 2, "u16"),
            Field("line", 70, 2, "u16"),
            Field("type", 72, 1, "u8"),
            Field("drop_reason", 73, 1, "u8"),
            Field("policy_direction", 74, 1, "u8"),
            Field("protocol", 75, 1, "u8"),
            Field("tcp_flags", 76, 1, "u8"),
            Field("verdict", 77, 1, "u8"),
            Field("match", 78, 1, "u8"),
            Field("file", 79, 1, "u8"),
        ),
    ),
    "policy_key": Struct(
        "policy_key",
        16,
        (
            Field("subject_identity", 0, 4, "u32"),
            Field("remote_identity", 4, 4, "u32"),
            Field("port", 8, 2, "be16"),
            Field("port_prefix", 10, 1, "u8"),
            Field("protocol", 11, 1, "u8"),
            Field("direction", 12, 1, "u8"),
            Field("reserved", 13, 3, "bytes"),
        ),
    ),
    "policy_row": Struct(
        "policy_row",
        4,
        (
            Field("verdict", 0, 4, "u32"),
        ),
    ),
    "policy_subject_key": Struct(
        "policy_subject_key",
        4,
        (
            Field("identity", 0, 4, "u32"),
        ),
    ),
    "policy_subject_row": Struct(
        "policy_subject_row",
        20,
        (
            Field("ingress_enforced", 0, 4, "u32"),
            Field("egress_enforced", 4, 4, "u32"),
            Field("ingress_shapes", 8, 4, "u32"),
            Field("egress_shapes", 12, 4, "u32"),
            Field("flags", 16, 4, "u32"),
        ),
    ),
    "row_changes_key": Struct(
        "row_changes_key",
        4,
        (
            Field("index", 0, 4, "u32"),
        ),
    ),
    "row_changes_row": Struct(
        "row_changes_row",
        8,
        (
            Field("count", 0, 8, "u64"),
        ),
    ),
    "service_key": Struct(
        "service_key",
        20,
        (
            Field("address", 0, 16, "bytes"),
            Field("port", 16, 2, "be16"),
            Field("protocol", 18, 1, "u8"),
            Field("scope", 19, 1, "u8"),
        ),
    ),
    "service_row": Struct(
        "service_row",
        32,
        (
            Field("backend_set", 0, 8, "u64"),
            Field("count", 8, 4, "u32"),
            Field("flags", 12, 4, "u32"),
            Field("affinity_s", 16, 4, "u32"),
            Field("maglev_slots", 20, 4, "u32"),
            Field("source_range_set", 24, 8, "u64"),
        ),
    ),
    "socket_end_key": Struct(
        "socket_end_key",
        40,
        (
            Field("near", 0, 16, "bytes"),
            Field("far", 16, 16, "bytes"),
            Field("near_port", 32, 2, "be16"),
            Field("far_port", 34, 2, "be16"),
            Field("reserved", 36, 4, "u32"),
        ),
    ),
    "socket_end_row": Struct(
        "socket_end_row",
        48,
        (
            Field("other_near", 0, 16, "bytes"),
            Field("other_far", 16, 16, "bytes"),
            Field("other_near_port", 32, 2, "be16"),
            Field("other_far_port", 34, 2, "be16"),
            Field("first_byte", 36, 4, "u32"),
            Field("place", 40, 8, "u64"),
        ),
    ),
    "socket_flow_key": Struct(
        "socket_flow_key",
        32,
        (
            Field("socket_cookie", 0, 8, "u64"),
            Field("backend", 8, 16, "bytes"),
            Field("backend_port", 24, 2, "be16"),
            Field("protocol", 26, 1, "u8"),
            Field("reserved", 27, 5, "bytes"),
        ),
    ),
    "socket_flow_row": Struct(
        "socket_flow_row",
        20,
        (
            Field("frontend", 0, 16, "bytes"),
            Field("frontend_port", 16, 2, "be16"),
            Field("flags", 18, 2, "u16"),
        ),
    ),
    "socket_switch_key": Struct(
        "socket_switch_key",
        4,
        (
            Field("index", 0, 4, "u32"),
        ),
    ),
    "socket_switch_row": Struct(
        "socket_switch_row",
        8,
        (
            Field("content_id", 0, 8, "u64"),
        ),
    ),
    "source_range_key": Struct(
        "source_range_key",
        28,
        (
            Field("prefix_length", 0, 4, "u32"),
            Field("source_range_set", 4, 8, "u64"),
            Field("address", 12, 16, "bytes"),
        ),
    ),
    "source_range_row": Struct(
        "source_range_row",
        4,
        (
            Field("contained", 0, 4, "u32"),
        ),
    ),
    "tunnel_key": Struct(
        "tunnel_key",
        4,
        (
            Field("index", 0, 4, "u32"),
        ),
    ),
    "tunnel_row": Struct(
        "tunnel_row",
        4,
        (
            Field("ifindex", 0, 4, "u32"),
        ),
    ),
}
