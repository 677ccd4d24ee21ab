/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * A port of an SCTP packet, and its checksum. That is a CRC32c over the whole packet (RFC 9260, appendix A), for which no
 * helper exists; but a CRC is linear, so that what a change of the first four bytes does to it depends on these and on
 * the packet's length alone: the change, times x^8 for every byte of the packet, in the polynomial's field. Where the
 * device is to compute it, the field is overwritten later and does not matter.
 */
#ifndef MESHLOG_LIB_SCTP_H
#define MESHLOG_LIB_SCTP_H

#include "packet.h"
#include "parse.h"

#define CRC32C_POLYNOMIAL 0x82f63b78u
#define CRC32C_ONE 0x80000000u
#define SCTP_CHECKSUM_OFFSET 8
#define SCTP_LENGTH_BITS 16

/* x^(8 * 2^n): what 2^n bytes more are. */
static const __u32 crc32c_powers[SCTP_LENGTH_BITS] = {
	0x00800000, 0x00008000, 0x82f63b78, 0x6ea2d55c,
	0x18b8ea18, 0x510ac59a, 0xb82be955, 0xb8fdb1e7,
	0x88e56f72, 0x74c360a4, 0xe4172b16, 0x0d65762a,
	0x35d73a62, 0x28461564, 0xbf455269, 0xe2ea32dc,
};

/* The product of two residues, whose highest bit is the coefficient of x^0. */
STEP crc32c_multiply(__u32 left, __u32 right)
{
	__u32 product = 0;

	for (int bit = 0; bit < 32; bit++) {
		product ^= right & -(left >> 31);
		left <<= 1;
		right = right >> 1 ^ (CRC32C_POLYNOMIAL & -(right & 1));
	}
	return (int)product;
}

/* What becomes of the CRC of so many bytes when the first four change by `change`, the first of them in its low bits. */
static __always_inline __u32 crc32c_change(__u32 change, __u32 bytes)
{
	for (int bit = 0; bit < SCTP_LENGTH_BITS; bit++)
		change = (__u32)crc32c_multiply(bytes >> bit & 1 ? crc32c_powers[bit] : CRC32C_ONE, change);
	return change;
}

/* `at`: where the port stands. 0, or a drop. Packet pointers are invalid afterwards. */
STEP sctp_port_write(struct __sk_buff *skb, struct packet *packet, __u32 at, __u32 from, __u32 to)
{
	__u32 difference, shift, checksum_at;
	__u8 checksum[4];
	__be16 port = (__be16)to;

	if (!packet)
		return 0;
	/* The first fragment's covers the whole datagram. */
	if (packet->fragment)
		return DROP(packet, FILE_NAT, ERROR_WHILE_CORRECTING_L4_CHECKSUM);
	difference = bpf_ntohs((__be16)(from ^ to));
	shift = at == packet->l4_offset ? 0 : 16;
	checksum_at = packet->l4_offset + SCTP_CHECKSUM_OFFSET;
	if (bpf_skb_load_bytes(skb, checksum_at, checksum, sizeof(checksum)))
		return DROP(packet, FILE_NAT, ERROR_WHILE_CORRECTING_L4_CHECKSUM);
	difference = crc32c_change((difference >> 8 | (difference & 0xff) << 8) << shift, packet->l3_end - packet->l4_offset);
	for (int byte = 0; byte < 4; byte++)
		checksum[byte] ^= (__u8)(difference >> 8 * byte);
	if (bpf_skb_store_bytes(skb, checksum_at, checksum, sizeof(checksum), BPF_F_RECOMPUTE_CSUM) ||
	    bpf_skb_store_bytes(skb, at, &port, sizeof(port), BPF_F_RECOMPUTE_CSUM))
		return DROP(packet, FILE_NAT, ERROR_WRITING_TO_PACKET);
	return 0;
}

#endif /* MESHLOG_LIB_SCTP_H */
