/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs one packet through a loaded program again and again, each run from the same bytes, and prints the median of
 * the durations that the kernel measured, in ns. No interpreter comes between two runs, so caches stay as warm as on
 * a busy path. With PORT_OFFSET, 16 bits there are counted up before each run: every packet is another connection.
 * usage: run_packet PROGRAM_FD RUNS PORT_OFFSET|0 <packet
 */
#include <linux/bpf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int compare(const void *a, const void *b)
{
	return *(const int *)a - *(const int *)b;
}

int main(int argc, char **argv)
{
	unsigned char packet[2048], out[2048];

	if (argc != 4) {
		fprintf(stderr, "usage: run_packet PROGRAM_FD RUNS PORT_OFFSET|0 <packet\n");
		return 2;
	}
	int program = atoi(argv[1]), runs = atoi(argv[2]), port_offset = atoi(argv[3]);
	ssize_t bytes = read(0, packet, sizeof(packet));
	int *durations = calloc(runs, sizeof(int));

	if (bytes <= 0 || !durations)
		return 1;
	for (int run = 0; run < runs; run++) {
		union bpf_attr attr = {0};

		attr.test.prog_fd = program;
		attr.test.repeat = 1;
		attr.test.data_in = (unsigned long)packet;
		attr.test.data_size_in = bytes;
		attr.test.data_out = (unsigned long)out;
		attr.test.data_size_out = sizeof(out);
		if (syscall(__NR_bpf, BPF_PROG_TEST_RUN, &attr, sizeof(attr))) {
			perror("BPF_PROG_TEST_RUN");
			return 1;
		}
		durations[run] = attr.test.duration;
		if (port_offset && !++packet[port_offset + 1])
			packet[port_offset]++;
	}
	qsort(durations, runs, sizeof(int), compare);
	printf("%d\n", durations[runs / 2]);
	return 0;
}
