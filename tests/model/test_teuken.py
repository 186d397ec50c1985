import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import (
    eight_devices,
    model_of,
    one_device,
    place,
    proxy_config,
    random_params,
    random_tokens,
    tiny_config,
)

from teukenjax.hardware import configs
from teukenjax.model import flops_per_token, leaf_spec, logits, padded_vocab, parameter_count
from teukenjax.optim.lmo import ColNorm, RowNorm, Spectral
from teukenjax.recipe import ModelConfig, read_yaml, validate
from teukenjax.sharding import WeightSpec

CONFIGS = {"tied, pre-norm": tiny_config(), "untied, norms everywhere": proxy_config()}
both = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)

# Three layers of fp32 sums of up to 37 terms, some twenty roundings deep: 20·37·2⁻²⁴ = 4e-5 at
# worst. Gradients are compared by norm, array by array.
FP32 = {"rtol": 2e-5, "atol": 2e-5}


# The whole model once more, written from its description: float64, a loop over layers, complex
# rotations, whole logits.


def oracle_norm(x, epsilon, gain=1.0):
    return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * gain


def oracle_rope(x, theta):
    S, half = x.shape[1], x.shape[-1] // 2
    angles = jnp.arange(S)[:, None] * theta ** (-jnp.arange(half) / half)
    turned = (x[..., :half] + 1j * x[..., half:]) * jnp.exp(1j * angles)[:, None]
    return jnp.concatenate([turned.real, turned.imag], -1)


def oracle_logits(config: ModelConfig, params, tokens):
    norm = functools.partial(oracle_norm, epsilon=config.norm_epsilon)
    inner = norm if config.norms == "everywhere" else lambda x: x
    layers = params["layers"]
    table = params["embed"]["table"][: config.vocab_size]
    x, S = table[tokens], tokens.shape[1]
    hidden = jnp.tril(jnp.ones((S, S))) == 0
    for i in range(config.layers):
        w, mlp = layers["attention"], layers["mlp"]
        h = norm(x, gain=layers["attention_norm"]["gain"][i] if config.norm_gain else 1.0)
        heads = [jnp.tensordot(h, w[part][i], 1) for part in ("query", "key", "value")]
        q, k, v = (inner(head) for head in heads)
        q, k = (oracle_rope(head, config.rope_theta) for head in (q, k))
        mixed = []
        for head in range(config.heads):
            shared = head * config.kv_heads // config.heads
            scores = q[:, :, head] @ k[:, :, shared].mT / math.sqrt(config.head_dim)
            weights = jnp.exp(jnp.where(hidden[None], -jnp.inf, scores))
            mixed.append(weights @ v[:, :, shared] / weights.sum(-1, keepdims=True))
        mixed = inner(jnp.concatenate(mixed, -1))
        x = x + mixed @ w["output"][i].reshape(-1, config.width)
        h = norm(x, gain=layers["mlp_norm"]["gain"][i] if config.norm_gain else 1.0)
        gate = h @ mlp["gate"][i]
        x = x + inner(gate / (1 + jnp.exp(-gate)) * (h @ mlp["up"][i])) @ mlp["down"][i]
    head = table if config.tied else params["head"]["table"][: config.vocab_size]
    return norm(x, gain=params["final_norm"]["gain"] if config.norm_gain else 1.0) @ head.T


def oracle_loss(config, params, tokens, weights):
    scores = oracle_logits(config, params, tokens[:, :-1])
    labels = jnp.take_along_axis(scores, tokens[:, 1:, None], -1)[..., 0]
    return ((jnp.log(jnp.exp(scores).sum(-1)) - labels) * weights).sum()


def in_float64(function, config, params, *inputs):
    wide = jax.tree.map(np.float64, params)
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        return jax.tree.map(np.asarray, jax.jit(functools.partial(function, config))(wide, *inputs))


@functools.cache
def oracle_gradient(config):
    """Loss and gradient of ``random_params`` on ``batch_of``."""

    def run(config, params, tokens, weights):
        return jax.value_and_grad(lambda p: oracle_loss(config, p, tokens, weights))(params)

    return in_float64(run, config, random_params(config), *batch_of(config))


