"""The inspector's JSON, in the schema of TensorRT 8 and 10 and in that of 11."""

from __future__ import annotations

import json

import pytest

from devit_contract.errors import EngineError
from devit_engines.trt.inspection import Inspection, inspect_plan

OLD = {
    "Layers": [
        {
            "Name": "Reformatting CopyNode for Input Tensor 0",
            "LayerType": "Reformat",
            "Outputs": [{"Name": "a", "Format/Datatype": "Row major linear FP16 format"}],
        },
        {
            "Name": "{ForeignNode[MatMul_1...MatMul_2]}",
            "LayerType": "Myelin",
            "TacticName": "_gemm_mha_v2_0x1234",
            "Outputs": [{"Name": "b", "Format/Datatype": "Row major linear FP16 format"}],
        },
        {
            "Name": "LayerNormalization_3",
            "LayerType": "kgen",
            "Outputs": [{"Name": "c", "Format/Datatype": "Row major linear FP32"}],
        },
        {"Name": "shape", "LayerType": "shape_call", "Outputs": [{"Name": "d", "Format/Datatype": "Int32"}]},
    ],
    "Bindings": ["images", "features"],
}
QUANTIZED = {
    "Layers": [
        {
            "Name": "{ForeignNode[images...quantize]}",
            "Inputs": [{"Name": "images", "Format/Datatype": "Row major linear UInt8 format"}],
            "Outputs": [{"Name": "a", "Format/Datatype": "Row major linear FP16 format"}],
        },
        {
            "Name": "Conv_4",
            "Inputs": [{"Name": "q", "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}],
            "Outputs": [{"Name": "b", "Format/Datatype": "Row major linear FP16 format"}],
        },
        {
            "Name": "__myl_quantize",
            "Inputs": [{"Name": "b", "Format": "Row major linear", "Datatype": "Half"}],
            "Outputs": [{"Name": "c", "Format": "Row major linear", "Datatype": "Int8"}],
        },
    ]
}
NEW = {
    "Layers": [
        {
            "Name": "__myl_Cast_0",
            "LayerType": "cast",
            "Outputs": [{"Name": "a", "Format": "Row major linear", "Datatype": "Half"}],
        },
        {
            "Name": "_mha_1",
            "LayerType": "kgen",
            "Outputs": [{"Name": "b", "Format": "Row major linear", "Datatype": "Float"}],
        },
    ],
    "I/O Tensors": [{"Name": "images"}],
}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (OLD, Inspection(4, 1, 1, {"FP16": 2, "FP32": 1, "other": 1})),
        (NEW, Inspection(2, 1, 1, {"FP16": 1, "FP32": 1})),
        (QUANTIZED, Inspection(3, 0, 0, {"FP16": 1, "INT8": 2})),
        ({"Layers": ["LayerNormalization_3", "fused_mha_v2"]}, Inspection(2, 1, 0, {"other": 2})),
        ({"Layers": []}, Inspection(0, 0, 0, {})),
    ],
    ids=["TensorRT 10", "TensorRT 11", "INT8 in both", "names alone", "empty"],
)
def test_layers_are_counted_in_both_schemas(content: object, expected: Inspection) -> None:
    assert inspect_plan(json.dumps(content), "submodel 0") == expected


@pytest.mark.parametrize("text", ["", "no json", "{}", "[]"])
def test_an_inspector_without_layers_is_an_error(text: str) -> None:
    with pytest.raises(EngineError, match="submodel 0: expected the inspector's layers"):
        inspect_plan(text, "submodel 0")
