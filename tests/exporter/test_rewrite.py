"""Each rewrite on a small graph written by hand: its nodes counted, and what it computes before and after."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from neuroglot_exporter.errors import RewriteError
from neuroglot_exporter.families.family import FfnLayer
from neuroglot_exporter.rewrite.early_shapes import early_shapes
from neuroglot_exporter.rewrite.expose_ffn import expose_ffn
from neuroglot_exporter.rewrite.fold_transposes import fold_transposes
from neuroglot_exporter.rewrite.fork_rows import fork_rows
from neuroglot_exporter.rewrite.graph import scope_of, sort_nodes
from neuroglot_exporter.rewrite.keep_sign import keep_sign
from neuroglot_exporter.rewrite.keep_trailing import keep_trailing_logits, keep_trailing_outputs
from neuroglot_exporter.rewrite.output_head import output_head

HIDDEN, NEURONS, VOCABULARY = 3, 5, 7
LAYER = FfnLayer("h.0.act", "h.0.down")

generator = np.random.default_rng(0)
WEIGHTS = {
    "h.0.up.weight": generator.normal(size=(NEURONS, HIDDEN)).astype(np.float32),
    "h.0.gate.weight": generator.normal(size=(NEURONS, HIDDEN)).astype(np.float32),
    "h.0.down.weight": generator.normal(size=(HIDDEN, NEURONS)).astype(np.float32),
    "head.weight": generator.normal(size=(VOCABULARY, HIDDEN)).astype(np.float32),
}
X = generator.normal(size=(2, 4, HIDDEN)).astype(np.float32)


def linear(module: str, source: str, target: str) -> list[onnx.NodeProto]:
    """A linear layer as the tracer writes it."""
    scope = scope_of(module)
    return [
        helper.make_node("Transpose", [f"{module}.weight"], [f"{scope}t"], name=f"{scope}Transpose", perm=[1, 0]),
        helper.make_node("MatMul", [source, f"{scope}t"], [target], name=f"{scope}MatMul"),
    ]


def small_model(*, gated: bool = False, cast: bool = False) -> onnx.ModelProto:
    """x -> FFN of one layer -> head, `logits`."""
    nodes = linear("h.0.up", "x", "up")
    if gated:
        nodes += linear("h.0.gate", "x", "gate")
    nodes.append(helper.make_node("Relu", ["gate" if gated else "up"], ["a"], name="/h.0/act/Relu"))
    coefficient = "a"
    if gated:
        nodes.append(helper.make_node("Mul", ["a", "up"], ["m"], name="/h.0/Mul"))
        coefficient = "m"
    if cast:
        nodes.append(helper.make_node("Cast", [coefficient], ["cast"], name="/h.0/Cast", to=TensorProto.FLOAT))
        coefficient = "cast"
    nodes += linear("h.0.down", coefficient, "hidden") + linear("head", "hidden", "logits")
    used = {tensor for node in nodes for tensor in node.input}
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", "positions", HIDDEN])]
    inputs += [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, weight.shape)
        for name, weight in WEIGHTS.items()
        if name in used
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", "positions", VOCABULARY])]
    graph = helper.make_graph(nodes, "small", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def run(model: onnx.ModelProto, transposed: frozenset[str] = frozenset(), **feeds: Any) -> dict[str, np.ndarray]:
    """Check and run a model whose weights are inputs."""
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    names = {info.name for info in session.get_inputs()}
    weights = {
        name: weight.T.copy() if name in transposed else weight for name, weight in WEIGHTS.items() if name in names
    }
    outputs = [info.name for info in session.get_outputs()]
    return dict(zip(outputs, session.run(outputs, {"x": X} | weights | feeds), strict=True))


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize(
    ("path", "scope"),
    [
        ("transformer.h.0.mlp.gelu_impl", "/transformer/h.0/mlp/gelu_impl/"),
        ("decoder.block.11.layer.2.DenseReluDense.act", "/decoder/block.11/layer.2/DenseReluDense/act/"),
        ("lm_head", "/lm_head/"),
        ("h.3", "/h.3/"),
    ],
)
def test_scope_of_a_module(path: str, scope: str) -> None:
    assert scope_of(path) == scope


class TestExposeFfn:
    @pytest.mark.parametrize("cast", [False, True])
    def test_plain(self, cast: bool) -> None:
        model = small_model(cast=cast)
        before, nodes = run(model), len(model.graph.node)
        assert expose_ffn(model, [LAYER], NEURONS, TensorProto.FLOAT) is False
        assert len(model.graph.node) == nodes + 2
        after = run(model)
        assert np.array_equal(after["logits"], before["logits"])
        activation = np.maximum(X @ WEIGHTS["h.0.up.weight"].T, 0)
        assert np.allclose(after["ffn.0.activation"], activation, atol=1e-6)
        assert "ffn.0.coefficient" not in after

    @pytest.mark.parametrize("cast", [False, True])
    def test_gated(self, cast: bool) -> None:
        model = small_model(gated=True, cast=cast)
        before = run(model)
        assert expose_ffn(model, [LAYER], NEURONS, TensorProto.FLOAT) is True
        after = run(model)
        assert np.array_equal(after["logits"], before["logits"])
        activation = np.maximum(X @ WEIGHTS["h.0.gate.weight"].T, 0)
        up = X @ WEIGHTS["h.0.up.weight"].T
        assert np.allclose(after["ffn.0.activation"], activation, atol=1e-6)
        assert np.allclose(after["ffn.0.coefficient"], activation * up, atol=1e-6)

    @pytest.mark.parametrize("gated", [False, True])
    def test_value_is_mask_times_activation_plus_override(self, gated: bool) -> None:
        model = small_model(gated=gated)
        expose_ffn(model, [LAYER], NEURONS, TensorProto.FLOAT)
        mask = generator.normal(size=(2, 1, NEURONS)).astype(np.float32)
        override = generator.normal(size=(1, 4, 1)).astype(np.float32)
        got = run(model, **{"ffn.0.mask": mask, "ffn.0.override": override})
        clean = run(model)
        assert np.array_equal(got["ffn.0.activation"], clean["ffn.0.activation"])  # the tap is before the change
        coefficient = mask * clean["ffn.0.activation"] + override
        if gated:
            coefficient = coefficient * (X @ WEIGHTS["h.0.up.weight"].T)
            assert np.allclose(got["ffn.0.coefficient"], coefficient, atol=1e-5)
        expected = coefficient @ WEIGHTS["h.0.down.weight"].T @ WEIGHTS["head.weight"].T
        assert np.allclose(got["logits"], expected, atol=1e-5)

    def test_no_such_down_projection(self) -> None:
        with pytest.raises(RewriteError, match=r"no node /h\.0/wo/MatMul"):
            expose_ffn(small_model(), [FfnLayer("h.0.act", "h.0.wo")], NEURONS, TensorProto.FLOAT)

    def test_the_activation_is_not_where_the_family_says(self) -> None:
        with pytest.raises(RewriteError, match=r"made by Relu /h\.0/act/Relu; expected was h\.0\.gelu"):
            expose_ffn(small_model(), [FfnLayer("h.0.gelu", "h.0.down")], NEURONS, TensorProto.FLOAT)

    def test_a_product_of_two_activations_is_refused(self) -> None:
        model = small_model(gated=True)
        next(node for node in model.graph.node if node.name == "/h.0/Mul").input[1] = "a"
        with pytest.raises(RewriteError, match=r"Mul /h\.0/Mul"):
            expose_ffn(model, [LAYER], NEURONS, TensorProto.FLOAT)

    def test_an_activation_that_its_own_module_reads_on_is_refused(self) -> None:
        model = small_model()
        model.graph.node.append(helper.make_node("Neg", ["a"], ["negative"], name="/h.0/act/Neg"))
        with pytest.raises(RewriteError, match=r"/h\.0/act/Neg reads a"):
            expose_ffn(model, [LAYER], NEURONS, TensorProto.FLOAT)


class TestKeepSign:
    """Around -5 ONNX Runtime's GELU in its tanh form is positive."""

    SATURATED = np.linspace(-5.2, -4.9, 1000 * NEURONS).astype(np.float32).reshape(10, 100, NEURONS)

    def gelu_model(self) -> onnx.ModelProto:
        """The tanh form as the tracer writes BLOOM's: `a` from `x`, both `[rows, positions, neurons]`."""
        steps = [
            ("Mul", ["x", "half"], "x_half"),
            ("Mul", ["x", "0.798"], "x_scaled"),
            ("Mul", ["x", "0.045"], "x_small"),
            ("Mul", ["x_small", "x"], "square"),
            ("Add", ["square", "one"], "inner"),
            ("Mul", ["x_scaled", "inner"], "u"),
            ("Tanh", ["u"], "t"),
            ("Add", ["t", "one"], "t_one"),
            ("Mul", ["x_half", "t_one"], "a"),
        ]
        constants = {"half": 0.5, "0.798": 0.79788456, "0.045": 0.044715, "one": 1.0}
        nodes = [
            helper.make_node("Constant", [], [name], name=f"/h.0/act/{name}", value_float=value)
            for name, value in constants.items()
        ]
        nodes += [helper.make_node(op, read, [made], name=f"/h.0/act/{made}") for op, read, made in steps]
        shape = ["rows", "positions", NEURONS]
        graph = helper.make_graph(
            nodes,
            "gelu",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("a", TensorProto.FLOAT, shape)],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)

    def test_no_inactive_neuron_becomes_active(self) -> None:
        model = self.gelu_model()
        assert (run(model, x=self.SATURATED)["a"] > 0).any()  # else this rewrite is no longer needed
        assert keep_sign(model, "h.0.act", "a") is True
        assert not (run(model, x=self.SATURATED)["a"] > 0).any()

    def test_everything_else_stays(self) -> None:
        model = self.gelu_model()
        x = np.linspace(-20, 20, 2 * 4 * NEURONS).astype(np.float32).reshape(2, 4, NEURONS)
        before = run(model, x=x)["a"]
        keep_sign(model, "h.0.act", "a")
        assert np.allclose(run(model, x=x)["a"], before, rtol=1e-6, atol=1e-6)

    def test_what_is_no_number_stays_so(self) -> None:
        model = self.gelu_model()
        keep_sign(model, "h.0.act", "a")
        assert np.isnan(run(model, x=np.full((2, 4, NEURONS), np.nan, np.float32))["a"]).all()

    def test_an_activation_without_tanh_is_left_alone(self) -> None:
        model = small_model()
        before = model.SerializeToString()
        assert keep_sign(model, "h.0.act", "a") is False
        assert model.SerializeToString() == before

    def test_an_activation_of_two_tensors_is_refused(self) -> None:
        model = self.gelu_model()
        next(node for node in model.graph.node if node.name == "/h.0/act/square").input[1] = "y"
        with pytest.raises(RewriteError, match=r"h\.0\.act reads x, y"):
            keep_sign(model, "h.0.act", "a")