def batch_of(config, rows: int = 8):
    """Tokens [B, S+1] and weights [B, S], some of them zero."""
    tokens = random_tokens(config, (rows, config.context + 1))
    rng = np.random.default_rng(2)
    weights = rng.uniform(0.5, 2, (rows, config.context)).astype(np.float32)
    weights[rng.random(weights.shape) < 0.2] = 0
    return tokens, jnp.asarray(weights)


def loss_and_gradient(model, params, *batch):
    def loss(params):
        return model.bind(params).loss(*batch)

    (total, _), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return np.asarray(total), jax.tree.map(np.asarray, gradient)


def assert_same_gradient(x, y, tolerance):
    for (path, a), b in zip(jax.tree.leaves_with_path(x), jax.tree.leaves(y), strict=True):
        error = np.linalg.norm(a - b) / np.linalg.norm(b)
        assert error < tolerance, f"{jax.tree_util.keystr(path)}: {error}"


@both
def test_logits_are_the_oracles(config):
    params, tokens = random_params(config), random_tokens(config, (2, config.context))
    expected = in_float64(oracle_logits, config, params, tokens)
    assert expected.std() > 0.5  # the test sees something
    np.testing.assert_allclose(logits(config, params, tokens), expected, **FP32)


@both
@pytest.mark.parametrize("layout", ["one device", "fsdp", "fsdp_tp"])
def test_loss_and_gradient_are_the_oracles(config, layout):
    params, batch = random_params(config), batch_of(config)
    expected, gradient = oracle_gradient(config)
    layout = one_device() if layout == "one device" else eight_devices(layout)
    model = model_of(config, layout, remat="save_attention")
    total, found = loss_and_gradient(model, place(model, params), *batch)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert_same_gradient(found, gradient, 2e-5)


@both
def test_padding_rows_change_nothing_and_get_no_gradient(config):
    params, (tokens, weights) = random_params(config), batch_of(config, 2)
    used = np.arange(padded_vocab(config))[:, None] < config.vocab_size
    clean = jax.tree.map(lambda x: jnp.where(used, x, 0) if len(x) == len(used) else x, params)
    tables = ["embed"] if config.tied else ["embed", "head"]
    assert all(params[name]["table"][~used[:, 0]].all() for name in tables)
    model = model_of(config)
    results = [loss_and_gradient(model, p, tokens, weights) for p in (params, clean)]
    jax.tree.map(np.testing.assert_array_equal, *results)
    for name in tables:
        assert not results[0][1][name]["table"][~used[:, 0]].any()
    scores = [logits(config, p, tokens) for p in (params, clean)]
    assert scores[0].shape[-1] == config.vocab_size
    np.testing.assert_array_equal(*scores)


def test_loss_at_a_position_ignores_later_tokens_and_depends_on_earlier_ones():
    """Untied, with a different token at each position: its row's gradient is the position's."""
    config = proxy_config()
    params, model = random_params(config), model_of(config)
    tokens = jnp.arange(config.context + 1)[None]

    @jax.jit
    def gradient(weights):
        loss = lambda params: model.bind(params).loss(tokens, weights)[0]  # noqa: E731
        return jax.grad(loss)(params)["embed"]["table"]

    for position in range(config.context):
        weights = np.zeros((1, config.context), np.float32)
        weights[0, position] = 1
        sizes = np.linalg.norm(gradient(weights), axis=-1)
        assert not sizes[position + 1 :].any()
        assert (sizes[: position + 1] > 1e-5).all()


@pytest.mark.parametrize(
    "compute",
    [
        {"remat": "full"},
        {"remat": "save_attention"},
        {"remat": "save_projections"},
        {"unroll": 2},
        {"unroll": 3},
        {"remat": "save_attention", "unroll": 3},
    ],
    ids=lambda compute: ",".join(f"{key}={value}" for key, value in compute.items()),
)
def test_remat_and_unroll_change_no_gradient(compute):
    """The same operations, fused and ordered otherwise by the compiler."""
    config = tiny_config()
    params, batch = random_params(config), batch_of(config, 2)
    total, gradient = loss_and_gradient(model_of(config, **compute), params, *batch)
    plain_total, plain = plain_result()
    np.testing.assert_allclose(total, plain_total, rtol=1e-6)
    assert_same_gradient(gradient, plain, 1e-5)


