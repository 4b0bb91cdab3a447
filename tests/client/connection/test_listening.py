"""Activations layer by layer and text token by token, against a server that says what it is told to."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import pytest

import neuroglot as ng
from neuroglot.v1 import model_pb2, result_pb2, service_pb2


def quiet(*_: object) -> None:
    """In place of the log."""


def test_layers_come_as_arrays(serve, scripted) -> None:
    asked: list[service_pb2.CaptureActivationsRequest] = []

    class Captures(scripted):
        def capture_activations(self, request, context):
            asked.append(request)
            for layer in request.layers:
                values = np.arange(6, dtype=">f2").reshape(3, 2).astype("<f2") + layer
                tensor = service_pb2.Tensor(shape=[3, 2], dtype="float16", data=values.astype("<f2").tobytes())
                yield service_pb2.CaptureActivationsResponse(layer=layer, positions=[0, 1, 5], values=tensor)

    with ng.connect(serve(Captures())) as client:
        captured = list(
            client.model().capture(
                "Hello", layers=[1, 0, 1], neurons=(4, 2, 4), positions=[-1, 0, 1], coefficients=True
            )
        )
    assert [layer.layer for layer in captured] == [0, 1]
    assert captured[1].positions == (0, 1, 5)
    assert captured[1].values.dtype == np.float16
    assert captured[1].values.tolist() == [[2, 1, 2], [4, 3, 4], [6, 5, 6]], "columns in the order of the argument"
    captured[1].values[0] = 9  # an array of one's own
    (request,) = asked
    assert (request.model, request.component, request.row.text) == ("small", "decoder", "Hello")
    assert (list(request.neurons), list(request.positions)) == ([2, 4], [-1, 0, 1])
    assert request.coefficients


def test_all_layers_and_neurons_by_default(serve, scripted) -> None:
    asked: list[service_pb2.CaptureActivationsRequest] = []

    class Captures(scripted):
        def capture_activations(self, request, context):
            asked.append(request)
            yield from super().capture_activations(request, context)

    with ng.connect(serve(Captures())) as client:
        captured = list(client.model().capture([3, 1, 4]))
    assert [layer.values.tolist() for layer in captured] == [[[0, 0]], [[1, 1]]]
    (request,) = asked
    assert list(request.row.token_ids.ids) == [3, 1, 4]
    assert not request.neurons
    assert not request.positions


def test_a_capture_that_breaks_goes_on_with_the_layers_that_are_missing(serve, scripted) -> None:
    asked: list[list[int]] = []

    class Breaks(scripted):
        model = model_pb2.Model(name="deep", components=[model_pb2.Component(name="decoder", layers=7, neurons=2)])

        def capture_activations(self, request, context):
            asked.append(list(request.layers))
            yield from itertools.islice(super().capture_activations(request, context), 3)
            if len(asked) == 1:
                context.abort(grpc.StatusCode.UNAVAILABLE, "going down")

    with ng.connect(serve(Breaks()), on_retry=quiet) as client:
        assert [layer.layer for layer in client.model().capture("Hello")] == list(range(7))
    assert asked == [list(range(7)), [3, 4, 5, 6], [6]]


def test_layers_of_two_bundles_do_not_mix(serve, scripted) -> None:
    class Changes(scripted):
        def capture_activations(self, request, context):
            for response in super().capture_activations(request, context):
                response.provenance.bundle_identity = "b" * 64
                yield response

    with ng.connect(serve(Changes())) as client, pytest.raises(ng.ModelChangedError):
        list(client.model().capture("Hello"))


def test_a_slow_reader_does_not_pile_layers_up(serve, scripted) -> None:
    sent: list[int] = []

    class Large(scripted):
        model = model_pb2.Model(name="deep", components=[model_pb2.Component(name="decoder", layers=40, neurons=2)])

        def capture_activations(self, request, context):
            for layer in request.layers:
                tensor = service_pb2.Tensor(shape=[1, 2_000_000], dtype="float32", data=bytes(8_000_000))
                yield service_pb2.CaptureActivationsResponse(layer=layer, positions=[0], values=tensor)
                sent.append(layer)

    with ng.connect(serve(Large())) as client:
        layers = client.model().capture("Hello")
        next(layers)
        time.sleep(0.5)
        assert len(sent) < 20, "half of them, on a machine however busy"
        layers.close()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"layers": [2]}, r"layer 2 of 'decoder' does not exist: it has 2 \(0 to 1\)"),
        ({"layers": []}, "no layer of 'decoder' was given: give some, or None for all"),
        ({"neurons": [0, -1]}, r"neuron -1 of 'decoder' does not exist: it has 5 \(0 to 4\)"),
        ({"component": "encoder"}, "the component 'encoder' was given for 'small': it has decoder"),
    ],
)
def test_what_the_model_does_not_have_is_not_asked_for(serve, scripted, arguments, said: str) -> None:
    with ng.connect(serve(scripted())) as client, pytest.raises(ng.InvalidSelectionError, match=said):
        client.model().capture("Hello", **arguments)


def test_tokens_come_one_by_one(serve, scripted) -> None:
    asked: list[service_pb2.GenerateRequest] = []

    class Generates(scripted):
        def generate(self, request, context):
            asked.append(request)
            yield from super().generate(request, context)

    with ng.connect(serve(Generates())) as client:
        model = client.model()
        tokens = list(
            model.generate(
                "Hello",
                [ng.deactivate(model.neuron_set([(0, 1)])), ng.add(ng.top_contribution(), 1)],
                threshold=0.5,
                max_tokens=9,
                past_newlines=True,
            )
        )
    assert "".join(token.text for token in tokens) == " Paris"
    assert tokens[1] == ng.GeneratedToken(token_id=1, text="", log_probability=-1.0)
    (request,) = asked
    assert (request.model, request.row.text, request.max_tokens, request.threshold) == ("small", "Hello", 9, 0.5)
    assert request.past_newlines
    assert [one.WhichOneof("action") for one in request.interventions] == ["deactivate", "add"]


def test_what_makes_no_sense_is_refused_at_the_call(serve, scripted) -> None:
    with ng.connect(serve(scripted())) as client:
        model = client.model()
        with pytest.raises(ng.InvalidSelectionError, match=r"what to generate under must be .*ALL_SHARED"):
            model.generate("Hello", ng.ALL_SHARED)
        with pytest.raises(ng.InvalidSelectionError, match=r"what to generate under has .*hub/other"):
            model.generate("Hello", ng.deactivate(model.neuron_set([(0, 1)]).bound_to("hub/other")))
        with pytest.raises(ng.InvalidGroupError, match="the prompt is empty"):
            model.generate("")


@pytest.mark.parametrize("begun", [False, True])
def test_text_is_asked_for_again_only_before_it_begins(serve, scripted, begun: bool) -> None:
    tries: list[None] = []

    class Breaks(scripted):
        def generate(self, request, context):
            tries.append(None)
            if len(tries) == 1:
                if begun:
                    yield service_pb2.GenerateResponse(token_id=7, text="Lyon")
                context.abort(grpc.StatusCode.UNAVAILABLE, "going down")
            yield from super().generate(request, context)

    with ng.connect(serve(Breaks()), on_retry=quiet) as client:
        tokens = client.model().generate("Hello")
        if begun:
            assert next(tokens).text == "Lyon"
            with pytest.raises(ng.UnavailableError):
                next(tokens)
        else:
            assert [token.text for token in tokens] == [" Pa", "", "ris"]
    assert len(tries) == 2 - begun


def test_a_deadline_for_all_tokens(serve, scripted) -> None:
    class Endless(scripted):
        def generate(self, request, context):
            while context.is_active():
                yield service_pb2.GenerateResponse(text="x")
                time.sleep(0.01)

    with ng.connect(serve(Endless())) as client:
        tokens = client.model().generate("Hello", timeout=0.3)
        assert next(tokens).text == "x"
        with pytest.raises(ng.DeadlineError):
            list(tokens)


def test_leaving_the_loop_cancels_the_call(serve, scripted) -> None:
    ended = threading.Event()

    class Endless(scripted):
        def generate(self, request, context):
            context.add_callback(ended.set)
            while context.is_active():
                yield service_pb2.GenerateResponse(text="x", provenance=result_pb2.Provenance())

    with ng.connect(serve(Endless())) as client:
        for _ in itertools.islice(client.model().generate("Hello"), 3):
            pass
        assert ended.wait(5)


LEAVES = """
import sys
import neuroglot as ng
model = ng.connect(sys.argv[1]).model()
tokens, layers = model.generate("Hello"), model.capture("Hello")
print(next(tokens).text, next(layers).layer)
"""


def test_a_program_that_ends_in_the_middle_ends(serve, scripted) -> None:
    class Endless(scripted):
        def generate(self, request, context):
            while context.is_active():
                yield service_pb2.GenerateResponse(text="x")

    address = serve(Endless())
    for _ in range(3):  # what could hang are threads at the interpreter's exit, and not every time
        ended = subprocess.run([sys.executable, "-c", LEAVES, address], capture_output=True, text=True, timeout=15)
        assert (ended.returncode, ended.stdout.strip(), ended.stderr) == (0, "x 0", "")
