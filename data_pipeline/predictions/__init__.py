"""Exact figures of any predictions in Parquet files, larger than memory, over Ray."""

from data_pipeline.predictions.evaluate import evaluate_predictions
from data_pipeline.predictions.figures_file import figures_path, write_figures
from data_pipeline.predictions.files import ColumnNames, find_predictions

__all__ = ["ColumnNames", "evaluate_predictions", "figures_path", "find_predictions", "write_figures"]
