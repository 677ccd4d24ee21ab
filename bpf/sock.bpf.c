// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The programs on the node's cgroup: they see the calls of every socket that was made in it or below. A socket asks
 * for a frontend and is sent to a backend before there is a packet, so that no packet needs translation.
 *
 * An IPv6 socket that talks IPv4 comes by with ::ffff:a.b.c.d at connect, recvmsg and getpeername, and as IPv4 at
 * sendmsg. An address has the same 16 bytes either way.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"
#include "config.h"
#include "lib/socket.h"

/* As a whole word: the kernel allows narrower reads on some hooks and releases only. */
#define READ_WORD(field) (*(volatile __u32 *)&(field))

static __always_inline void end_read4(struct bpf_sock_addr *ctx, struct address_port *end)
{
	end->address.words[0] = end->address.words[1] = 0;
	end->address.words[2] = bpf_htonl(0xffff);
	end->address.words[3] = READ_WORD(ctx->user_ip4);
	end->port = (__be16)READ_WORD(ctx->user_port);
	end->reserved = 0;
}

static __always_inline void end_write4(struct bpf_sock_addr *ctx, const struct address_port *end)
{
	ctx->user_ip4 = end->address.words[3];
	ctx->user_port = end->port;
}

static __always_inline void end_read6(struct bpf_sock_addr *ctx, struct address_port *end)
{
	end->address.words[0] = READ_WORD(ctx->user_ip6[0]);
	end->address.words[1] = READ_WORD(ctx->user_ip6[1]);
	end->address.words[2] = READ_WORD(ctx->user_ip6[2]);
	end->address.words[3] = READ_WORD(ctx->user_ip6[3]);
	end->port = (__be16)READ_WORD(ctx->user_port);
	end->reserved = 0;
}

static __always_inline void end_write6(struct bpf_sock_addr *ctx, const struct address_port *end)
{
	ctx->user_ip6[0] = end->address.words[0];
	ctx->user_ip6[1] = end->address.words[1];
	ctx->user_ip6[2] = end->address.words[2];
	ctx->user_ip6[3] = end->address.words[3];
	ctx->user_port = end->port;
}

static __always_inline int forward4(struct bpf_sock_addr *ctx)
{
	struct address_port end;
	int outcome;

	end_read4(ctx, &end);
	outcome = socket_translate(ctx, &end);
	if (outcome == SOCKET_WITHOUT_BACKEND)
		return socket_refuse(ctx, &end, __LINE__);
	if (outcome == SOCKET_TRANSLATED)
		end_write4(ctx, &end);
	return SOCKET_ALLOWED;
}

static __always_inline int forward6(struct bpf_sock_addr *ctx)
{
	struct address_port end;
	int outcome;

	end_read6(ctx, &end);
	outcome = socket_translate(ctx, &end);
	if (outcome == SOCKET_WITHOUT_BACKEND)
		return socket_refuse(ctx, &end, __LINE__);
	if (outcome == SOCKET_TRANSLATED)
		end_write6(ctx, &end);
	return SOCKET_ALLOWED;
}

static __always_inline int reverse4(struct bpf_sock_addr *ctx)
{
	struct address_port end;

	end_read4(ctx, &end);
	if (socket_reverse(ctx, &end))
		end_write4(ctx, &end);
	return SOCKET_ALLOWED;
}

static __always_inline int reverse6(struct bpf_sock_addr *ctx)
{
	struct address_port end;

	end_read6(ctx, &end);
	if (socket_reverse(ctx, &end))
		end_write6(ctx, &end);
	return SOCKET_ALLOWED;
}

SEC("cgroup/connect4")
int socket_connect4(struct bpf_sock_addr *ctx)
{
	return forward4(ctx);
}

SEC("cgroup/connect6")
int socket_connect6(struct bpf_sock_addr *ctx)
{
	return forward6(ctx);
}

/* A datagram that names its destination; what is sent on a connected socket was translated when it connected. */
SEC("cgroup/sendmsg4")
int socket_sendmsg4(struct bpf_sock_addr *ctx)
{
	return forward4(ctx);
}

SEC("cgroup/sendmsg6")
int socket_sendmsg6(struct bpf_sock_addr *ctx)
{
	return forward6(ctx);
}

SEC("cgroup/recvmsg4")
int socket_recvmsg4(struct bpf_sock_addr *ctx)
{
	return reverse4(ctx);
}

SEC("cgroup/recvmsg6")
int socket_recvmsg6(struct bpf_sock_addr *ctx)
{
	return reverse6(ctx);
}

SEC("cgroup/getpeername4")
int socket_peername4(struct bpf_sock_addr *ctx)
{
	return reverse4(ctx);
}

SEC("cgroup/getpeername6")
int socket_peername6(struct bpf_sock_addr *ctx)
{
	return reverse6(ctx);
}

char program_license[] SEC("license") = "Dual BSD/GPL";
