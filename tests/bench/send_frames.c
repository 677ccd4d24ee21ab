/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs an XDP program on so many live frames of 64 bytes: what it redirects is really sent. Prints the CPU time of this
 * process in ns, to which the kernel books all that the frames cost on its CPU until they end.
 * usage: send_frames PROGRAM_FD FRAMES
 */
#include <linux/bpf.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define LIVE_FRAMES 2 /* BPF_F_TEST_XDP_LIVE_FRAMES, which older headers lack; so do they the field for its batch */

static long long cpu_ns(void)
{
	struct timespec used;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
	return used.tv_sec * 1000000000LL + used.tv_nsec;
}

int main(int argc, char **argv)
{
	unsigned char frame[64] = {0};
	union bpf_attr attr = {0};
	long long begun;

	if (argc != 3) {
		fprintf(stderr, "usage: send_frames PROGRAM_FD FRAMES\n");
		return 2;
	}
	attr.test.prog_fd = atoi(argv[1]);
	attr.test.repeat = atoi(argv[2]);
	attr.test.data_in = (unsigned long)frame;
	attr.test.data_size_in = sizeof(frame);
	attr.test.flags = LIVE_FRAMES;
	begun = cpu_ns();
	if (syscall(__NR_bpf, BPF_PROG_TEST_RUN, &attr, sizeof(attr))) {
		perror("BPF_PROG_TEST_RUN");
		return 1;
	}
	printf("%lld\n", cpu_ns() - begun);
	return 0;
}