@functools.cache
def plain_result():
    config = tiny_config()
    return loss_and_gradient(model_of(config), random_params(config), *batch_of(config, 2))


def test_packed_documents_have_the_loss_and_gradient_that_they_have_alone():
    config, params = tiny_config(), random_params(tiny_config())
    model = model_of(config)
    tokens, weights = batch_of(config, 1)
    lengths = (5, 4, 3)
    segments = jnp.asarray(np.repeat([1, 2, 3], lengths)[None].astype(np.int32))
    positions = jnp.asarray(np.concatenate([np.arange(n) for n in lengths])[None].astype(np.int32))
    packed = loss_and_gradient(model, params, tokens, weights, segments, positions)
    starts = np.cumsum((0, *lengths[:-1]))
    alone = [
        loss_and_gradient(model, params, tokens[:, a : a + n + 1], weights[:, a : a + n])
        for a, n in zip(starts, lengths, strict=True)
    ]
    np.testing.assert_allclose(packed[0], sum(total for total, _ in alone), rtol=1e-5)
    summed = jax.tree.map(lambda *parts: sum(parts), *(gradient for _, gradient in alone))
    assert_same_gradient(packed[1], summed, 1e-4)
    plain = loss_and_gradient(model, params, tokens, weights)
    assert abs(plain[0] - packed[0]) > 1e-3


def test_remat_policies_hold_what_they_name_and_nothing_else():
    """Bytes that the forward pass leaves for the backward pass, counted without compiling."""
    config, (tokens, weights) = tiny_config(), batch_of(tiny_config())

    def held(remat):
        model = model_of(config, remat=remat)
        loss = lambda params: model.bind(params).loss(tokens, weights)[0]  # noqa: E731
        residuals = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], model.abstract)
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(residuals))

    full, attention, projections, everything = (
        held(remat) for remat in ("full", "save_attention", "save_projections", "none")
    )
    layers_tokens = 4 * config.layers * weights.size
    heads, kv_heads = config.heads * config.head_dim, config.kv_heads * config.head_dim
    qkv_mixed_middle = (heads + 2 * kv_heads) + heads + config.width
    assert attention - full == layers_tokens * qkv_mixed_middle
    assert projections - attention == layers_tokens * 2 * config.ffn
    assert everything > 2 * projections


def shipped(name: str) -> ModelConfig:
    path = configs() / "models" / f"{name}.yaml"
    return validate(ModelConfig, read_yaml(path), str(path))


def test_parameters_are_counted_as_published_and_nothing_is_allocated():
    before = sum(array.nbytes for array in jax.live_arrays())
    assert parameter_count(shipped("teuken-7b")) == 7_452_725_248
    assert parameter_count(shipped("norm-proxy")) == 68_878_336
    assert sum(array.nbytes for array in jax.live_arrays()) - before < 1000


def test_flops_are_six_per_multiplying_parameter_and_half_of_the_attention_square():
    teuken = 6 * 7_452_725_248 + 6 * 32 * 4096 * 4096
    assert flops_per_token(shipped("teuken-7b")) == teuken
    untied = 68_878_336 - 128_256 * 256  # an embedding is looked up, not multiplied
    assert flops_per_token(shipped("norm-proxy")) == 6 * untied + 6 * 4 * 256 * 4096


def test_padding_counts_neither_as_parameters_nor_as_flops():
    config, unpadded = (tiny_config(vocab_multiple=m) for m in (8, 1))
    assert padded_vocab(config) == 40
    assert padded_vocab(unpadded) == 37
    assert parameter_count(config) == parameter_count(unpadded)
    assert flops_per_token(config) == flops_per_token(unpadded)


START = tiny_config(width=64, ffn=128, vocab_size=400)


@functools.cache
def start(seed: int) -> dict:
    return _init()(seed)


@functools.cache
def _init():
    return jax.jit(model_of(START).init)


