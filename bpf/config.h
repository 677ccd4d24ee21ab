/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Load-time configuration: constants in .rodata, written once between open and load. What may change while a
 * program runs is no constant: it is a row in a map (abi.h).
 */
#ifndef MESHLOG_CONFIG_H
#define MESHLOG_CONFIG_H

#include <linux/types.h>
#include <bpf/bpf_endian.h>

#include "abi.h"

/* ifindex of the device that leads to the other nodes; 0: forward nothing to other nodes. */
const volatile __u32 config_underlay_ifindex = 0;

/* 1: a notification for every new flow's verdict. */
const volatile __u32 config_notify_verdicts = 1;

/* 1: a notification for every drop. It tells all that a verdict does, so that a denied flow has only this one. */
const volatile __u32 config_notify_drops = 1;

/* 1: a denied flow has a notification of its verdict beside that of the drop. */
const volatile __u32 config_notify_denials = 0;

/* The client's address where an endpoint reaches itself through a frontend. No endpoint and no router has it. */
const volatile struct address config_hairpin_ipv4 = {
	{0, 0, __bpf_constant_htonl(0xffff), __bpf_constant_htonl(0xa9fe2a01)}}; /* 169.254.42.1 */
const volatile struct address config_hairpin_ipv6 = {
	{__bpf_constant_htonl(0xfd6d6573), __bpf_constant_htonl(0x686c0000), 0, __bpf_constant_htonl(1)}};

/* The node's addresses on the underlay, which clients of a service take on the way to a backend elsewhere; all zero: the
 * node has none of that family. */
const volatile struct address config_node_ipv4 = {};
const volatile struct address config_node_ipv6 = {};

/* The node's addresses on the underlay, which endpoints take on their way out of the mesh; all zero: they keep
 * their own. */
const volatile struct address config_masquerade_ipv4 = {};
const volatile struct address config_masquerade_ipv6 = {};

/* The ports for both: not those which the node's own stack hands out. */
const volatile __u32 config_masquerade_port_first = 0;
const volatile __u32 config_masquerade_port_count = 1;

/* Destinations outside the mesh for which endpoints keep their address. */
const volatile __u32 config_unmasqueraded_count = 0;
const volatile struct ipcache_key config_unmasqueraded[UNMASQUERADED_MAX] = {};

/* The node's own network namespace (SO_NETNS_COOKIE); 0: none is known. */
const volatile __u64 config_node_netns_cookie = 0;

/* 1: only sockets of the node's own namespace are translated; those of endpoints leave it to their device. */
const volatile __u32 config_socket_node_only = 0;

/* 1: the kernel lets a program say why it refuses a socket's call (Linux 6.1); 0: the caller sees EPERM. */
const volatile __u32 config_socket_errno = 0;

/* Of the objects and of these constants together: which version of the programs this is. */
const volatile __u64 config_content_id = 0;

/* Seconds that a flow may be silent. TCP: before the initiator has acknowledged, while both ends talk, after both have
 * closed or one has reset. */
const volatile __u32 config_conntrack_syn_s = CONNTRACK_LIFETIME_SYN;
const volatile __u32 config_conntrack_tcp_s = CONNTRACK_LIFETIME_TCP;
const volatile __u32 config_conntrack_closing_s = CONNTRACK_LIFETIME_CLOSING;
const volatile __u32 config_conntrack_other_s = CONNTRACK_LIFETIME_OTHER;

static __always_inline void address_from_config(struct address *address, const volatile struct address *config)
{
	for (int word = 0; word < 4; word++)
		address->words[word] = config->words[word];
}

#endif /* MESHLOG_CONFIG_H */
