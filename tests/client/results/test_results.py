"""Results read from messages that are built here from plain arrays."""

from __future__ import annotations

import numpy as np
import pytest

import neuroglot as ng
from neuroglot.v1 import result_pb2

LABELS = ("en", "th", "zh")
LAYERS, NEURONS = 2, 5
ACTIVE = np.array(
    [
        # one row a layer, one column a neuron
        [[1, 1, 0, 0, 1], [0, 0, 0, 0, 1]],
        [[1, 0, 0, 0, 1], [0, 0, 0, 1, 1]],
        [[1, 0, 0, 1, 1], [0, 0, 0, 0, 0]],
    ],
    dtype=np.bool_,
)
CODES = np.array([[3, 1, 0, 1, 3], [0, 0, 0, 1, 2]])
COUNTS = [[1, 2, 0, 2], [3, 1, 1, 0]]
TOP_COUNTS = np.arange(24).reshape(3, 2, 4)
SUMS = np.arange(24).reshape(3, 2, 4) / 32

LEADING = result_pb2.LeadingNeurons(
    count=2, neurons=np.arange(12) % 5, values=np.arange(12) / 4, codes=bytes([0, 1, 2, 3] * 3)
)
DEAD_COUNTS = [[1, 0, 2], [3, 4, 0]]

# The same in the packed form of the contract, by hand: two bits a neuron from 3, 1, 0, 1 | 3, then 0, 0, 0, 1 | 2.
TYPE_MAP = bytes([0b01_00_01_11, 0b11, 0b01_00_00_00, 0b10])
BITMAPS = [bytes([0b10011, 0b10000]), bytes([0b10001, 0b11000]), bytes([0b11001, 0])]


def threshold_result(threshold: float = 0.0, **changes: object) -> result_pb2.ThresholdResult:
    fields = {
        "type_counts": np.ravel(COUNTS),
        "active_counts": np.moveaxis(ACTIVE.sum(-1), 0, 1).ravel(),
        "near_threshold": 7,
        "type_map": TYPE_MAP,
        "active_bitmaps": BITMAPS,
        "contribution": result_pb2.ContributionResult(
            top_k=1, top_counts=TOP_COUNTS.ravel(), sums=SUMS.ravel(), leading=LEADING, top_bitmaps=BITMAPS[::-1]
        ),
        "effective_score": result_pb2.EffectiveScoreResult(
            maxima=SUMS.ravel() + 1, minima=SUMS.ravel() - 1, sums=SUMS.ravel(), leading=LEADING
        ),
        "dead_counts": np.ravel(DEAD_COUNTS),
        "dead_bitmaps": BITMAPS,
    }
    return result_pb2.ThresholdResult(threshold=threshold, **{**fields, **changes})


def component_result(name: str = "decoder", *thresholds: result_pb2.ThresholdResult) -> result_pb2.ComponentResult:
    return result_pb2.ComponentResult(component=name, layers=LAYERS, neurons=NEURONS, thresholds=thresholds)


def group_result(*components: result_pb2.ComponentResult, labels: tuple[str, ...] = LABELS) -> ng.GroupResult:
    return ng.GroupResult(
        result_pb2.GroupResult(
            group_id="7",
            rows=[
                result_pb2.RowResult(label=label, prompt_tokens=4, gold_token_ids=[8, 9], gold_is_joint=label == "en")
                for label in labels
            ],
            components=components,
            variants=[
                result_pb2.VariantResult(
                    name=name,
                    predictions=[
                        result_pb2.RowPrediction(
                            exact=True, gold_log_probability=-0.5, token_ids=[8], text="Paris", matches=False
                        ),
                        result_pb2.RowPrediction(error="overflow", selected_neurons=9, selected_active_neurons=3),
                        result_pb2.RowPrediction(exact=False, starts_with_answer=True),
                    ],
                )
                for name in ("baseline", "w/o")
            ],
            provenance=result_pb2.Provenance(model="small", source="hub/small", bundle_identity="abc"),
        )
    )


def result(**changes: object) -> ng.GroupResult:
    return group_result(component_result("decoder", threshold_result(**changes)))


