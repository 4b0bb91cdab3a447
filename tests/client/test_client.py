"""Connecting, models, tokens, and single questions, against a server that says what it is told to."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import neuroglot as ng
from neuroglot.v1 import model_pb2, service_pb2


@pytest.mark.parametrize(
    "target",
    ["", "bundles/none", "localhost", "localhost:", ":50051", "localhost:http", "localhost:65536", "a b:1", "::1:5"],
)
def test_what_is_neither_an_address_nor_a_folder(target: str) -> None:
    with pytest.raises(ng.InvalidTargetError) as raised:
        ng.connect(target)
    assert repr(target) in str(raised.value)
    assert "a folder that `neuroglot export` wrote, or host:port" in str(raised.value)


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(ng.BundleError, match="no bundle"):
        ng.connect(tmp_path)


def test_a_folder_without_the_servers_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "neuroglot_server.lifecycle", None)  # Python's own way to say: not importable
    with pytest.raises(ng.InstallationError, match=r"pip install 'neuroglot\[cpu\]', or connect to a server elsewhere"):
        ng.connect(tmp_path)


def test_the_only_model_needs_no_name(serve, scripted) -> None:
    with ng.connect(serve(scripted())) as client:
        model = client.model()
        assert model.name == "small"
        assert model.info == scripted.model
        assert client.models() == (scripted.model,)


@pytest.mark.parametrize(
    ("names", "message"), [(["a", "b"], "has 2 models .'a', 'b'.: say which"), ([], "has 0 models")]
)
def test_one_of_several_models_needs_its_name(serve, scripted, names: list[str], message: str) -> None:
    class Several(scripted):
        def list_models(self, request, context):
            return service_pb2.ListModelsResponse(models=[model_pb2.Model(name=name) for name in names])

        def get_model(self, request, context):
            return service_pb2.GetModelResponse(model=model_pb2.Model(name=request.model))

    with ng.connect(serve(Several())) as client:
        with pytest.raises(ng.NotFoundError, match=message):
            client.model()
        assert client.model("b").name == "b"


def test_tokens(serve, scripted) -> None:
    class Tokenizes(scripted):
        def tokenize(self, request, context):
            special = [] if request.without_special_tokens else ["</s>"]
            texts = [
                service_pb2.TokenizedText(ids=range(len(text + "".join(special))), tokens=[*text, *special])
                for text in request.texts
            ]
            return service_pb2.TokenizeResponse(texts=texts)

    with ng.connect(serve(Tokenizes())) as client:
        model = client.model()
        ab, empty = model.tokenize(["ab", ""], special_tokens=False)
        assert ab == ng.Tokens((0, 1), ("a", "b"))
        assert empty == ng.Tokens((), ())
        assert model.tokenize(["ab"])[0].tokens == ("a", "b", "</s>")
        with pytest.raises(TypeError, match=r"texts must be a list of strings, .*, not 'ab'"):
            model.tokenize("ab")


def test_sets_of_the_models_neurons(serve, scripted) -> None:
    with ng.connect(serve(scripted())) as client:
        model = client.model()
        neurons = model.neuron_set([(1, 4)])
        assert list(neurons) == [(1, 4)]
        assert neurons.source == "hub/small"
        with pytest.raises(ng.InvalidSelectionError, match=r"layer 2 of 'decoder' does not exist: it has 2 \(0 to 1\)"):
            model.neuron_set([(2, 0)])
        with pytest.raises(
            ng.InvalidSelectionError, match="the component 'encoder' was given for 'small': it has decoder"
        ):
            model.neuron_set([], component="encoder")
        with pytest.raises(ng.InvalidSelectionError, match=r"variant 'v' has .*hub/other.*, and 'small' is hub/small"):
            model.analyze(ng.Group({"en": "x"}), variants={"v": ng.deactivate(neurons.bound_to("hub/other"))})


def test_an_encoder_decoders_component_must_be_named(serve, scripted) -> None:
    class Both(scripted):
        model = model_pb2.Model(
            name="both", components=[model_pb2.Component(name=n, layers=1, neurons=3) for n in ("encoder", "decoder")]
        )

    with ng.connect(serve(Both())) as client:
        with pytest.raises(
            ng.InvalidSelectionError, match="no component was given for 'both': it has encoder, decoder"
        ):
            client.model().neuron_set([(0, 0)])
        assert client.model().neuron_set([(0, 0)], component="encoder").component == "encoder"


def test_requests_say_what_was_asked(serve, scripted) -> None:
    class Notes(scripted):
        requests: list[service_pb2.AnalyzeGroupRequest] = []  # noqa: RUF012

        def analyze_group(self, request, context):
            self.requests.append(request)
            return super().analyze_group(request, context)

    with ng.connect(serve(Notes())) as client:
        group = ng.Group({"en": "x", "de": "y"}, answers={"en": "z"}, id="own")
        result = client.model().analyze(group, thresholds=[0.5], active=True, type_map=False, contribution=0.25)
    assert result.group_id == "own"
    (request,) = Notes.requests
    assert request.model == "small"
    assert [row.label for row in request.group.rows] == ["en", "de"]
    assert list(request.analysis.thresholds) == [0.5]
    assert request.analysis.active_bitmaps
    assert not request.analysis.type_map
    assert request.analysis.contribution.top_fraction == 0.25
    assert request.analysis.prediction.generate


def test_answers_of_some_megabytes_arrive(serve, scripted) -> None:
    class Large(scripted):
        def analyze_group(self, request, context):
            response = super().analyze_group(request, context)
            response.result.provenance.server_version = "x" * 20_000_000
            return response

    with ng.connect(serve(Large())) as client:
        assert len(client.model().analyze(ng.Group({"en": "x"})).provenance.server_version) == 20_000_000


def test_addresses_of_this_machine_are_not_sent_to_a_proxy(serve, scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("no_grpc_proxy", raising=False)
    with ng.connect(serve(scripted())) as client:
        assert client.models()
