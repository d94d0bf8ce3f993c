"""The bundle that a search ends in: the chosen graph in place of the old one, and a passport that says how it came."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from engines.quantize.costs import QUANTISED
from engines.verify import TOLERANCES_MM, accuracy, fidelity, predictions_from_onnx, true_errors
from metro_edge.bundle import Bundle, onnx_file, write_bundle
from metro_edge.files import output_folder, staging_folder
from training.evaluate import PROTOCOL

MOVED = "moved_mm and losses: from this bundle's fp32 graph, same images, not aligned; int8 is run as its CPU twin"
NO_TRUTH = "no true meshes of this body are known for these pictures, so no accuracy is measured or stated"


def written_as(choice: Mapping[str, str]) -> str:
    """Return the precision under which a bundle holds a mix: that of its least exact layers."""
    kinds = set(choice.values())
    return next((kind for kind in (*QUANTISED, "fp16") if kind in kinds), "fp32")


def write_result(
    bundle: Bundle,
    output: Path,
    graph: onnx.ModelProto,
    precision: str,
    images: NDArray[np.float32],
    truth: NDArray[np.float32] | None,
    data: str,
    quantization: Mapping[str, Any],
) -> Bundle:
    """Write a bundle with a new graph and figures of all its precisions, all measured anew on the same samples.

    Args:
        bundle: what it is made of.
        output: folder or .zip; may be where `bundle` is.
        graph: new.
        precision: that the graph is the bundle's of.
        images, truth: samples to measure on: (N, 3, S, S), and true meshes (N, V, 3) in metres or None.
        data: what they are.
        quantization: for the passport, under that key and the precision's; its `calibration` says how ranges were
            found.

    Raises UserError for a place that cannot be written; nothing is changed then.
    """
    passport = {k: v for k, v in bundle.passport.items() if k not in ("files", "schema_version")}
    parent = output_folder(output.resolve().parent)
    with staging_folder(parent) as staging:
        files = {}
        for kept in bundle.precisions:
            if kept != precision:
                files[kept] = staging / onnx_file(kept)
                files[kept].write_bytes(bundle.onnx_bytes(kept))
        files[precision] = staging / onnx_file(precision)
        onnx.save(graph, files[precision])
        section, figures = _figures(bundle, files, images, truth)
        passport.pop("accuracy", None)
        passport.pop("verification", None)
        passport[section] = {"data": data, "samples": len(images), **figures}
        if precision == "int8":  # what the passport says of INT8's ranges was of the older graph
            passport["calibration"] = {k: v for k, v in quantization["calibration"].items() if k != "compared"}
        passport["quantization"] = {**_kept(bundle, precision), precision: dict(quantization)}
        return write_bundle(output, bundle.spec, bundle.template, files, passport)


def _kept(bundle: Bundle, precision: str) -> dict[str, Any]:
    """Return what the passport says of the searches for the other precisions that stay in the bundle."""
    older = bundle.passport.get("quantization")
    if not isinstance(older, dict):
        return {}
    return {kind: about for kind, about in older.items() if kind in bundle.precisions and kind != precision}


def _figures(
    bundle: Bundle, files: Mapping[str, Path], images: NDArray[np.float32], truth: NDArray[np.float32] | None
) -> tuple[str, dict[str, Any]]:
    """Return the passport's section on accuracy, or on distances alone, and its name."""
    spec, template = bundle.spec, bundle.template
    if "vertices" not in spec.outputs:
        truth = None
    reference = predictions_from_onnx(files["fp32"], "fp32", images, spec)
    rows = {}
    for precision, path in files.items():
        predicted = reference if precision == "fp32" else predictions_from_onnx(path, precision, images, spec)
        tolerance = TOLERANCES_MM.get(precision, TOLERANCES_MM["int8"])
        found = (
            fidelity(predicted, reference, spec, tolerance)
            if truth is None
            else accuracy(predicted, reference, truth, template, spec, tolerance)
        ).to_dict()
        del found["tolerance_mm"]  # the budget takes its place
        rows[precision] = found
    if truth is None:
        return "verification", {"protocol": f"{NO_TRUTH}; {MOVED}", "precisions": rows}
    errors = true_errors(reference, reference, truth, template, spec)
    head = {f"{name}_mm": round(value, 4) for name, value in errors.items()}
    return "accuracy", {"protocol": f"{PROTOCOL}; {MOVED}", "fp32": head, "precisions": rows}
