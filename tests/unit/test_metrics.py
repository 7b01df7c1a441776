"""The names that dashboards are built on."""

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from consumer.messages import ModelInfo, Partition
from consumer.metrics import Metrics


def _samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    found = {}
    for family in text_string_to_metric_families(generate_latest(metrics.registry).decode()):
        for sample in family.samples:
            found[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return found


def _all_used() -> Metrics:
    metrics = Metrics()
    metrics.image("labelled")
    metrics.skipped("removed")
    metrics.stage_seconds("decode", 0.003)
    metrics.batch(13, 3)
    metrics.lag({Partition("images", 2): 7})
    metrics.in_flight(5, 1_000)
    metrics.dead_letter("NotAnImage")
    metrics.dead_letter_limit(reached=True)
    metrics.retry("fetch")
    metrics.rebalance()
    metrics.offsets_lost(12)
    metrics.commit(ok=True)
    metrics.commit(ok=False)
    metrics.store_down("s3://bucket", down=True)
    metrics.tracking_dropped(3)
    metrics.model(ModelInfo("bird", "1", "sha256:ab", "tensorflow", "f32"))
    return metrics


def test_each_thing_that_happens_is_counted_under_its_name() -> None:
    samples = _samples(_all_used())
    expected = {
        ("ouzel_images_total", (("outcome", "labelled"),)): 1,
        ("ouzel_images_total", (("outcome", "dead_letter"),)): 0,
        ("ouzel_skipped_total", (("reason", "removed"),)): 1,
        ("ouzel_stage_duration_seconds_count", (("stage", "decode"),)): 1,
        ("ouzel_stage_duration_seconds_bucket", (("le", "0.0025"), ("stage", "decode"))): 0,
        ("ouzel_stage_duration_seconds_bucket", (("le", "0.005"), ("stage", "decode"))): 1,
        ("ouzel_batch_images_sum", ()): 13,
        ("ouzel_batch_padding_images_total", ()): 3,
        ("ouzel_consumer_lag", (("partition", "2"), ("topic", "images"))): 7,
        ("ouzel_inflight_messages", ()): 5,
        ("ouzel_inflight_bytes", ()): 1_000,
        ("ouzel_dead_letters_total", (("class", "NotAnImage"),)): 1,
        ("ouzel_dead_letter_limit_reached", ()): 1,
        ("ouzel_retries_total", (("stage", "fetch"),)): 1,
        ("ouzel_rebalances_total", ()): 1,
        ("ouzel_offsets_lost_total", ()): 12,
        ("ouzel_commits_total", (("result", "ok"),)): 1,
        ("ouzel_commits_total", (("result", "error"),)): 1,
        ("ouzel_store_down", (("store", "s3://bucket"),)): 1,
        ("ouzel_tracking_dropped_total", ()): 3,
    }
    assert expected.items() <= samples.items()
    (model,) = [dict(labels) for name, labels in samples if name == "ouzel_model_info"]
    assert model == {
        "name": "bird",
        "version": "1",
        "digest": "sha256:ab",
        "runtime": "tensorflow",
        "precision": "f32",
    }


def test_after_a_swap_only_the_new_model_is_shown() -> None:
    metrics = _all_used()
    metrics.model(ModelInfo("bird", "2", "sha256:cd", "openvino", "f32"))
    (labels,) = [dict(labels) for name, labels in _samples(metrics) if name == "ouzel_model_info"]
    assert (labels["version"], labels["digest"], labels["runtime"]) == ("2", "sha256:cd", "openvino")


def test_what_becomes_of_new_models_is_counted() -> None:
    metrics = Metrics()
    metrics.swap("refused")
    metrics.swap_state("shadowing")
    metrics.shadowed(same=True, agreement=1.0)
    metrics.shadowed(same=False, agreement=0.5)
    samples = _samples(metrics)
    assert samples["ouzel_model_swaps_total", (("result", "refused"),)] == 1
    assert samples["ouzel_model_swaps_total", (("result", "swapped"),)] == 0
    assert samples["ouzel_swap_state", ()] == 2
    assert samples["ouzel_shadow_images_total", (("first_label", "other"),)] == 1
    assert samples["ouzel_shadow_agreement", ()] == 0.5
    metrics.swap_state("none")
    assert _samples(metrics)["ouzel_swap_state", ()] == 0


def test_nothing_else_is_exposed_but_the_processs_own_figures() -> None:
    names = {name for name, _ in _samples(_all_used())}
    assert {name for name in names if name.startswith("process_")} >= {
        "process_resident_memory_bytes",
        "process_cpu_seconds_total",
    }
    assert not {name for name in names if name.endswith("_created")}
    assert all(name.startswith(("ouzel_", "process_")) for name in names)


def test_the_lag_of_a_partition_goes_away_with_it() -> None:
    metrics = _all_used()
    metrics.drop_lag(Partition("images", 2))
    metrics.drop_lag(Partition("images", 3))  # never had any
    assert not [name for name, _ in _samples(metrics) if name == "ouzel_consumer_lag"]


def test_two_of_them_in_one_process_do_not_mix() -> None:
    first, second = Metrics(CollectorRegistry()), Metrics()
    first.rebalance()
    assert _samples(second)["ouzel_rebalances_total", ()] == 0
