"""Norms measured inside the optimizer, against their definitions and exact decompositions."""

import doctest
import functools
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden import gaussian
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from leaves import SHAPES, SPECS, random_tree
from tiny import model_of, proxy_config, random_tokens

from teukenjax.errors import UserError
from teukenjax.model import leaf_spec
from teukenjax.optim import LeafSpec, by_role, lmo, newton_schulz, read_norms, scion, track_norms
from teukenjax.optim.orthogonalise import polar
from teukenjax.sharding import WeightSpec

RATE = 0.125
CONVERGED = 300  # iterations that leave nothing but rounding on these sizes
# Of Newton–Schulz with kj: the local maximum of its polynomial on [0, 1]. Singular values of
# more than 0.0052 ‖G‖_F end below 1.14; smaller ones may be caught on their way over the hump.
KJ_LARGEST = 1.2025


def tracked_sgd(**options):
    """ΔW = −γ G, known without the optimizer's help."""
    return track_norms(optax.sgd(RATE), SPECS, **{"every": 1, "learning_rate": RATE, **options})


def run(optimizer, params, gradients):
    """All states, the first one that of init."""
    update, states = jax.jit(optimizer.update), [optimizer.init(params)]
    for gradient in gradients:
        updates, state = update(gradient, states[-1], params)
        params = optax.apply_updates(params, updates)
        states.append(state)
    return params, states


def papers_matrices(name, leaf):
    """W as the papers write it: d_out × d_in, one for each of the stack."""
    layers = np.asarray(leaf, np.float64)
    if name == "embedding":
        return layers.T[None]
    if name == "head":
        return layers[None]
    if name == "query":
        return layers.reshape(2, 8, 12).swapaxes(1, 2)
    return layers.reshape(2, 12, 8).swapaxes(1, 2)


def defined(name, leaf):
    """The definitions, one matrix at a time."""
    if name == "gain":
        return {"rms": np.sqrt(np.mean(np.square(np.asarray(leaf)), axis=-1))}
    rows = []
    for w in papers_matrices(name, leaf):
        d_out, d_in = w.shape
        columns, lines = np.linalg.norm(w, axis=0), np.linalg.norm(w, axis=1)
        sigma, frobenius = np.linalg.svd(w, compute_uv=False)[0], np.linalg.norm(w)
        if SPECS[name].role == "hidden":
            norm = np.sqrt(d_in / d_out) * sigma
            rows.append({"rms_to_rms": norm, "stable_rank": (frobenius / sigma) ** 2})
        else:
            rows.append({"one_to_rms": columns.max() / np.sqrt(d_out)})
            rows[-1] |= {"rms_to_inf": np.sqrt(d_in) * lines.max(), "sign": d_in * abs(w).max()}
        rows[-1]["frobenius"] = frobenius
    return {key: np.array([row[key] for row in rows]) for key in rows[0]}


def test_module_example():
    result = doctest.testmod(sys.modules["teukenjax.optim.telemetry"])
    assert result.attempted > 5
    assert result.failed == 0


@pytest.mark.parametrize("name", SHAPES)
def test_numbers_are_those_of_the_definitions(name):
    gradients = random_tree(1)
    params, states = run(tracked_sgd(iterations=CONVERGED), random_tree(0), [gradients])
    norms = read_norms(states[-1], SPECS)
    for kind, leaf in (("weight", params[name]), ("update", -RATE * gradients[name])):
        found = norms[kind][name]
        for measure, expected in defined(name, leaf).items():
            got = np.reshape(found[measure], expected.shape)
            np.testing.assert_allclose(got, expected, rtol=2e-5, err_msg=measure)
        assert found.get("rms_to_rms_residual", np.zeros(1)).max() < 0.02  # clears as √error


def test_few_iterations_are_never_too_high():
    params, states = run(tracked_sgd(iterations=2), random_tree(0), [random_tree(1)])
    for name in ("query", "out"):
        found = read_norms(states[-1], SPECS)["weight"][name]
        exact = defined(name, params[name])["rms_to_rms"]
        assert (np.hypot(found["rms_to_rms"], found["rms_to_rms_residual"]) < exact).all()
        assert (found["rms_to_rms_residual"] > 1e-3).all()


