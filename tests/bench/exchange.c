/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Both ends of an exchange of bytes over TCP. The client prints, as JSON, its CPU seconds and the seconds that passed.
 * usage: exchange serve ADDRESS PORT
 *        exchange ask ADDRESS PORT ROUNDS      a byte over one connection
 *        exchange load ADDRESS PORT ROUNDS     64 KiB over one connection
 *        exchange connect ADDRESS PORT ROUNDS  over a new connection each time
 */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static struct sockaddr_in end;
static char bytes[65536];

static int fail(const char *what)
{
	perror(what);
	return 1;
}

static int serve(void)
{
	int listening = socket(AF_INET, SOCK_STREAM, 0), one = 1;
	ssize_t count;

	setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(listening, (void *)&end, sizeof(end)) || listen(listening, 128))
		return fail("listen");
	puts("ready");
	fflush(stdout);
	for (;;) {
		int connection = accept(listening, 0, 0);

		if (connection < 0)
			return fail("accept");
		setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		while ((count = read(connection, bytes, sizeof(bytes))) > 0)
			if (write(connection, bytes, count) != count)
				break;
		close(connection);
	}
}

static int connected(void)
{
	struct linger at_once = {.l_onoff = 1};
	int opened = socket(AF_INET, SOCK_STREAM, 0), one = 1;

	/* A reset at the end, so that no port stays in use. */
	setsockopt(opened, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
	setsockopt(opened, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	return connect(opened, (void *)&end, sizeof(end)) ? -1 : opened;
}

static int exchange(int connection, ssize_t size)
{
	ssize_t count;

	if (write(connection, bytes, size) != size)
		return -1;
	for (; size; size -= count) {
		count = read(connection, bytes, size);
		if (count <= 0)
			return -1;
	}
	return 0;
}

static double cpu_s(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static double clock_s(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
	if (argc < 4 || inet_pton(AF_INET, argv[2], &end.sin_addr) != 1)
		return fprintf(stderr, "usage: exchange serve|ask|load|connect ADDRESS PORT [ROUNDS]\n"), 2;
	end.sin_family = AF_INET;
	end.sin_port = htons(atoi(argv[3]));
	if (!strcmp(argv[1], "serve"))
		return serve();

	int renews = !strcmp(argv[1], "connect"), rounds = argc > 4 ? atoi(argv[4]) : 1, connection = -1;
	ssize_t size = strcmp(argv[1], "load") ? 1 : sizeof(bytes);
	double began_s = clock_s(), used_s = cpu_s();

	for (int round = 0; round < rounds; round++) {
		if (renews && connection >= 0)
			close(connection);
		if (renews || connection < 0)
			connection = connected();
		if (connection < 0 || exchange(connection, size))
			return fail("exchange");
	}
	printf("{\"cpu_s\": %.9f, \"passed_s\": %.9f}\n", cpu_s() - used_s, clock_s() - began_s);
	return 0;
}