def test_types_are_arrays() -> None:
    types = result().types
    assert types.labels == LABELS
    assert (types.threshold, types.layers, types.neurons, types.near_threshold) == (0.0, LAYERS, NEURONS, 7)
    assert types.counts().dtype == np.int64
    assert types.counts().tolist() == COUNTS
    assert types.active_counts().tolist() == [[3, 2, 3], [1, 2, 0]]
    assert types.shares().tolist() == [[0.2, 0.4, 0.0, 0.4], [0.6, 0.2, 0.2, 0.0]]
    assert types.codes().tolist() == CODES.tolist()


def test_types_are_neuron_sets() -> None:
    types = result().types
    for neuron_type in ng.NeuronType:
        assert np.array_equal(types[neuron_type].to_mask(), neuron_type == CODES)
        assert types[neuron_type].source == "hub/small"
    for label, active in zip(LABELS, ACTIVE, strict=True):
        assert np.array_equal(types.active(label).to_mask(), active)
    assert types.active("en") & types.active("th") & types.active("zh") == types[ng.ALL_SHARED]


def test_contributions() -> None:
    contribution = result().types.contribution
    assert contribution.top_k == 1
    assert contribution.top_counts.tolist() == TOP_COUNTS.tolist()
    assert contribution.sums.tolist() == SUMS.tolist()
    means = contribution.means(np.array(COUNTS))
    assert means.shape == (3, LAYERS, 4)
    assert means[1, 0].tolist() == [8 / 32 / 1, 9 / 32 / 2, 0, 11 / 32 / 2], "no neurons, no contribution"


def test_effective_scores() -> None:
    scores = result().types.effective_score
    assert scores.maxima.tolist() == (SUMS + 1).tolist()
    assert scores.minima.tolist() == (SUMS - 1).tolist()
    assert scores.sums.tolist() == SUMS.tolist()
    means = scores.means(np.array(COUNTS))
    assert means[1, 0].tolist() == [8 / 32 / 1, 9 / 32 / 2, 0, 11 / 32 / 2], "no neurons, no score"


@pytest.mark.parametrize("what", ["contribution", "effective_score"])
def test_leading_neurons(what: str) -> None:
    leading = getattr(result().types, what).leading
    assert leading.neurons.tolist() == (np.arange(12) % 5).reshape(3, LAYERS, 2).tolist()
    assert leading.values.tolist() == (np.arange(12) / 4).reshape(3, LAYERS, 2).tolist()
    assert leading.codes.tolist() == (np.arange(12) % 4).reshape(3, LAYERS, 2).tolist()
    leading.codes[0] = 0  # an array of one's own
    bare = result(
        contribution=result_pb2.ContributionResult(top_k=1, top_counts=TOP_COUNTS.ravel(), sums=SUMS.ravel()),
        effective_score=result_pb2.EffectiveScoreResult(maxima=SUMS.ravel(), minima=SUMS.ravel(), sums=SUMS.ravel()),
    )
    assert getattr(bare.types, what).leading is None


def test_dead_neurons() -> None:
    types = result().types
    assert types.dead_counts().tolist() == DEAD_COUNTS
    assert np.array_equal(types.dead("th").to_mask(), ACTIVE[1])
    assert types.dead("th").source == "hub/small"


def test_top_contributors_are_those_of_the_first_threshold_at_all() -> None:
    higher = threshold_result(0.5)
    del higher.contribution.top_bitmaps[:]
    component = group_result(component_result("decoder", threshold_result(), higher)).components["decoder"]
    for types in component.thresholds:
        for label, active in zip(LABELS, ACTIVE[::-1], strict=True):
            assert np.array_equal(types.top_contributors(label).to_mask(), active)


def test_an_encoder_has_no_effective_scores() -> None:
    answer = group_result(component_result("encoder", threshold_result(effective_score=None)))
    with pytest.raises(ng.NotInResultError, match=r"an encoder has no effective scores: .* use those of the decoder"):
        _ = answer.types.effective_score


def test_choices() -> None:
    message = result_pb2.RowPrediction(choice_log_probabilities=[-2.0, -0.5, -1.0])
    prediction = ng.RowPrediction.from_message(message)
    assert prediction.choice_log_probabilities == (-2.0, -0.5, -1.0)
    assert prediction.choice == 1
    assert ng.RowPrediction.from_message(result_pb2.RowPrediction()).choice is None


def test_several_thresholds() -> None:
    more = group_result(component_result("decoder", threshold_result(0.0), threshold_result(0.5, near_threshold=1)))
    assert [types.threshold for types in more.components["decoder"].thresholds] == [0.0, 0.5]
    assert more.types.near_threshold == 7


