"""The JSON Schemas in docs/ are those of the code, and a real report keeps to its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from devit_profiling.figures.analysis import Report
from devit_profiling.figures.compare import Comparison, compare
from devit_profiling.report.report import write_report
from schema import SCHEMAS, schema_bytes

DOCS = Path(__file__).parents[3] / "docs"


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema_in_the_docs_is_that_of_the_code(name: str) -> None:
    """After a change of the structs, ``python docs/schema.py docs`` writes it again."""
    assert (DOCS / name).read_bytes() == schema_bytes(SCHEMAS[name])


def test_real_report_keeps_to_its_schema(real_run: Path) -> None:
    write_report(real_run)
    content = (real_run / "report.json").read_bytes()
    report = msgspec.json.decode(content, type=Report, strict=True)
    assert json.loads(msgspec.json.encode(report)) == json.loads(content)
    check(json.loads(content), "report.schema.json")


def test_comparison_keeps_to_its_schema(real_run: Path) -> None:
    write_report(real_run)
    comparison = compare(real_run, real_run)
    assert isinstance(comparison, Comparison)
    check(json.loads(msgspec.json.encode(comparison)), "comparison.schema.json")


def check(value: object, name: str) -> None:
    """Hold a value against a schema by the few keywords that these use; any other one fails here."""
    schema = json.loads((DOCS / name).read_bytes())
    assert set(schema) == {"$schema", "$ref", "$defs"}
    _check(value, {"$ref": schema["$ref"]}, schema["$defs"], name)


_KINDS = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None)}
_KNOWN = {"$ref", "title", "description", "type", "properties", "required", "items", "anyOf", "default"}
_KNOWN |= {"additionalProperties", "enum", "prefixItems", "minItems", "maxItems"}


def _check(value: Any, schema: dict[str, Any], defs: dict[str, Any], where: str) -> None:  # noqa: ANN401 - JSON
    assert set(schema) <= _KNOWN, where
    if "enum" in schema:
        assert value in schema["enum"], where
    elif "$ref" in schema:
        _check(value, defs[schema["$ref"].rpartition("/")[2]], defs, where)
    elif "anyOf" in schema:
        kinds = [kind for kind in schema["anyOf"] if (kind.get("type") == "null") == (value is None)]
        assert len(kinds) == 1, where
        _check(value, kinds[0], defs, where)
    elif schema["type"] == "object":
        assert isinstance(value, dict), where
        properties, others = schema.get("properties", {}), schema.get("additionalProperties")
        assert set(schema.get("required", ())) <= set(value), where
        for key, item in value.items():
            assert key in properties or others, f"{where}.{key}"
            _check(item, properties.get(key, others), defs, f"{where}.{key}")
    elif schema["type"] == "array":
        assert isinstance(value, list), where
        for place, item in enumerate(value):
            _check(item, schema["items"], defs, f"{where}[{place}]")
    else:
        assert isinstance(value, _KINDS[schema["type"]]), where
        assert not isinstance(value, bool) or schema["type"] == "boolean", where