@pytest.mark.parametrize(("constrained", "momentum"), [(True, 0.9), (True, 0.0), (False, 0.9)])
def test_gap_is_its_definition(constrained, momentum, monkeypatch):
    """max of ⟨d, W − X⟩ over the ball, with the exact polar factor."""
    monkeypatch.setattr(lmo, "newton_schulz", lambda x, **_: polar(x))
    options = {"radius": {"hidden": 3.0}, "multiplier": {"hidden": 0.5, "output": 2.0}}
    schedule = lambda step: RATE / (1 + step)  # noqa: E731
    optimizer = scion(
        schedule, SPECS, preset="untied", constrained=constrained, momentum=momentum, **options
    )
    tracked = track_norms(
        optimizer, SPECS, every=2, learning_rate=schedule, multiplier=options["multiplier"]
    )
    gradients = [random_tree(1), random_tree(2)]
    before, _ = run(tracked, random_tree(0), gradients[:1])
    _, states = run(tracked, random_tree(0), gradients)
    gap = read_norms(states[-1], SPECS)["gap"]
    weights = (1 - momentum) * momentum, 1 - momentum
    for name, spec in SPECS.items():
        d = weights[0] * gradients[0][name] + weights[1] * gradients[1][name]
        d, w = np.asarray(d, np.float64), np.asarray(before[name], np.float64)
        if spec.role == "gain":
            expected = np.sqrt(8) * np.linalg.norm(d, axis=-1)  # never shrunk
        else:
            d, w = papers_matrices(name, d), papers_matrices(name, w)
            d_out, d_in = d.shape[1:]
            dual = {
                "hidden": 3.0 * np.sqrt(d_out / d_in) * np.linalg.svd(d)[1].sum(axis=-1),
                "input": np.sqrt(d_out) * np.linalg.norm(d, axis=1).sum(axis=-1),
                "output": np.linalg.norm(d, axis=2).sum(axis=-1) / np.sqrt(d_in),
            }[spec.role]
            expected = dual + constrained * (d * w).sum(axis=(1, 2))
        np.testing.assert_allclose(np.reshape(gap[name], expected.shape), expected, rtol=1e-4)
    roles = by_role(read_norms(states[-1], SPECS), SPECS)
    hidden = np.sum(gap["query"]) + np.sum(gap["out"])
    assert roles["gap"]["hidden"] == pytest.approx(float(hidden), rel=1e-6)


def test_roles_have_the_largest_norm():
    _, states = run(tracked_sgd(), random_tree(0), [random_tree(1)])
    norms = read_norms(states[-1], SPECS)
    roles = by_role(norms, SPECS)
    layers = [norms["weight"][name]["rms_to_rms"] for name in ("query", "out")]
    assert roles["weight"]["hidden"]["rms_to_rms"] == np.max(layers)
    assert roles["update"]["output"] == {k: float(v) for k, v in norms["update"]["head"].items()}


def test_other_updates_leave_the_numbers():
    _, states = run(tracked_sgd(every=3), random_tree(0), [random_tree(i) for i in range(1, 8)])
    seen = [(state.numbers, state.vectors) for state in states]
    assert all(np.isnan(x).all() for x in jax.tree.leaves(seen[0][0]))
    for step in range(1, 8):
        before, after = seen[step - 1 : step + 1]
        same = jax.tree.map(functools.partial(np.array_equal, equal_nan=True), before, after)
        assert set(jax.tree.leaves(same)) == {step % 3 != 0}


@pytest.mark.parametrize("name", ["scion", "adamw"])
def test_the_optimizer_is_not_disturbed(name):
    plain = scion(RATE, SPECS, iterations=1) if name == "scion" else optax.adamw(RATE)
    gap = {"learning_rate": RATE} if name == "scion" else {}
    gradients = [random_tree(1), random_tree(2)]
    params, states = run(plain, random_tree(0), gradients)
    others, tracked = run(track_norms(plain, SPECS, every=1, **gap), random_tree(0), gradients)
    jax.tree.map(np.testing.assert_array_equal, params, others)
    jax.tree.map(np.testing.assert_array_equal, states[-1], tracked[-1].inner)
    norms = read_norms(tracked[-1], SPECS)
    assert ("gap" in norms) == (name == "scion")
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(norms))


def test_state_is_found_inside_a_chain():
    chained = optax.chain(optax.clip_by_global_norm(1e-3), tracked_sgd())
    _, states = run(chained, random_tree(0), [random_tree(1)])
    norms = read_norms(states[-1], SPECS)
    whole = sum(np.sum(np.square(x.get("frobenius", 0))) for x in norms["update"].values())
    whole += 8 * np.sum(np.square(norms["update"]["gain"]["rms"]))
    assert np.sqrt(whole) == pytest.approx(RATE * 1e-3, rel=1e-4)
    assert read_norms(optax.sgd(0.1).init(random_tree(0)), SPECS) == {}