def test_predictions_by_variant_and_label() -> None:
    predictions = result().predictions
    assert list(predictions) == ["baseline", "w/o"]
    assert list(predictions["w/o"]) == list(LABELS)
    scored, broken, open_ended = predictions["w/o"].values()
    assert scored == ng.RowPrediction("", True, -0.5, (8,), "Paris", False, None, 0, 0)
    assert broken == ng.RowPrediction("overflow", None, None, (), "", None, None, 9, 3)
    assert open_ended == ng.RowPrediction("", False, None, (), "", None, True, 0, 0)


def test_rows_and_provenance() -> None:
    answer = result()
    assert (answer.group_id, answer.labels) == ("7", LABELS)
    assert [row.gold_is_joint for row in answer.rows] == [True, False, False]
    assert (answer.provenance.model, answer.provenance.bundle_identity) == ("small", "abc")
    assert repr(answer) == "<GroupResult '7' by small: en, th, zh; decoder 2 x 5; variants baseline, w/o>"


def test_results_can_be_kept() -> None:
    answer = result()
    again = ng.GroupResult.from_bytes(answer.to_bytes())
    assert again == answer
    assert again != result(near_threshold=8)
    assert again.types[ng.SPECIFIC] == answer.types[ng.SPECIFIC]
    with pytest.raises(ValueError, match="these 3 bytes are no result"):
        ng.GroupResult.from_bytes(b"\xff\xff\xff")


@pytest.mark.parametrize(
    ("ask", "argument"),
    [
        (lambda answer: answer.types.codes(), "type_map=True"),
        (lambda answer: answer.types[ng.ALL_SHARED], "type_map=True"),
        (lambda answer: answer.types.active("en"), "active=True"),
        (lambda answer: answer.types.contribution, "contribution=True"),
        (lambda answer: answer.types.effective_score, "effective_score=True"),
        (lambda answer: answer.types.dead_counts(), "dead=True"),
        (lambda answer: answer.types.dead("en"), "dead=True and active=True"),
        (lambda answer: answer.types.top_contributors("en"), "contribution=True and active=True"),
        (lambda answer: answer.predictions, "predict=True"),
    ],
)
def test_what_was_not_asked_for_is_an_error_that_says_how(ask, argument: str) -> None:
    bare = result(
        type_map=b"", active_bitmaps=[], contribution=None, effective_score=None, dead_counts=[], dead_bitmaps=[]
    )
    del bare.message.variants[:]
    with pytest.raises(ng.NotInResultError, match=f"analyze with {argument}"):
        ask(bare)


def test_one_row_has_active_neurons_and_no_types() -> None:
    threshold = result_pb2.ThresholdResult(active_counts=[3, 1], active_bitmaps=BITMAPS[:1])
    types = group_result(component_result("decoder", threshold), labels=("en",)).types
    assert types.active_counts().tolist() == [[3], [1]]
    assert len(types.active("en")) == 4
    for ask in (types.counts, types.shares, types.codes, lambda: types[ng.ALL_SHARED], lambda: types.contribution):
        with pytest.raises(ng.NotInResultError, match=r"one row only \(en\), and a neuron has a type among two"):
            ask()


def test_unknown_names_are_errors_that_say_what_there_is() -> None:
    answer = result()
    with pytest.raises(ng.NotInResultError, match="no component 'encoder' in this result: it has 'decoder'"):
        answer.components["encoder"]
    with pytest.raises(ng.NotInResultError, match="no variant 'x' in this result: it has 'baseline', 'w/o'"):
        answer.predictions["x"]
    with pytest.raises(ng.NotInResultError, match="no row 'de' in this result: it has 'en', 'th', 'zh'"):
        answer.predictions["w/o"]["de"]
    with pytest.raises(ng.NotInResultError, match="no row 'de' in this result: it has en, th, zh"):
        answer.types.active("de")


def test_types_of_several_components_must_be_chosen() -> None:
    parts = [component_result("encoder", threshold_result()), component_result("decoder", threshold_result(0.5))]
    both = group_result(*parts)
    assert list(both.components) == ["encoder", "decoder"]
    with pytest.raises(ng.NotInResultError, match=r"encoder and decoder: say which, `result.components\['decoder'\]"):
        _ = both.types
