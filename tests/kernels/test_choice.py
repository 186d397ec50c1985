"""What is chosen for a machine, what is refused, and with which words."""

import pytest

from teukenjax.errors import UserError
from teukenjax.hardware import configs
from teukenjax.kernels import choice
from teukenjax.kernels.choice import Device, choose, choose_kernels, chosen
from teukenjax.recipe import KernelsConfig, load

CPU, H100 = Device("cpu", "cpu"), Device("gpu", "NVIDIA H100 80GB HBM3")
A100 = Device("gpu", "NVIDIA A100-SXM4-40GB")


def teuken(*overrides):
    overrides = ("model.vocab_size=250680", "compute.head_chunk=2048", *overrides)
    return load(configs() / "recipes" / "teuken-7b.yaml", list(overrides))


def choices(device, *overrides, tokens=16_384):
    found = choose_kernels(teuken(*overrides), device, tokens=tokens)
    return {name: pick.implementation for name, pick in found.items()}, found


def test_a_cpu_has_the_references_and_says_why():
    names, found = choices(CPU)
    assert set(names.values()) == {"reference"}
    assert all("cannot run: the device is a cpu" in pick.reason for pick in found.values())


def test_teuken_on_an_h100_has_the_fastest_that_were_measured():
    names, found = choices(H100)
    assert names == {
        "attention": "cudnn",
        "cross_entropy": "pallas",
        "rms_norm": "pallas",
        "symmetric_matmul": "pallas",
    }
    assert "ms where measured" in found["cross_entropy"].reason
    assert set(chosen(found).model_dump().values()) == {"cudnn", "pallas"}


def test_another_gpu_has_no_kernels_of_ours():
    names, found = choices(A100)
    assert names["attention"] == "cudnn"
    assert names["rms_norm"] == "reference"
    assert "NVIDIA A100-SXM4-40GB, not one of H100" in found["rms_norm"].reason


def test_documents_that_stay_apart_are_not_given_to_cudnn():
    names, found = choices(H100, "data.packing=best_fit")
    assert names["attention"] == "pallas"
    assert "ms where measured" in found["attention"].reason
    names, found = choices(H100, "data.packing=best_fit", "model.context=512")
    assert names["attention"] == "reference"
    reason = found["attention"].reason
    assert "attention stays inside documents" in reason
    assert "not measured near this shape" in reason  # the kernel that could
    with pytest.raises(UserError, match=r"compute\.strict=true.*not measured near this shape"):
        choices(H100, "data.packing=best_fit", "model.context=512", "compute.strict=true")


def test_windows_of_documents_are_measured_apart(monkeypatch):
    row = {"kernel": "attention", "gpu": "H100", "shape": {"packed_S": 4096}}
    monkeypatch.setattr(choice, "_measured", lambda: [row | {"ms": {"pallas": 1, "reference": 9}}])
    assert choices(H100, "data.packing=best_fit")[0]["attention"] == "pallas"
    assert choices(H100)[0]["attention"] == "cudnn"


def test_nothing_is_taken_on_hope():
    """A shape that is far from every measurement."""
    names, found = choices(H100, tokens=100)
    assert names["rms_norm"] == "reference"
    assert found["rms_norm"].reason == "not measured near this shape"


@pytest.mark.parametrize(
    ("device", "overrides", "message"),
    [
        (
            CPU,
            ["attention=cudnn"],
            "attention=cudnn cannot run: the device is a cpu, not a GPU; "
            "allowed here: auto, reference",
        ),
        (CPU, ["rms_norm=pallas"], "rms_norm=pallas cannot run: the device is a cpu"),
        (A100, ["cross_entropy=pallas"], "cross_entropy=pallas cannot run: the GPU is NVIDIA A100"),
    ],
)
def test_what_is_asked_for_and_cannot_run_is_an_error(device, overrides, message):
    with pytest.raises(UserError) as caught:
        choices(device, *(f"compute.kernels.{override}" for override in overrides))
    assert str(caught.value).startswith(f"compute.kernels.{message}")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("compute.dtype=float32", "compute.dtype is float32, not bfloat16"),
        ("model.head_dim=136", "head_dim=136 is not a multiple of 8 up to 128"),
        ("model.head_dim=60", "head_dim=60 is not a multiple of 8 up to 128"),
        ("data.segments=true", "attention stays inside documents"),
    ],
)
def test_what_cudnn_does_not_take(override, message):
    with pytest.raises(UserError, match=message):
        choices(H100, override, "compute.kernels.attention=cudnn")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("compute.dtype=float32", "compute.dtype is float32, not bfloat16"),
        ("model.head_dim=64", "head_dim=64 is not 128"),
    ],
)
def test_what_our_attention_does_not_take(override, message):
    with pytest.raises(UserError, match=message):
        choices(H100, override, "compute.kernels.attention=pallas")


def test_a_width_that_the_norm_does_not_take():
    with pytest.raises(UserError, match="width=4160 is not a multiple of 1024"):
        choices(H100, "model.width=4160", "compute.kernels.rms_norm=pallas")


def test_the_fastest_row_near_the_shape_decides(monkeypatch):
    rows = [
        {"kernel": "k", "gpu": "H100", "shape": {"T": 100}, "ms": {"pallas": 1, "reference": 2}},
        {"kernel": "k", "gpu": "H100", "shape": {"T": 300}, "ms": {"pallas": 3, "reference": 2}},
    ]
    monkeypatch.setattr(choice, "_measured", lambda: rows)

    def pick(tokens):
        return choose("k", "auto", {"pallas": None}, device=H100, shape={"T": tokens})

    assert [pick(n).implementation for n in (50, 140, 200, 600)] == [
        "pallas", "pallas", "reference", "reference",
    ]  # fmt: skip
    assert pick(49) == pick(601) == ("reference", "not measured near this shape")
    assert pick(100).reason == "1 ms where measured, reference 2"


def test_each_row_of_the_table_names_a_kernel_and_its_implementations():
    allowed = {
        name: set(field.annotation.__args__) for name, field in KernelsConfig.model_fields.items()
    }
    for row in choice._measured():
        assert row.keys() == {"kernel", "gpu", "shape", "ms"}
        assert row["ms"].keys() <= allowed[row["kernel"]]
        assert row["gpu"] in choice.HOPPER


@pytest.mark.parametrize(
    ("kind", "gpu"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-40GB"),
    ],
)
def test_a_row_speaks_for_its_own_gpu(kind, gpu):
    assert Device("gpu", kind).gpu == gpu


def test_strict_makes_a_fallback_of_attention_an_error():
    with pytest.raises(UserError, match=r"compute\.strict=true.*the device is a cpu.*knowingly"):
        choices(CPU, "compute.strict=true")
    assert choices(H100, "compute.strict=true")[0]["attention"] == "cudnn"
    names, _ = choices(CPU, "compute.strict=true", "compute.kernels.attention=reference")
    assert names["attention"] == "reference"