class TestKeepTrailing:
    @pytest.mark.parametrize(("start", "kept"), [(None, 1), (-2, 2), (0, 4), (-9, 4), (4, 0), (3, 1)])
    def test_outputs(self, start: int | None, kept: int) -> None:
        model = small_model()
        expose_ffn(model, [LAYER], NEURONS, TensorProto.FLOAT)
        before = run(model)
        keep_trailing_outputs(model, ["ffn.0.activation"], "activations_from", "kept")
        after = run(model, **({} if start is None else {"activations_from": np.array([start])}))
        assert np.array_equal(after["ffn.0.activation"], before["ffn.0.activation"][:, 4 - kept :])
        assert np.array_equal(after["logits"], before["logits"])

    @pytest.mark.parametrize(("start", "kept"), [(None, NEURONS), (-2, 2), (NEURONS, 0)])
    def test_another_axis_and_another_default(self, start: int | None, kept: int) -> None:
        model = small_model()
        expose_ffn(model, [LAYER], NEURONS, TensorProto.FLOAT)
        before = run(model)
        keep_trailing_outputs(model, ["ffn.0.activation"], "from", "kept", axis=2, default=0)
        after = run(model, **({} if start is None else {"from": np.array([start])}))
        assert np.array_equal(after["ffn.0.activation"], before["ffn.0.activation"][:, :, NEURONS - kept :])

    @pytest.mark.parametrize(("start", "kept"), [(None, 1), (-2, 2), (0, 4), (-9, 4), (4, 0), (3, 1)])
    def test_logits(self, start: int | None, kept: int) -> None:
        model = small_model()
        before = run(model)
        keep_trailing_logits(model, "head", "logits_from", "kept")
        after = run(model, **({} if start is None else {"logits_from": np.array([start])}))
        assert np.allclose(after["logits"], before["logits"][:, 4 - kept :], atol=1e-6)

    def test_the_head_sees_the_trailing_positions_only(self) -> None:
        model = small_model()
        keep_trailing_logits(model, "head", "logits_from", "kept")
        (cut,) = [node for node in model.graph.node if node.op_type == "Slice"]
        head = next(node for node in model.graph.node if node.name == "/head/MatMul")
        assert (cut.input[0], head.input[0]) == ("hidden", cut.output[0])