@pytest.mark.parametrize("absent", [None, optax.MaskedNode()], ids=["none", "masked"])
def test_absent_leaves_are_passed_over(absent):
    params = {**random_tree(0), "out": absent, "head": absent}
    gradients = {**random_tree(1), "out": absent, "head": absent}
    _, states = run(tracked_sgd(), params, [gradients])
    assert read_norms(states[-1], SPECS)["weight"].keys() == {"embedding", "query", "gain"}


def test_a_step_that_is_not_finite_is_seen_and_survived():
    poisoned = random_tree(1)
    poisoned["query"] = poisoned["query"].at[1, 2, 3, 0].set(jnp.nan)
    optimizer, params = tracked_sgd(), random_tree(0)
    _, state = jax.jit(optimizer.update)(poisoned, optimizer.init(params), params)
    norms = read_norms(state, SPECS)["update"]["query"]["rms_to_rms"]
    np.testing.assert_array_equal(np.isnan(norms), [False, True])
    _, state = jax.jit(optimizer.update)(random_tree(2), state, params)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(read_norms(state, SPECS)))


def test_a_weight_of_zeros_has_norms_of_zero():
    zeros = optax.tree.zeros_like(random_tree(0))
    _, states = run(tracked_sgd(), zeros, [zeros])
    assert not any(x.any() for x in jax.tree.leaves(read_norms(states[-1], SPECS)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_scan_keeps_the_state_type(dtype):
    optimizer, params = tracked_sgd(), random_tree(0, dtype)

    def step(state, gradients):
        _, state = optimizer.update(gradients, state, params)
        return state, None

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), random_tree(1), random_tree(2))
    stacked = jax.tree.map(lambda x: x.astype(dtype), stacked)
    state, _ = jax.lax.scan(step, optimizer.init(params), stacked)
    assert {x.dtype for x in jax.tree.leaves((state.numbers, state.vectors))} == {
        jnp.dtype("float32")
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every=0, iterations=16: must be at least 1"),
        ({"iterations": 0}, "iterations=0"),
        ({"multiplier": {"hiden": 1.0}}, r"multiplier\.hiden: unknown role: did you mean 'hidden'"),
    ],
)
def test_user_mistakes(options, message):
    with pytest.raises(UserError, match=message):
        tracked_sgd(**options)


def test_mistakes_name_the_leaf_and_the_call():
    wrong = {"w": LeafSpec("hidden", (0,), (2,))}
    with pytest.raises(ValueError, match=r"w.*has 2 axes"):
        track_norms(optax.sgd(0.1), wrong, every=1).init({"w": jnp.ones((3, 4))})
    optimizer = tracked_sgd()
    with pytest.raises(ValueError, match=r"update\(gradients, state, params\)"):
        optimizer.update(random_tree(0), optimizer.init(random_tree(0)))


# On a mesh, and in the compiled program.

LAYOUT = {
    "embedding": P("fsdp"),
    "query": P(None, "fsdp", "tensor"),
    "out": P(None, "tensor", None, "fsdp"),
    "gain": P(),
    "head": P("fsdp"),
}


@pytest.fixture
def shardings():
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
    return {name: NamedSharding(mesh, spec) for name, spec in LAYOUT.items()}