def test_normal_init_has_teukens_two_standard_deviations():
    config, params = START, start(0)
    layers = params["layers"]
    attention, mlp = layers["attention"], layers["mlp"]
    small = [attention["output"], mlp["down"]]
    large = [params["embed"]["table"], mlp["gate"], mlp["up"]]
    large += [attention[part] for part in ("query", "key", "value")]
    for arrays, std in ((large, 0.0158), (small, 0.0158 / math.sqrt(2 * config.layers))):
        for array in arrays:  # the estimate's own relative deviation is 1/√(2n): five of them
            assert abs(np.std(array) / std - 1) < 5 / math.sqrt(2 * array.size)
            assert abs(np.mean(array)) < 5 * std / math.sqrt(array.size)
    for norm in (layers["attention_norm"], layers["mlp_norm"], params["final_norm"]):
        assert np.all(norm["gain"] == 1)


def test_layers_start_different_and_seeds_matter():
    query, same, other = (start(seed)["layers"]["attention"]["query"] for seed in (0, 0, 1))
    assert np.abs(query[0] - query[1]).max() > 1e-3
    np.testing.assert_array_equal(query, same)
    assert np.abs(query - other).max() > 1e-3


def boundary_norms(config: ModelConfig) -> dict[str, np.ndarray]:
    model = model_of(config)
    norms = {"input": ColNorm(), "hidden": Spectral(), "output": RowNorm()}

    def norm(spec: WeightSpec, array):
        leaf = leaf_spec(spec)
        return np.asarray(norms[spec.role].norm(leaf.to_matrices(array)))

    is_spec = lambda node: isinstance(node, WeightSpec)  # noqa: E731
    tree = jax.tree.map(norm, model.specs, jax.jit(model.init)(0), is_leaf=is_spec)
    return {path[-2].key + "." + path[-1].key: x for path, x in jax.tree.leaves_with_path(tree)}


def test_boundary_init_is_on_each_roles_ball():
    config = proxy_config(init="boundary")
    norms = boundary_norms(config)
    residual = 1 / math.sqrt(2 * config.layers)
    scaled = {"attention.output": residual, "mlp.down": residual}
    assert len(norms) == 9
    for name, norm in norms.items():  # fp32 orthogonalisation of matrices up to 32 × 16
        np.testing.assert_allclose(norm, scaled.get(name, 1.0), rtol=1e-5, err_msg=name)


def test_boundary_init_starts_at_ln_v_plus_half_over_d():
    """Logits are N(0, 1/D): log-sum-exp adds 1/(2D) to ln V."""
    config = proxy_config(init="boundary", width=32, vocab_size=512, context=64)
    params = jax.jit(model_of(config).init)(3)
    scores = np.asarray(logits(config, params, random_tokens(config, (8, 64))), np.float64)
    assert scores.std() == pytest.approx(1 / math.sqrt(32), rel=0.05)
    # Labels average out over the vocabulary: 1/√(V·D) of them is left, an eighth of 1/(2D).
    excess = np.log(np.exp(scores).sum(-1)).mean() - math.log(512)
    assert excess == pytest.approx(1 / 64, rel=0.1)
    assert scores.mean() == pytest.approx(0, abs=3 / math.sqrt(512 * 32))


@both
def test_bfloat16_loss_is_within_a_hundredth_of_float32(config):
    params, (tokens, weights) = random_params(config), batch_of(config)
    losses = [
        jax.jit(lambda p, m=m: m.bind(p).loss(tokens, weights)[0])(params) / weights.sum()
        for m in (model_of(config), model_of(config, dtype="bfloat16"))
    ]
    assert losses[0] != losses[1]
    assert abs(losses[0] - losses[1]) < 1e-2


def test_float32_is_no_tf32_in_any_product_of_a_step():
    """GPUs multiply float32 in TF32 unless each product says that it may not."""

    def precisions(dtype):
        model = model_of(tiny_config(), dtype=dtype)
        shape, tokens = (2, model.config.context), jnp.zeros((2, model.config.context + 1), "int32")
        loss = lambda p: model.bind(p).loss(tokens, jnp.ones(shape))[0]  # noqa: E731
        text = jax.jit(jax.grad(loss)).lower(model.abstract).as_text()
        return {line.split("precision = ")[1][:18] for line in text.splitlines() if "dot_g" in line}

    assert precisions("float32") == {"[HIGHEST, HIGHEST]"}
    assert precisions("bfloat16") == {"[DEFAULT, DEFAULT]"}
