"""The search: what it tries can be run, what it picks is best, what it refuses it explains."""

import numpy as np
import pytest

from teukenjax.errors import UserError
from teukenjax.hardware import named
from teukenjax.planner import inverse
from teukenjax.planner.bounds import bounds
from teukenjax.planner.command import nothing_fits, write_recipe
from teukenjax.planner.plans import NAMES
from teukenjax.planner.predict import predict
from teukenjax.planner.report import bounds_line
from teukenjax.planner.search import Question, enumerate_plans, recipe_of, search, what_if
from teukenjax.recipe import Recipe, load, validate
from teukenjax.sharding import STRATEGIES
from teukenjax.train.plan import abstract_program


def test_every_plan_is_a_recipe_whose_state_the_sharding_table_places(small):
    recipe = small(optimizer={"name": "scion"})
    question = Question(recipe, named("h100-sxm"), 8)
    plans = enumerate_plans(question)
    assert {NAMES[i] for i in plans.strategy} == set(STRATEGIES)
    seen = set()
    for index in range(len(plans)):
        planned = recipe_of(recipe, plans, index)
        assert planned.tokens_per_step == recipe.tokens_per_step
        checked = validate(Recipe, planned.model_dump(mode="json"), "plan")
        mesh = (checked.sharding.strategy, checked.sharding.replica, checked.sharding.tensor)
        if mesh not in seen:  # the state depends on nothing else
            seen.add(mesh)
            assert abstract_program(checked, 8).abstract_state.params
    assert len(seen) > len(STRATEGIES)


def test_one_device_has_one_strategy_and_no_collectives(small):
    answer = search(Question(small(), named("h200-sxm"), 1))
    assert {NAMES[i] for i in answer.prediction.plans.strategy} == {"fsdp"}
    said = bounds_line(bounds(answer.prediction, int(answer.best[0])))
    assert "at least 1 device" in said
    assert "collectives" not in said


def test_plans_stay_within_the_batch(small):
    question = Question(small(), named("h100-sxm"), 8)
    plans = enumerate_plans(question)
    assert (plans.tokens_per_step == question.recipe.tokens_per_step).all()
    assert (plans.devices == 8).all()


def test_other_sequence_lengths_keep_the_tokens_of_a_step(small):
    question = Question(small(), named("h100-sxm"), 4, sequences=(32, 64))
    plans = enumerate_plans(question)
    assert set(plans.sequence) == {32, 64}
    longer = recipe_of(question.recipe, plans, int(np.argmax(plans.sequence)))
    assert longer.model.context == 64
    assert longer.batch.sequences == 16


def test_the_best_come_first_and_fit(teuken):
    answer = search(teuken())
    speeds = answer.prediction.tokens_per_s[answer.best]
    assert (np.diff(speeds) <= 0).all()
    assert answer.prediction.fits[answer.best].all()
    rejected = np.setdiff1d(np.arange(len(answer.prediction.plans)), answer.best)
    assert not answer.prediction.fits[rejected].any()


def test_the_winner_is_read_back_as_written(teuken, tmp_path):
    answer = search(teuken("h100-sxm", 64, "optimizer={name: scion}"))
    out = tmp_path / "winner.yaml"
    written = write_recipe(answer, out)
    assert load(out) == written
    assert abstract_program(written, 64).layout.mesh.size == 64


def test_light_is_tried_only_where_the_recipe_allows_it(teuken):
    allowed = enumerate_plans(teuken("h100-sxm", 8, "optimizer={name: scion}"))
    clipped = enumerate_plans(teuken("h100-sxm", 8, "optimizer={name: scion, clip_norm: 1.0}"))
    assert allowed.light.any()
    assert not clipped.light.any()


def test_no_purchase_slows_the_best_plan(teuken):
    lifts = what_if(search(teuken()))
    assert min(lifts.values()) >= 0
    assert lifts["twice the compute"] > lifts["twice the network"]


