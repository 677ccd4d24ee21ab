/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The limit of map writes: a map is filled with BPF_MAP_UPDATE_BATCH from C and dumped with BPF_MAP_LOOKUP_BATCH.
 * Prints CPU seconds of the filling and of the dump, as JSON.
 * usage: peer hash|lpm KEY_BYTES ROW_BYTES ROWS
 */
#include <linux/bpf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

static long bpf(int command, union bpf_attr *attr)
{
	return syscall(__NR_bpf, command, attr, sizeof(*attr));
}

static double cpu_s(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec +
	       (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

int main(int argc, char **argv)
{
	if (argc != 5) {
		fprintf(stderr, "usage: peer hash|lpm KEY_BYTES ROW_BYTES ROWS\n");
		return 2;
	}
	int is_lpm = !strcmp(argv[1], "lpm");
	unsigned int key_bytes = atoi(argv[2]), row_bytes = atoi(argv[3]), rows = atoi(argv[4]);
	char *keys = calloc(rows, key_bytes), *values = calloc(rows, row_bytes);
	union bpf_attr attr = {
		.map_type = is_lpm ? BPF_MAP_TYPE_LPM_TRIE : BPF_MAP_TYPE_HASH,
		.key_size = key_bytes,
		.value_size = row_bytes,
		.max_entries = rows * 2,
		.map_flags = BPF_F_NO_PREALLOC,
	};
	int map = bpf(BPF_MAP_CREATE, &attr);

	if (map < 0) {
		perror("BPF_MAP_CREATE");
		return 1;
	}
	double start = cpu_s();

	for (unsigned int i = 0; i < rows; i++) {
		char *key = keys + (size_t)i * key_bytes;

		if (is_lpm)
			*(unsigned int *)key = 8 * (key_bytes - sizeof(unsigned int));
		memcpy(key + key_bytes - sizeof(i), &i, sizeof(i));
		memcpy(values + (size_t)i * row_bytes, &i, sizeof(i));
	}
	memset(&attr, 0, sizeof(attr));
	attr.batch.keys = (unsigned long)keys;
	attr.batch.values = (unsigned long)values;
	attr.batch.count = rows;
	attr.batch.map_fd = map;
	if (bpf(BPF_MAP_UPDATE_BATCH, &attr)) {
		perror("BPF_MAP_UPDATE_BATCH");
		return 1;
	}
	double written = cpu_s();

	memset(&attr, 0, sizeof(attr));
	unsigned char next[64] = {0};

	attr.batch.out_batch = (unsigned long)next;
	attr.batch.keys = (unsigned long)keys;
	attr.batch.values = (unsigned long)values;
	attr.batch.count = rows;
	attr.batch.map_fd = map;
	bpf(BPF_MAP_LOOKUP_BATCH, &attr); /* ENOENT at the end of the map */
	printf("{\"write_s\": %.6f, \"dump_s\": %.6f, \"dumped\": %u}\n", written - start, cpu_s() - written,
	       attr.batch.count);
	return 0;
}
