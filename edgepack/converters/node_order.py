"""Nodes of an ONNX graph in an order in which they can run."""

import onnx


class Cycle(Exception):
    """Nodes that wait for each other, as a sentence."""


def sort_nodes(graph: onnx.GraphProto) -> bool:
    """Put nodes behind those whose results they take, where they aren't; says whether anything was moved.

    Kahn, Topological sorting of large networks, 1962; nodes that could run keep their order. What nobody gives
    is left to the checker. Raises `Cycle`.
    """
    places = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    needs = [{places[name] for name in _taken(node) if name in places} for node in graph.node]
    if all(need < i for i, found in enumerate(needs) for need in found):
        return False
    readers: dict[int, list[int]] = {}
    for i, found in enumerate(needs):
        for need in found:
            readers.setdefault(need, []).append(i)
    left = [len(found) for found in needs]
    order = [i for i, count in enumerate(left) if count == 0]
    for i in order:  # grows while it is walked
        for reader in readers.get(i, []):
            left[reader] -= 1
            if left[reader] == 0:
                order.append(reader)
    if len(order) < len(graph.node):
        stuck = [graph.node[i] for i, count in enumerate(left) if count]
        named = ", ".join(f"{node.op_type} {(node.name or node.output[0])[:80]!r}" for node in stuck[:4])
        more = f" and {len(stuck) - 4} more" if len(stuck) > 4 else ""
        raise Cycle(f"its graph has a cycle: {named}{more} wait for each other's results")
    nodes = [onnx.NodeProto.FromString(graph.node[i].SerializeToString()) for i in order]
    del graph.node[:]
    graph.node.extend(nodes)
    return True


def _taken(node: onnx.NodeProto) -> set[str]:
    """What a node takes, and what the graphs inside it take from outside."""
    found = set(node.input)
    for attribute in node.attribute:
        for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            made = {name for one in inner.node for name in one.output}
            made |= {value.name for value in (*inner.input, *inner.initializer)}
            found |= {name for one in inner.node for name in _taken(one)} - made
    return found - {""}