def test_devices_that_do_not_divide_are_refused_with_what_would(teuken):
    with pytest.raises(UserError, match=r"--devices 48: .*take a divisor of 1024"):
        search(teuken(devices=48))
    with pytest.raises(UserError, match=r"--devices 7: .*divide"):
        search(teuken(devices=7))


def test_lengths_that_do_not_divide_the_batch_are_said_whatever_the_devices(teuken):
    question = teuken().on(sequences=(3000, 2**24))
    with pytest.raises(UserError, match=r"^--sequence 3000, 16777216: a batch of 4,194,304 tokens"):
        search(question)


def test_the_cluster_for_other_lengths_counts_their_sequences(teuken):
    question = teuken("a100-80").on(sequences=(1024,))
    found = inverse.cluster_for(question, tokens=4e12, target_days=12.0)
    assert found.answer.question.devices > 1024  # of 4096 sequences, where 4096-long ones are 1024


def test_what_does_not_fit_says_by_how_much_and_what_would(teuken):
    answer = search(teuken("a100-40", 2))
    assert not len(answer.best)
    message = nothing_fits(answer)
    assert "too much" in message
    assert "4 devices" in message
    assert len(search(teuken("a100-40", 4)).best)


def test_a_sequence_that_fits_nowhere_names_the_longest_that_does(teuken):
    question = teuken("a100-40", 8, "model.context=1048576", "batch.sequences=8",
                      "batch.accumulation=1")  # fmt: skip
    longest = inverse.longest_sequence(question)
    assert longest < 1_048_576
    assert len(search(question.on(sequences=(longest,))).best)
    assert f"sequences of {longest}" in nothing_fits(search(question))


def test_the_cluster_for_a_target_is_the_smallest(teuken):
    question = teuken()
    found = inverse.cluster_for(question, tokens=1e12, target_days=30.0)
    devices = found.answer.question.devices
    assert found.days <= 30
    half = search(question.on(devices=devices // 2))
    assert inverse.days(half, 1e12) > 30
    assert inverse.cluster_for(question, tokens=1e18, target_days=1.0) is None


def test_the_largest_model_holds_the_floor_and_a_higher_floor_a_smaller_model(teuken):
    question = teuken("h100-sxm", 8)
    config, answer = inverse.largest_model(question, mfu=0.4)
    assert answer.prediction.mfu[answer.best[0]] >= 0.4
    smaller, _ = inverse.largest_model(question, mfu=0.47)
    assert smaller.width < config.width


def test_tensor_parallelism_pays_where_sequences_are_fewer_than_devices(teuken):
    few = teuken("h100-sxm", 64, "model.kv_heads=32", "batch.sequences=32", "batch.accumulation=1")
    assert inverse.best_of(search(few), "fsdp") == 0
    assert inverse.tensor_pays(few) == "always"
    assert inverse.tensor_pays(teuken()) == "never"


def test_the_network_at_which_tensor_parallelism_pays_divides_the_winners(teuken):
    large = ("model.width=8192", "model.heads=64", "model.kv_heads=8", "model.layers=80",
             "model.ffn=28672", "batch.sequences=64", "batch.accumulation=1")  # fmt: skip
    question = teuken("a100-40", 64, *large)
    side, bound, _ = inverse.tensor_pays(question).split()
    assert side == "above"
    for factor, pays in ((0.8, False), (1.25, True)):
        node = question.hw.node.model_copy(update={"network_gb_per_s": float(bound) * factor})
        answer = search(question.on(hw=question.hw.model_copy(update={"node": node})))
        assert (inverse.best_of(answer, "fsdp_tp") > inverse.best_of(answer, "fsdp")) == pays


def test_a_million_plans_go_through_at_once(teuken):
    question = teuken()
    plans = search(question).prediction.plans
    rows = np.random.default_rng(0).integers(len(plans), size=1_000_000)
    many = predict(plans[rows], question.setting, head_chunk=1024)
    few = predict(plans, question.setting, head_chunk=1024)
    np.testing.assert_array_equal(many.tokens_per_s, few.tokens_per_s[rows])
