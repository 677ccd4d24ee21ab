/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Load-time configuration: constants in .rodata, written once between open and load. What may change while a
 * program runs is no constant: it is a row in a map (abi.h).
 */
#ifndef MESHLOG_CONFIG_H
#define MESHLOG_CONFIG_H

#include <linux/types.h>

/* ifindex of the device that leads to the other nodes; 0: forward nothing to other nodes. */
const volatile __u32 config_underlay_ifindex = 0;

/* 1: a notification for every new flow's verdict; drops are always notified. */
const volatile __u32 config_notify_verdicts = 1;

#endif /* MESHLOG_CONFIG_H */
