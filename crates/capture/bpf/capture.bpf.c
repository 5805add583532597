/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * The kernel side of capture, one object. See docs/formats/capture-ring.md for what comes out of it.
 *
 * These programs only look: they never change, delay or refuse what a task does, and they vanish with the agent's file descriptors.
 */
#include "data.h"
#include "namespace.h"
#include "calls.h"
#include "opaque.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";