class TestForkRows:
    """x, as queries and as new keys, beside the keys of a past `[sources, 1, positions, hidden]`."""

    PAST = generator.normal(size=(3, 1, 2, HIDDEN)).astype(np.float32)

    def model(self, *, alone: bool = False) -> onnx.ModelProto:
        """Scores of the queries; of keys that come from elsewhere nothing is put beside them."""
        beside = ["past.0.key"] if alone else ["past.0.key", "new"]
        nodes = [
            helper.make_node("Concat", beside, ["keys"], name="/Concat", axis=2),
            helper.make_node("Shape", ["past.0.key"], ["shape"], name="/Shape"),
            helper.make_node("Unsqueeze", ["x", "heads"], ["new"], name="/Unsqueeze"),
            helper.make_node("Transpose", ["keys"], ["turned"], name="/Transpose", perm=[0, 1, 3, 2]),
            helper.make_node("MatMul", ["new", "turned"], ["scores"], name="/MatMul"),
        ]
        floats = [("x", ["rows", "positions", HIDDEN]), ("past.0.key", ["rows", 1, "before", HIDDEN])]
        graph = helper.make_graph(
            nodes,
            "graph",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in floats],
            [
                helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["rows", 1, "positions", "both"]),
                helper.make_tensor_value_info("shape", TensorProto.INT64, [4]),
            ],
            [numpy_helper.from_array(np.array([1]), "heads")],
        )
        sort_nodes(graph)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    @pytest.mark.parametrize("alone", [False, True], ids=["a past", "an encoder's"])
    @pytest.mark.parametrize("rows", [None, [2, 0], [1, 1], [-1, 2], [-1, -1]])
    def test_each_row_goes_on_from_the_one_that_is_named_or_from_its_own(
        self, rows: list[int] | None, alone: bool
    ) -> None:
        model = self.model(alone=alone)
        own = [place if row < 0 else row for place, row in enumerate(rows or [-1, -1])]
        expected = run(model, **{"past.0.key": self.PAST[own]})
        fork_rows(model, ["past.0.key"], "past_rows", "sources")
        onnx.checker.check_model(model, full_check=True)
        fed = self.PAST[:2] if rows is None else self.PAST
        got = run(model, **{"past.0.key": fed}, **({} if rows is None else {"past_rows": np.array(rows)}))
        assert np.array_equal(got["scores"], expected["scores"])
        assert got["shape"][2] == 2

    def test_keys_that_nothing_reads_are_refused(self) -> None:
        model = self.model()
        for node in model.graph.node:
            node.input[:] = ["x" if name == "past.0.key" else name for name in node.input]
        with pytest.raises(RewriteError, match=r"past\.0\.key is read by nothing"):
            fork_rows(model, ["past.0.key"], "past_rows", "sources")


