// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Names every type of abi.h, so that the compiler writes it into the BTF that datapath/abi/generate.py reads. */
#include "abi.h"

#define EMIT_STRUCT(name) struct name *emit_##name
#define EMIT_ENUM(name) enum name emit_enum_##name

EMIT_STRUCT(address);
EMIT_STRUCT(endpoint_key);
EMIT_STRUCT(endpoint_row);
EMIT_STRUCT(device_key);
EMIT_STRUCT(device_row);
EMIT_STRUCT(ipcache_key);
EMIT_STRUCT(ipcache_row);
EMIT_STRUCT(facet_key);
EMIT_STRUCT(facet_row);
EMIT_STRUCT(policy_subject_key);
EMIT_STRUCT(policy_subject_row);
EMIT_STRUCT(policy_key);
EMIT_STRUCT(policy_row);
EMIT_STRUCT(service_key);
EMIT_STRUCT(service_row);
EMIT_STRUCT(backend_key);
EMIT_STRUCT(backend_row);
EMIT_STRUCT(maglev_key);
EMIT_STRUCT(maglev_row);
EMIT_STRUCT(source_range_key);
EMIT_STRUCT(source_range_row);
EMIT_STRUCT(affinity_key);
EMIT_STRUCT(affinity_row);
EMIT_STRUCT(affinity_backend_key);
EMIT_STRUCT(affinity_backend_row);
EMIT_STRUCT(node_state_key);
EMIT_STRUCT(node_state_row);
EMIT_STRUCT(row_changes_key);
EMIT_STRUCT(row_changes_row);
EMIT_STRUCT(tunnel_key);
EMIT_STRUCT(tunnel_row);
EMIT_STRUCT(conntrack_key);
EMIT_STRUCT(conntrack_row);
EMIT_STRUCT(nat_key);
EMIT_STRUCT(nat_row);
EMIT_STRUCT(fragment_key);
EMIT_STRUCT(fragment_row);
EMIT_STRUCT(socket_flow_key);
EMIT_STRUCT(socket_flow_row);
EMIT_STRUCT(socket_end_key);
EMIT_STRUCT(socket_end_row);
EMIT_STRUCT(socket_switch_key);
EMIT_STRUCT(socket_switch_row);
EMIT_STRUCT(metrics_key);
EMIT_STRUCT(metrics_row);
EMIT_STRUCT(notification);

EMIT_ENUM(abi_version);
EMIT_ENUM(limit);
EMIT_ENUM(identity);
EMIT_ENUM(identity_scope);
EMIT_ENUM(endpoint_flag);
EMIT_ENUM(device_flag);
EMIT_ENUM(shaper);
EMIT_ENUM(ipcache_flag);
EMIT_ENUM(policy_direction);
EMIT_ENUM(policy_subject_flag);
EMIT_ENUM(policy_shape);
EMIT_ENUM(policy_verdict);
EMIT_ENUM(policy_match);
EMIT_ENUM(service_flag);
EMIT_ENUM(service_scope);
EMIT_ENUM(backend_flag);
EMIT_ENUM(affinity_client);
EMIT_ENUM(conntrack_flag);
EMIT_ENUM(socket_flow_flag);
EMIT_ENUM(conntrack_lifetime);
EMIT_ENUM(nat_direction);
EMIT_ENUM(traffic_direction);
EMIT_ENUM(drop_reason);
EMIT_ENUM(notification_type);
EMIT_ENUM(notification_verdict);
EMIT_ENUM(source_file);
