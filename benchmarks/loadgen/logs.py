"""Reads what LoadGen writes: the figures of its detail log, and the answers of its accuracy log."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from devit_contract.arrays import Float32Array
from devit_contract.errors import InputError

_MARK = ":::MLLOG "
_RATES = ("result_samples_per_second", "result_completed_samples_per_sec", "result_qps_with_loadgen_overhead")


@dataclass(frozen=True)
class Performance:
    """LoadGen's own figures."""

    verdict: str
    """``VALID``, or why it says INVALID."""
    p50_us: float
    p90_us: float
    p99_us: float
    """Of queries: in MultiStream, eight samples are one."""
    queries: int
    samples: int
    rate: float
    """Samples a second."""


class _Logged(msgspec.Struct):
    """One sample of the accuracy log."""

    qsl_idx: int
    data: str
    """Hexadecimal, as the system under test answered."""


def read_performance(folder: Path) -> Performance:
    """Read the figures of one run.

    Raises:
        InputError: LoadGen wrote none, as when it was stopped.
    """
    path = folder / "mlperf_log_detail.txt"
    lines = [line.removeprefix(_MARK) for line in path.read_text().splitlines() if line.startswith(_MARK)]
    found = {entry["key"]: entry["value"] for entry in map(json.loads, lines)}
    if "result_validity" not in found:
        raise InputError(f"{path}: expected LoadGen's result, found none: run it again")
    queries, each = found["result_query_count"], found["generated_samples_per_query"]
    kind = "per_query_latency" if "result_50.00_percentile_per_query_latency_ns" in found else "latency"
    p50, p90, p99 = (found[f"result_{percent}.00_percentile_{kind}_ns"] / 1000 for percent in (50, 90, 99))
    rates = [found[key] for key in _RATES if key in found]
    rate = rates[0] if rates else each * 1e6 / (found["result_mean_query_latency_ns"] / 1000)
    return Performance(_verdict(found), p50, p90, p99, queries, queries * each, rate)


def read_answers(folder: Path, samples: int, numbers: int) -> Float32Array:
    """Read the logits ``(samples, numbers)`` of an accuracy run, by the samples' places.

    Raises:
        InputError: A sample is missing, there twice, or no such logits.
    """
    path = folder / "mlperf_log_accuracy.json"
    try:
        logged = msgspec.json.decode(path.read_bytes(), type=list[_Logged])
    except (OSError, msgspec.DecodeError) as err:
        raise InputError(f"{path}: expected LoadGen's accuracy log, found: {err}: run it again") from err
    if sorted(entry.qsl_idx for entry in logged) != list(range(samples)):
        distinct = len({entry.qsl_idx for entry in logged})
        raise InputError(
            f"{path}: expected each of {samples} samples once, found {len(logged)} of {distinct}: run it again"
        )
    answers = np.full((samples, numbers), np.nan, np.float32)
    for entry in logged:
        row = np.frombuffer(bytes.fromhex(entry.data), "<f4")
        if row.shape != (numbers,):
            raise InputError(
                f"{path}: sample {entry.qsl_idx}: expected {numbers} logits, found {row.size}: run it again"
            )
        answers[entry.qsl_idx] = row
    return answers


def _verdict(found: dict[str, object]) -> str:
    if found["result_validity"] == "VALID":
        return "VALID"
    met = {"result_min_duration_met": "duration", "result_min_queries_met": "queries"}
    short = [name for key, name in met.items() if found.get(key) is False]
    if found.get("result_perf_constraints_met") is False:
        short.append("latency bound")
    return f"INVALID ({', '.join(short) or 'too few queries for early stopping'})"