class TestEarlyShapes:
    def test_a_transposed_tensor_is_left_to_its_product(self) -> None:
        model = TestForkRows().model()
        model.graph.node.append(helper.make_node("Shape", ["turned"], ["turned_shape"], name="/turned/Shape"))
        model.graph.output.append(helper.make_tensor_value_info("turned_shape", TensorProto.INT64, [4]))
        fed = {"past.0.key": TestForkRows.PAST[:2]}
        before = run(model, **fed)
        early_shapes(model)
        onnx.checker.check_model(model, full_check=True)
        after = run(model, **fed)
        assert after["turned_shape"].tolist() == before["turned_shape"].tolist() == [2, 1, HIDDEN, 6]
        assert np.array_equal(after["scores"], before["scores"])
        assert [node.op_type for node in model.graph.node if "turned" in node.input] == ["MatMul"]

    def test_other_shapes_stay(self) -> None:
        model = TestForkRows().model()
        before = model.SerializeToString()
        early_shapes(model)
        assert model.SerializeToString() == before


def test_keys_that_several_read_are_refused() -> None:
    model = TestForkRows().model()
    model.graph.node.append(helper.make_node("Identity", ["past.0.key"], ["again"], name="/again"))
    with pytest.raises(RewriteError, match=r"past\.0\.key is read by /Concat, /again"):
        fork_rows(model, ["past.0.key"], "past_rows", "sources")


