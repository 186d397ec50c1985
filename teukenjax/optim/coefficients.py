"""Named coefficients of Newton–Schulz: polynomials that push singular values towards 1.

One step maps every singular value by p(σ) = a σ + b σ³ + c σ⁵. A set is a schedule of steps, and
the sets differ in what they make of σ in [0.01, 1], in how fast they lift smaller values (a matrix
of Frobenius norm 1 has many) and in their price:

    name                     steps  σ in [0.01, 1]   0.001
    kj                           5   0.68 … 1.13      0.47   Muon, Scion, "Optimal Norm"
    you                          5   0.98 … 1.03      0.47   the same cost, ten times as close
    polar_express                8   1.00 … 1.00      1.00   its first 5: 0.87 … 1.12, and 0.85
    polar_express_cushioned      5   0.86 … 1.14      0.85   with safety 0.02, for five steps
    cans                         5   0.87 … 1.12      0.86   Chebyshev-optimal
    modula                       6   0.996 … 0.999    0.87   its first 5: 0.76 … 1.02
    deepseek_v4                 10   1.00 … 1.00      1.00   kj eight times, two steps to settle
    cubic                        5   0.77 … 1.30      0.12   c = 0: one product less in each step

Not here: the set of four steps that belongs to AOL. It wants columns that are each divided by a
bound of their own, which turns U and V: what comes out is the polar factor of another matrix.

Sources: kj, Jordan et al., "Muon" (2024). you, known as "quintic" in Megatron-LM. polar_express,
arXiv 2505.16932, with safety factor 1.01; cushioned as in modded-nanogpt and nanochat. cans,
arXiv 2506.10935; the safety factor, here too 1.01, is ours: without it a bfloat16 matrix of rank
one came out with σ = 2,600. modula, the library of that name.
"""

from teukenjax.errors import UserError, nearest

Triple = tuple[float, float, float]  # (a, b, c)


def _divided(step: Triple, factor: float) -> Triple:
    """The step p(σ/factor)."""
    a, b, c = step
    return (a / factor, b / factor**3, c / factor**5)


def _safe(*schedule: Triple) -> tuple[Triple, ...]:
    """All but the last divided by 1.01: rounding may lift σ past the end of the interval for which
    such polynomials are optimal, and beyond it they diverge."""
    return (*(_divided(step, 1.01) for step in schedule[:-1]), schedule[-1])


_KJ = (3.4445, -4.7750, 2.0315)
# The steps of each schedule; the last one repeats for as long as there are iterations.
COEFFICIENTS: dict[str, tuple[Triple, ...]] = {
    "kj": 5 * (_KJ,),
    "you": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
    "polar_express": _safe(
        (8.28721201814563, -23.595886519098837, 17.300387312530933),
        (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
        (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
        (3.3184196573706015, -2.488488024314874, 0.51004894012372),
        (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
        (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
        (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
        (1.875, -1.25, 0.375),
    ),
    "polar_express_cushioned": (
        # The norm that divides the input is taken 1.02 times as large.
        _divided((8.156554524902461, -22.48329292557795, 15.878769915207462), 1.02),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ),
    "cans": _safe(
        (8.4703, -25.1081, 18.6293),
        (4.1828, -3.1087, 0.5806),
        (3.9619, -2.9541, 0.5630),
        (3.2866, -2.4647, 0.5074),
        (2.2737, -1.6447, 0.4162),
    ),
    "modula": (
        (3955 / 1024, -8306 / 1024, 5008 / 1024),
        (3735 / 1024, -6681 / 1024, 3463 / 1024),
        (3799 / 1024, -6499 / 1024, 3211 / 1024),
        (4019 / 1024, -6385 / 1024, 2906 / 1024),
        (2677 / 1024, -3029 / 1024, 1162 / 1024),
        (2172 / 1024, -1833 / 1024, 682 / 1024),
    ),
    "deepseek_v4": (*8 * (_KJ,), *2 * ((2.0, -1.5, 0.5),)),
    "cubic": (
        (3.3656576, -3.3420992, 0.0),
        (2.5744352, -1.4957376, 0.0),
        (2.5368962, -1.4312570, 0.0),
        (2.4418906, -1.2764040, 0.0),
        (2.2230472, -0.9630650, 0.0),
    ),
}


def steps_of(name: str, iterations: int | None = None) -> list[Triple]:
    """The (a, b, c) of each iteration; by default, of the schedule as published.

    Raises:
      UserError: for an unknown name.
    """
    if name not in COEFFICIENTS:
        raise UserError(f"coefficients='{name}': {nearest(name, COEFFICIENTS)}")
    schedule = COEFFICIENTS[name]
    count = len(schedule) if iterations is None else iterations
    return [schedule[min(step, len(schedule) - 1)] for step in range(count)]
