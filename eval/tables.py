"""A probe's scores as tables, for the terminal and for the report: column names, and rows of cells."""

from typing import Final

from eval.linear import Evaluation
from eval.metrics import Metric, Scores
from eval.probe import ProbeResult

Table = tuple[list[str], list[list[object]]]

SCORE_NAMES: Final = {
    "balanced_accuracy": "balanced accuracy",
    "macro_auroc": "macro AUROC",
    "macro_f1": "macro F1",
    "quadratic_kappa": "quadratic kappa",
    "brier": "Brier score",
    "calibration_error": "calibration error",
}
SHORT_NAMES: Final = {
    "pre_diabetes_lifestyle_controlled": "pre-diabetes, lifestyle",
    "oral_medication_and_or_non_insulin_injectable_medication_controlled": "oral or non-insulin",
    "insulin_dependent": "insulin",
}


def short_name(group: str) -> str:
    """A study group in a word or two."""
    return SHORT_NAMES.get(group, group)


def evaluations(result: ProbeResult) -> dict[str, Evaluation | None]:
    """What is shown of a probe, by name."""
    baselines = {f"{name} baseline": baseline.cv for name, baseline in result.baselines.items()}
    return {"encoder, cross-validated": result.encoder.cv, "encoder, test split": result.encoder.test, **baselines}


def score_table(result: ProbeResult) -> Table:
    """Every metric with its 95% interval, for the encoder and for the baselines."""
    shown = evaluations(result)
    rows: list[list[object]] = [
        [line, *(_cell(one, name) for one in shown.values())] for name, line in SCORE_NAMES.items()
    ]
    rows.append(["chance", *(f"{result.chance:.3f}" for _ in shown)])
    rows.append(["p value", *(p_value(one) for one in shown.values())])
    rows.append(["participants", *(str(one.scores.num_participants) if one else "0" for one in shown.values())])
    return ["", *shown], rows


def _cell(evaluation: Evaluation | None, name: str) -> str:
    if evaluation is None:
        return "too few participants"
    metric: Metric = getattr(evaluation.scores, name)
    interval = evaluation.intervals.get(name)
    return f"{metric} {interval}" if interval and metric.value is not None else str(metric)


def p_value(evaluation: Evaluation | None) -> str:
    """How often shuffled labels score as well; empty where that is undefined."""
    return f"{evaluation.null.p_value:.2g}" if evaluation and evaluation.null else ""


def class_table(scores: Scores) -> Table:
    """Recall, F1 and AUROC of each class."""
    sizes = [sum(row) for row in scores.confusion]
    columns = zip(scores.classes, sizes, scores.recall, scores.f1, scores.auroc, strict=True)
    rows: list[list[object]] = [
        [short_name(name), size, str(recall), str(f1), str(auroc)] for name, size, recall, f1, auroc in columns
    ]
    return ["class", "participants", "recall", "F1", "AUROC"], rows


def confusion_table(scores: Scores) -> Table:
    """Counts of participants, true class by predicted class."""
    names = [short_name(name) for name in scores.classes]
    rows: list[list[object]] = [[name, *row] for name, row in zip(names, scores.confusion, strict=True)]
    return ["", *names], rows
