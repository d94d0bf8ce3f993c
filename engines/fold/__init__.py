"""Exact folding of a trained network for inference: `fold(model, template)`."""

from engines.fold.network import InferenceNetwork
from engines.fold.run import FOLDS, LIMIT, Fold, FoldReport, FoldResult, fold

__all__ = ["FOLDS", "LIMIT", "Fold", "FoldReport", "FoldResult", "InferenceNetwork", "fold"]
