"""Fits: the paper's tables give the paper's numbers, planted optima are found, and refusals."""

import numpy as np
import pytest
from rich.console import Console

from teukenjax.errors import UserError
from teukenjax.scaling import published, results
from teukenjax.scaling.curve import Curve, optimum, parabola
from teukenjax.scaling.fit import ROLES, fit_rows, print_fit, rate_rules, rules_of
from teukenjax.scaling.rules import Line, Rules

START = 11.765  # the loss at norm 1 of the paper's model


def half(digits: int) -> float:
    """Half a unit of the last printed digit."""
    return 0.5 * 10.0**-digits


@pytest.mark.parametrize(
    ("line", "values", "errors", "r_squared"),
    [
        (published.rate_rule("mean"), (0.62, -0.56, 9.8), (0.05, 0.05, 1.6), 0.92),
        (published.rate_rule("best"), (0.55, -0.53, 9.1), (0.03, 0.02, 0.8), 0.94),
    ],
    ids=["4 horizons", "9 horizons"],
)
def test_the_published_rates_give_the_published_rule(line, values, errors, r_squared):
    assert line.names == ("batch", "tokens", "constant")
    for found, printed, digits in zip(line.values, values, (2, 2, 1), strict=True):
        assert found == pytest.approx(printed, abs=1.01 * half(digits))
    for found, printed, digits in zip(line.errors, errors, (2, 2, 1), strict=True):
        assert found == pytest.approx(printed, abs=1.01 * half(digits))
    assert line.r_squared == pytest.approx(r_squared, abs=half(2))


def test_the_published_batches_give_the_published_power_law():
    line = published.batch_rule()
    assert line.values[0] == pytest.approx(0.450, abs=half(3))
    assert line.errors[0] == pytest.approx(0.066, abs=half(3))
    assert 2 ** line.values[1] == pytest.approx(0.009, abs=half(3))
    assert 2 ** line.values[1] * np.log(2) * line.errors[1] == pytest.approx(0.013, abs=half(3))
    assert line.r_squared == pytest.approx(0.868, abs=half(3))
    rate = published.rate_rule("mean")
    along = rate.values[0] * line.values[0] + rate.values[1]
    assert along == pytest.approx(-0.28, abs=half(2))  # η*(D) at B*(D)


def test_the_norm_of_the_best_batches_is_two_to_the_seven():
    value, spread = published.rules().log2_norm
    assert value == pytest.approx(7.0, abs=half(1))
    assert spread == pytest.approx(0.2, abs=half(1))


def test_the_published_coefficients_give_the_published_optima():
    """−b/2a, c − b²/4a; coefficients in three digits leave 0.05 in the norm, 0.04 in the loss."""
    from teukenjax.scaling.curve import Parabola

    rows = [row for row in published.table("optima") if row["a"]]
    assert len(rows) == 28
    for row in rows:
        x, loss = Parabola(float(row["a"]), float(row["b"]), START).lowest
        assert x == pytest.approx(float(row["log2_norm"]), abs=0.051)
        assert loss == pytest.approx(float(row["loss"]), abs=0.041)


def test_the_published_scan_gives_the_published_parabola():
    """Digitised to 0.02; the paper's weights are not known, ours are equal."""
    rows = published.table("scan")
    x, loss = np.array([[float(row["log2_norm"]), float(row["loss"])] for row in rows]).T
    found = parabola(x, loss, np.full_like(x, 0.01), intercept=START)
    assert found.a == pytest.approx(0.143, abs=0.002)
    assert found.b == pytest.approx(-2.088, abs=0.01)
    assert found.lowest == pytest.approx((7.29, 4.15), abs=0.02)


def made_curve(lowest=5.0, *, a=0.1, rates=range(-7, 2)) -> Curve:
    x = np.array([rate + 8.0 for rate in rates])
    loss = a * (x - lowest) ** 2 + 4
    sigma = np.full_like(x, 0.01)
    columns = (column.tolist() for column in (x, loss, loss, sigma, x - 8))
    return Curve.of(list(zip(*columns, strict=True)))


def test_a_planted_optimum_is_found_with_its_rate():
    found = optimum(made_curve(5.25), intercept=0.1 * 5.25**2 + 4)
    assert found.log2_rate == pytest.approx(found.log2_norm - 8, abs=1e-9)
    assert found.log2_norm == pytest.approx(5.25, abs=0.1)  # two of six variants: nearest point
    assert found.log2_norm_sd > 0


def test_a_scan_whose_lowest_loss_is_at_its_end_has_no_optimum():
    assert optimum(made_curve(20.0), intercept=44.0) is None
    assert optimum(made_curve(rates=range(-4, -1)), intercept=6.5) is None


def test_a_line_predicts_with_the_scatter_of_a_point():
    rng = np.random.default_rng(0)
    tokens, batch = rng.uniform(20, 25, 200), rng.uniform(4, 8, 200)
    y = 0.6 * batch - 0.5 * tokens + 9 + rng.normal(0, 0.3, 200)
    line = Line.fit(y.tolist(), batch=batch.tolist(), tokens=tokens.tolist())
    for value, error, true in zip(line.values, line.errors, (0.6, -0.5, 9), strict=True):
        assert abs(value - true) < 4 * error
    value, spread = line.at(batch=6.0, tokens=22.0)
    assert spread == pytest.approx(0.3, rel=0.15)
    assert abs(value - (0.6 * 6 - 0.5 * 22 + 9)) < 0.1


