// SPDX-License-Identifier: GPL-2.0-only
/**
 * The view as the lock service needs it: which nodes there are, and which of them decides a resource's locks.
 *
 * Protocol: master = active[hash % count] over the node ids sorted as unsigned numbers; all nodes of one epoch
 * have the same list, so they agree without asking.
 * Known weakness: a change of the list moves nearly every resource to another master; views change rarely, and
 * everything is rebuilt then anyway.
 */
import { MXFS_NODE_COUNT_MAX } from "../wire/abi.js";
import { assertU32 } from "../wire/error.js";

/** Sorted, checked copy of the view's node ids. @throws RangeError when empty, too long or with doubles. */
export function sortedNodes(nodes: Iterable<number>): number[] {
  const sorted = [...nodes].sort((a, b) => a - b);
  if (sorted.length < 1 || sorted.length > MXFS_NODE_COUNT_MAX) {
    throw new RangeError(`view: expected 1 to ${MXFS_NODE_COUNT_MAX} nodes, found ${sorted.length}`);
  }
  sorted.forEach((node, index) => {
    assertU32(node, "node id");
    if (index > 0 && node === sorted[index - 1])
      throw new RangeError(`view: node ${node.toString(16)} comes twice`);
  });
  return sorted;
}

/** The master of the resource with this hash. `nodes` as `sortedNodes` gives them. */
export function masterOf(nodes: readonly number[], hash: number): number {
  const node = nodes[hash % nodes.length];
  if (node === undefined) throw new RangeError("view: no nodes");
  return node;
}