def test_sharded_equals_unsharded(shardings):
    trees, optimizer = (random_tree(0), random_tree(1)), tracked_sgd()
    _, alone = run(optimizer, trees[0], [trees[1]] * 2)
    params, gradients = jax.device_put(trees, (shardings, shardings))
    _, spread = run(optimizer, params, [gradients] * 2)
    for a, b in zip(*(jax.tree.leaves(s[-1].numbers) for s in (alone, spread)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)  # atol: a residual is a difference


def compiled(optimizer, shardings=None):
    trees = random_tree(0), random_tree(1)
    params, gradients = jax.device_put(trees, (shardings,) * 2) if shardings else trees
    lowered = jax.jit(optimizer.update).lower(gradients, optimizer.init(params), params)
    return lowered.compile().as_text()


def test_on_a_mesh_only_vectors_travel(shardings):
    text = compiled(tracked_sgd(), shardings)
    shapes = re.findall(
        r"= \w+\[([\d,]*)\]\S* (?:all-gather|all-reduce|reduce-scatter|all-to-all|collective\S*)\(",
        text,
    )
    assert shapes
    sizes = [np.prod([int(n) for n in shape.split(",") if n]) for shape in shapes]
    assert max(sizes) <= 2 * 2 * 12  # the vectors of two layers, for weight and update


def test_the_work_is_inside_the_conditional():
    """What runs in the other steps multiplies nothing and loops over nothing."""
    computations = {}
    for block in compiled(tracked_sgd()).split("\n\n"):
        if found := re.search(r"^(ENTRY )?%([\w.\-]+) [^\n]*\{$", block, re.MULTILINE):
            computations["ENTRY" if found[1] else found[2]] = block
    work = re.compile(r" (?:dot|while)\(|matmul")
    assert sum(len(work.findall(block)) for block in computations.values()) >= 8
    reached, queue = set(), ["ENTRY"]
    while queue:
        name = queue.pop()
        reached.add(name)
        assert not work.search(computations[name]), name
        called = re.findall(r"(?:calls|to_apply|body|condition)=%([\w.\-]+)", computations[name])
        queue += [other for other in called if other not in reached]
    branches = re.findall(r"(?:branch_computations=\{|true_computation=)%", computations["ENTRY"])
    assert len(branches) == len(SHAPES)


# The early trajectory of "Optimal Scaling Needs Optimal Norm", where nothing but η matters.


def test_early_norms_grow_as_the_bound_says(monkeypatch):
    """Unconstrained, radius 1, no momentum, from the boundary: ‖W_k‖ <= ‖W_0‖ + c η k."""
    exact = functools.partial(newton_schulz, dtype=jnp.float32)
    monkeypatch.setattr(lmo, "newton_schulz", exact)
    rate, steps = 2**-7, 16
    config = proxy_config(init="boundary", norm_epsilon=1e-20)
    model = model_of(config)
    specs = jax.tree.map(leaf_spec, model.specs, is_leaf=lambda x: isinstance(x, WeightSpec))
    optimizer = track_norms(
        scion(rate, specs, preset="untied", momentum=0.0, constrained=False, epsilon=1e-20),
        specs,
        every=1,
        learning_rate=rate,
    )

    @jax.jit
    def step(params, state, tokens):
        weights = jnp.ones((16, 12))
        gradients = jax.grad(lambda p: model.bind(p).loss(tokens, weights)[0])(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    params = jax.jit(model.init)(jnp.uint32(3))
    state = optimizer.init(params)
    residual = (2 * config.layers) ** -0.5
    for k in range(1, steps + 1):
        params, state = step(params, state, random_tokens(config, (16, 13), seed=k))
        weight, bound = read_norms(state, specs)["weight"], 1 + rate * k
        ends = weight["head.table"]["rms_to_inf"], weight["embed.table"]["one_to_rms"]
        for end in ends:
            assert end <= bound * (1 + 1e-6)
            assert end >= (0.95 if k <= 4 else 0.85) * bound
        for name, norms in weight.items():
            if name.startswith("layers"):
                start = residual if name.endswith(("output", "down")) else 1.0
                assert (norms["rms_to_rms"] <= start + KJ_LARGEST * rate * k).all(), name


def test_parts_of_a_fused_leaf_are_measured_apart():
    w, g = gaussian(6, 12), gaussian(6, 12, seed=1)
    plain, fused = (LeafSpec("hidden", (0,), (1,), parts=parts) for parts in ((), (8, 4)))

    def measured(specs, params, gradient):
        options = {"every": 1, "learning_rate": RATE, "iterations": CONVERGED}
        optimizer = track_norms(optax.sgd(RATE), specs, **options)
        _, state = jax.jit(optimizer.update)(gradient, optimizer.init(params), params)
        return read_norms(state, specs)

    together = measured({"w": fused}, {"w": w}, {"w": g})
    apart = [{"w.0": x[:, :8], "w.1": x[:, 8:]} for x in (w, g)]
    expected = measured({"w.0": plain, "w.1": plain}, *apart)
    assert set(together["weight"]) == {"w.0", "w.1"}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), together, expected
    )


def test_the_light_form_has_the_gap_of_the_full_one():
    """With β = 1/2 and a first gradient g, the one buffer holds g/2 and the other g."""
    specs = {"w": LeafSpec("hidden", (0,), (1,))}
    params, gradient = {"w": gaussian(6, 12)}, {"w": gaussian(6, 12, seed=1)}
    gaps = []
    for light in (False, True):
        inner = scion(RATE, specs, momentum=0.5, light=light, epsilon=1e-20)
        average = 0.5 if light else 1.0
        optimizer = track_norms(inner, specs, every=1, learning_rate=RATE, average=average)
        _, state = jax.jit(optimizer.update)(gradient, optimizer.init(params), params)
        gaps.append(read_norms(state, specs)["gap"]["w"])
    np.testing.assert_allclose(*gaps, rtol=1e-4)