def test_nodes_that_wait_for_each_other_are_refused() -> None:
    model = small_model()
    model.graph.node[0].input.append("logits")
    with pytest.raises(RewriteError, match="cycle"):
        sort_nodes(model.graph)


def test_nodes_are_sorted_and_those_that_are_stay() -> None:
    model = small_model()
    names = [node.name for node in model.graph.node]
    sort_nodes(model.graph)
    assert [node.name for node in model.graph.node] == names
    turned = list(reversed(model.graph.node))
    del model.graph.node[:]
    model.graph.node.extend(turned)
    sort_nodes(model.graph)
    onnx.checker.check_model(model, full_check=True)


class TestOutputHead:
    def test_the_weight_is_used_as_it_is(self) -> None:
        model = small_model()
        before, transposes = run(model), operators(model).count("Transpose")
        assert output_head(model, "head") == "head.weight"
        assert np.allclose(run(model)["logits"], before["logits"], atol=1e-6)
        assert operators(model).count("Transpose") == transposes - 1
        assert operators(model).count("Gemm") == 1

    def test_no_positions_give_no_logits(self) -> None:
        model = small_model()
        keep_trailing_logits(model, "head", "logits_from", "kept")
        output_head(model, "head")
        assert run(model, logits_from=np.array([4]))["logits"].shape == (2, 0, VOCABULARY)

    def test_a_head_without_a_transpose_is_refused(self) -> None:
        model = small_model()
        next(node for node in model.graph.node if node.name == "/head/MatMul").input[1] = "x"
        with pytest.raises(RewriteError, match="no linear layer"):
            output_head(model, "head")

    def test_a_head_whose_weight_is_computed_is_refused(self) -> None:
        model = small_model()
        next(node for node in model.graph.node if node.name == "/head/Transpose").input[0] = "hidden"
        with pytest.raises(RewriteError, match="hidden, which is no parameter"):
            output_head(model, "head")


class TestFoldTransposes:
    def test_weights_are_stored_as_they_are_used(self) -> None:
        model = small_model()
        before = run(model)
        folded = fold_transposes(model, ["h.0.up.weight", "h.0.down.weight", "head.weight"])
        assert folded == {"h.0.up.weight", "h.0.down.weight", "head.weight"}
        assert "Transpose" not in operators(model)
        assert np.array_equal(run(model, folded)["logits"], before["logits"])

    def test_a_weight_that_is_read_twice_stays(self) -> None:
        model = small_model()
        model.graph.node.append(helper.make_node("Identity", ["head.weight"], ["again"], name="/again"))
        model.graph.output.append(helper.make_tensor_value_info("again", TensorProto.FLOAT, [VOCABULARY, HIDDEN]))
        assert fold_transposes(model, ["head.weight"]) == frozenset()
        assert np.array_equal(run(model)["again"], WEIGHTS["head.weight"])

    def test_a_tied_head_goes_through_gemm_instead(self) -> None:
        """The embedding is gathered by rows and multiplied by: with the head's Gemm, no node transposes it."""
        model = small_model()
        model.graph.initializer.append(numpy_helper.from_array(np.array([1, 2]), "ids"))
        model.graph.node.append(helper.make_node("Gather", ["head.weight", "ids"], ["rows"], name="/embedding/Gather"))
        model.graph.output.append(helper.make_tensor_value_info("rows", TensorProto.FLOAT, [2, HIDDEN]))
        output_head(model, "head")
        assert fold_transposes(model, ["head.weight"]) == frozenset()
        assert np.array_equal(run(model)["rows"], WEIGHTS["head.weight"][[1, 2]])
