/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What is read of the kernel's own sockets: fields by name, found in the running kernel's types when the object is
 * loaded (CO-RE). Nothing of the kernel's is written. A socket is named by its place in memory, which may be another's by
 * now: a read never faults, and what it says must be proved by whoever asks.
 */
#ifndef MESHLOG_LIB_KERNEL_SOCKET_H
#define MESHLOG_LIB_KERNEL_SOCKET_H

#include <linux/types.h>
#include <bpf/bpf_helpers.h>

#define KERNEL_TYPE __attribute__((preserve_access_index))

struct sock_common {
	volatile unsigned char skc_state;
} KERNEL_TYPE;

struct kernel_counter {
	int counter;
};

struct sock {
	struct sock_common __sk_common;
	int sk_rcvbuf;
	int sk_rcvlowat;
	struct {
		struct kernel_counter rmem_alloc;
	} sk_backlog;
} KERNEL_TYPE;

struct inet_connection_sock {
	const void *icsk_ulp_ops;
} KERNEL_TYPE;

struct tcp_sock {
	__u32 copied_seq;
	__u32 rcv_nxt;
	__u32 snd_una;
	__u32 snd_nxt;
	__u32 write_seq;
} KERNEL_TYPE;

/* Each kind of socket begins with the kind that it extends. */
#define KERNEL_READ(into, place, type, field)                                                                          \
	bpf_probe_read_kernel(&(into), sizeof(into), (const void *)&((const struct type *)(place))->field)

#endif /* MESHLOG_LIB_KERNEL_SOCKET_H */