def rows_of_law(tokenizer="t", *, rates=range(-8, 1)):
    """Rows with η* = ½ log2 B − ½ log2 D + 6.5, norm 2^(rate + ½ log2 steps), and traces."""
    rows = []
    for batch in (16, 64, 256):
        for tokens in (20, 22, 24):
            best = 0.5 * np.log2(batch) - 0.5 * tokens + 6.5
            for rate in rates:
                loss = 4 + 0.1 * (rate - best) ** 2
                row = dict.fromkeys(results.ROWS.names) | {
                    "run": f"b{batch}/{rate}", "model": "m", "optimizer": "scion", "momentum": 0.0,
                    "batch": batch, "context": 256, "tokens": 2**tokens, "step": 2**tokens // batch,
                    "log2_learning_rate": float(rate), "loss": loss, "loss_last": loss,
                    "loss_sd": 0.01, "diverged": False, "tokenizer": tokenizer, "width": 8,
                    "layers": 1, "norm_output": 2.0 ** (rate + 5), "seed": 1,
                }  # fmt: skip
                rows.append(row | {f"multiplier_{r}": 1.0 for r in ("input", "hidden", "output")})
    return rows, [{"step": 1, "loss": 9.0}]


def test_exponents_of_planted_rows_come_back():
    fitted = fit_rows(*rows_of_law(rates=range(-10, 3)))
    (line,) = rate_rules(fitted).values()
    # Two of six variants take the nearest point of an octave's grid.
    assert line.values[:2] == pytest.approx((0.5, -0.5), abs=0.06)
    rules = rules_of(fitted, "made")
    assert rules.context == 256
    assert rules.log2_tokens == (20.0, 24.0)


def test_rules_say_whose_norms_they_are():
    rows, traces = rows_of_law(rates=range(-10, 3))
    rows = [row | {"norm_hidden": row["norm_output"] / 4} for row in rows]
    by_role = {role: rules_of(fit_rows(rows, traces, role=role), "made") for role in ROLES[:2]}
    assert {role: rules.role for role, rules in by_role.items()} == {r: r for r in ROLES[:2]}


def test_a_role_that_the_model_has_not_is_said_in_one_line():
    with pytest.raises(UserError, match=r"role input: run b16/-8 has no norm of it"):
        fit_rows(*rows_of_law(), role="input")


def test_batches_that_only_grow_with_the_horizon_give_no_rule():
    rows, traces = rows_of_law(rates=range(-10, 3))
    diagonal = {(16, 20), (64, 22), (256, 24)}
    some = [row for row in rows if (row["batch"], np.log2(row["tokens"])) in diagonal]
    more = [row | {"batch": 1024, "tokens": 2**26, "run": f"x{row['run']}"} for row in some[-13:]]
    fitted = fit_rows(some + more, traces)
    assert len(fitted.optima) == 4
    assert rate_rules(fitted) == {}
    print_fit(Console(quiet=True), fitted)


def test_rules_are_read_as_they_were_written(tmp_path):
    published.rules().save(tmp_path / "fit.json")
    assert Rules.load(tmp_path / "fit.json") == published.rules()
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(UserError, match=r"other\.json: is no fit\.json"):
        Rules.load(tmp_path / "other.json")


def test_too_few_points_are_said_in_one_line():
    with pytest.raises(UserError, match="too few points to fit: 27 rows in 9 scans") as error:
        fit_rows(*rows_of_law(rates=range(-4, -1)))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="too few points to fit: 2 with values 1 of batch"):
        Line.fit([1.0, 2.0], batch=[3.0, 3.0])


def test_diverged_rows_stay_out_of_the_fit():
    rows, traces = rows_of_law(rates=range(-10, 3))
    plain = fit_rows(rows, traces)
    bad = [row | {"diverged": True, "loss": None, "norm_output": None} for row in rows[:3]]
    fitted = fit_rows(rows + [row | {"run": "x"} for row in bad], traces)
    assert fitted.diverged == 3
    assert fitted.optima == plain.optima


def test_mixed_tokenizers_are_refused(tmp_path):
    files = []
    for name in ("one", "other"):
        rows, _ = rows_of_law(name)
        files.append(tmp_path / f"{name}.parquet")
        results.write([row | {"run": f"{name}/{row['run']}"} for row in rows],
                      results.ROWS, files[-1])  # fmt: skip
    assert len(results.read(files[:1])) == 81
    with pytest.raises(UserError, match=r"mixed tokenizers: run one/.* has one, run other/"):
        results.read(files)
    with pytest.raises(UserError, match="no results"):
        results.read([tmp_path])
    (tmp_path / "text.parquet").write_text("text")
    with pytest.raises(UserError, match=r"text\.parquet: is no Parquet file"):
        results.read([tmp_path / "text.parquet"])
