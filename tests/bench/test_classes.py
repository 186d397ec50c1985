"""Instructions find their class by scope and by what they do."""

import pytest

from teukenjax.bench.classes import by_kernel, classify

PROGRAM = """HloModule jit_train_step

%add_body (a: bf16[8], b: bf16[8]) -> bf16[8] {
  %a = bf16[8]{0} parameter(0)
  %b = bf16[8]{0} parameter(1)
  ROOT %sum = bf16[8]{0} add(%a, %b)
}

%write_body (x: bf16[4,8], y: bf16[1,8], i: s32[]) -> bf16[4,8] {
  %x = bf16[4,8]{1,0} parameter(0)
  %y = bf16[1,8]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  ROOT %written = bf16[4,8]{1,0} dynamic-update-slice(%x, %y, %next, %i)
}

ENTRY %main (p: bf16[8]) -> bf16[8] {
  %p = bf16[8]{0} parameter(0)
  %residual = bf16[8]{0} fusion(%p, %p), kind=kLoop, calls=%add_body, metadata={op_name="jit(s)/jvp()/while/body/mlp/add"}
  %normed = bf16[8]{0} fusion(%p, %p), kind=kLoop, calls=%add_body, metadata={op_name="jit(s)/jvp()/while/body/mlp/norm/mul"}
  %kept = bf16[4,8]{1,0} fusion(%p, %p, %p), kind=kLoop, calls=%write_body, metadata={op_name="jit(s)/jvp()/while/body/dynamic_update_slice"}
  %loss = bf16[8]{0} fusion(%p, %p), kind=kLoop, calls=%add_body, metadata={op_name="jit(s)/jvp(head)/while/body/sub"}
  %heads = bf16[8]{0} fusion(%p, %p), kind=kLoop, calls=%add_body, metadata={op_name="jit(s)/attention/heads/mul"}
  %matmul = (bf16[8]{0}, s8[16]{0}) custom-call(%p, %p), custom_call_target="__cublas$lt$matmul", metadata={op_name="jit(s)/jvp()/while/body/mlp/bsd,df->bsf/dot_general"}
  %flash = (bf16[8]{0}, u8[0]{0}) custom-call(%p), custom_call_target="__cudnn$fmhaSoftmax", metadata={op_name="jit(s)/attention/kernel/dot_product_attention_fwd"}
  %rms = bf16[8]{0} custom-call(%p), custom_call_target="mosaic_gpu_v2", metadata={op_name="jit(s)/jvp(mlp)/jit(forward)/rms_norm_forward/mpmd_map"}
  %whole = bf16[64]{0} all-gather-start(%p), replica_groups={{0,1}}, metadata={op_name="jit(s)/mlp/bsd,df->bsf/dot_general"}
  %alone = bf16[8]{0} all-gather(%p), replica_groups={{0}}, metadata={op_name="jit(s)/mlp/bsd,df->bsf/dot_general"}
  %newton = bf16[8]{0} custom-call(%p), custom_call_target="__cublas$gemm", metadata={op_name="jit(s)/optimizer/scion/dot_general"}
  ROOT %out = bf16[8]{0} copy(%p)
}
"""  # noqa: E501
EXPECTED = {
    "residual": "elementwise",
    "normed": "norms",
    "kept": "copies",
    "loss": "head",
    "heads": "elementwise",
    "matmul": "products",
    "flash": "attention",
    "rms": "norms",
    "whole": "communication",
    "alone": "copies",  # of one device with itself
    "newton": "optimizer",
    "out": "copies",
}


@pytest.mark.parametrize("instruction", EXPECTED)
def test_class_of(instruction):
    assert classify(PROGRAM)[instruction] == EXPECTED[instruction]


def test_class_of_kernels():
    kinds = {
        "ncclDevKernel_AllGather": "communication",
        "cudnn_fmha_bwd": "attention",
        "nvjet_x": "products",
        "MemcpyD2D": "copies",
        "rms_norm_backward": "norms",
        "symmetric_product": "optimizer",
        "wrapped_add": "other",
    }
    assert {name: by_kernel(name) for name in kinds} == kinds
