"""Run a graph piece by piece on many examples, so that it can be changed between the pieces."""

from collections.abc import Sequence

from onnx import helper

from headrace.core import Tensors
from headrace.optimize.prune.graph import Graph, names_read
from headrace.optimize.prune.running import open_session, run


class Course:
    """Where examples have got to: all tensors that a later node reads, for each example.

    Fitting layer after layer then takes one run of the graph, and not one for each layer.
    """

    def __init__(self, examples: Sequence[Tensors], *, threads: int) -> None:
        self.known: list[Tensors] = [dict(example) for example in examples]
        self._threads = threads
        self._position = 0

    def fork(self) -> "Course":
        """Another one that starts here."""
        other = Course(self.known, threads=self._threads)
        other._position = self._position
        return other

    def advance(self, graph: Graph, upto: int, wanted: set[str]) -> None:
        """Run nodes before `upto` that have not run; keep `wanted` and what later nodes read.

        Args:
            graph: The same nodes as before, perhaps with other constants.

        Raises:
            CannotBuildError: It fails on an example.
        """
        nodes = graph.nodes[self._position : upto]
        if not nodes:
            return
        self._position = upto
        made = {name for node in nodes for name in node.output if name}
        read = names_read(nodes) - made - graph.constants.keys()
        later = names_read(graph.nodes[upto:]) | wanted
        outputs = sorted(made & later)
        inputs = sorted(name for name in read if name in self.known[0])
        session = None
        if outputs:
            values = [_declared(name, self.known[0]) for name in inputs]
            session = open_session(graph.piece(nodes, values, outputs), self._threads)
        for i, known in enumerate(self.known):
            kept = {name: array for name, array in known.items() if name in later}
            if session is not None:
                answers = run(session, {name: known[name] for name in inputs})
                kept |= dict(zip(outputs, answers, strict=True))
            self.known[i] = kept


def _declared(name: str, known: Tensors) -> object:
    """An input of any shape."""
    kind = helper.np_dtype_to_tensor_dtype(known[name].dtype)
    return helper.make_tensor_value_info(name, kind, None)
