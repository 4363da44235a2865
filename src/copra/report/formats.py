"""Writing a table for machines (CSV, full precision) and for people (Markdown and LaTeX, rounded)."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from copra.report.sizes import SMALLER, bytes_a_parameter
from copra.schema.pruning import MISS
from copra.schema.units import UNIT_NAMES
from copra.utils.files import replacing
from copra.utils.quantities import SCALES

if TYPE_CHECKING:
    import pandas

Cells = tuple[list[str], str]
"""The cells of a column as text, and their unit."""
Writer = Callable[["pandas.DataFrame", str], Cells]

# Characters that Markdown reads as the end of a cell, emphasis, code, mathematics or a tag.
MARKDOWN = re.compile(r"[|*`$]|<(?=[a-zA-Z/!?])|\\(?=[^\w\s])")
# Characters that LaTeX's default fonts do not have.
NO_LATEX = re.compile(r"[^\x00-\xff]|[«»ÐÞðþ]")
LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": "$<$",
        ">": "$>$",
        "|": "$|$",
        "\u2423": r"\textvisiblespace{}",
        **{character: "\\" + character for character in "&%$#_{}"},
    }
)
ONE_SEED = "one seed"
"""The cell text if a difference between recipes cannot be distinguished from one between trainings."""


def write_formats(frame: "pandas.DataFrame", csv: Path, md: Path, tex: Path, note: str = "") -> None:
    """Write a table three times, each file complete or absent.

    The CSV holds every column at full precision. Markdown and LaTeX hold the columns of `for_people`: percent
    with the interval, FLOPs with the unit in the column's head, without columns that have no value. The LaTeX
    is one `tabular` and needs the package booktabs; characters that its default fonts lack are written as
    their code, as in U+4E2D. A note follows the table in Markdown.
    """
    view = for_people(frame)
    align = ["left" if _is_text(column) else "right" for column in view]
    escaped = view.map(lambda text: MARKDOWN.sub(r"\\\g<0>", text))
    markdown = escaped.to_markdown(index=False, disable_numparse=True, colalign=align if len(view) else None)
    with replacing(csv) as temporary:
        frame.to_csv(temporary, index=False)
    with replacing(md) as temporary:
        temporary.write_text(markdown + "\n" + (f"\n{note}.\n" if note else ""), encoding="utf-8")
    with replacing(tex) as temporary:
        temporary.write_text(_latex(view, align), encoding="utf-8")


def for_people(frame: "pandas.DataFrame") -> "pandas.DataFrame":
    """Return the columns for people, as rounded text under a heading that names the unit."""
    import pandas

    view = {}
    for column, (heading, write) in COLUMNS.items():
        if column not in frame or _is_empty(frame, column) or _is_idle(frame, column):
            continue
        cells, unit = write(frame, column)
        view[f"{heading} ({unit})" if unit else heading] = cells
    return pandas.DataFrame(view, dtype=str)


def _is_empty(frame: "pandas.DataFrame", column: str) -> bool:
    unanswered = column == "t_low" or (column == "recipe_low" and _unanswered(frame).any())
    return bool(frame[column].isna().all()) and not unanswered


def _is_idle(frame: "pandas.DataFrame", column: str) -> bool:
    if column == "recipe":  # base and order of steps hold the same in a readable form
        return "order" in frame
    if column == "checkpoint_bytes":  # without quantized weights, proportional to the parameters
        widths = bytes_a_parameter(frame)
        return widths.min() >= SMALLER * widths.max()
    if column.startswith("cached_prompt_"):  # without worked examples, equal to the other columns
        return frame[column].equals(frame[column.replace("cached_prompt_", "", 1)])
    if column.endswith("length_limit"):
        return not frame[column].any()
    if column in ("primary", "seen_in_training"):
        return not frame[column].any()
    if column == "share_above_90":
        return frame["seed"].nunique() == 1
    if column.endswith("_p_holm"):  # nothing to correct for
        return frame[column].equals(frame[column.removesuffix("_holm")])
    if column == "budget_missed":
        return frame[column].abs().max() <= MISS
    return (
        column in ("seed", "precision", "answer_rule", "max_new_tokens", *UNIT_NAMES)
        and frame[column].nunique() == 1
    )


def _text(frame: "pandas.DataFrame", column: str) -> Cells:
    # A line break would end the cell.
    return ["" if v is None or v != v else " ".join(str(v).split()) for v in frame[column]], ""


def _flag(frame: "pandas.DataFrame", column: str) -> Cells:
    # A seed's row repeats its recipe's flag, which is written once.
    shown = frame[column] & (frame["seed"] == "all") if "seed" in frame else frame[column]
    return ["yes" if value else "" for value in shown], ""


def _percent(frame: "pandas.DataFrame", column: str) -> Cells:
    return [_or_dash(value, lambda v: f"{100 * v:.1f}") for value in frame[column]], "%"


def _signed_percent(frame: "pandas.DataFrame", column: str) -> Cells:
    return [_or_dash(value, lambda v: f"{100 * v:+.1f}") for value in frame[column]], "%"


def _points(frame: "pandas.DataFrame", column: str) -> Cells:
    return _percent(frame, column)[0], "points"


def _signed_points(frame: "pandas.DataFrame", column: str) -> Cells:
    return _signed_percent(frame, column)[0], "points"


def _interval(frame: "pandas.DataFrame", column: str) -> Cells:
    """Write an interval over seeds; a whole row with one seed has none."""
    rows = frame[["seed", column, column.replace("_low", "_high")]].itertuples(index=False)
    return [
        f"[{100 * low:+.1f}, {100 * high:+.1f}]" if low == low else ONE_SEED if seed == "all" else "-"
        for seed, low, high in rows
    ], "points"


def _accuracy(frame: "pandas.DataFrame", column: str) -> Cells:
    rows = frame[[column, "low", "high"]].itertuples(index=False)
    return ["-" if v != v else with_interval(v, low, high) for v, low, high in rows], "%"


def with_interval(accuracy: float, low: float, high: float) -> str:
    """Return an accuracy with its interval in percent, as in "93.5 [92.0, 94.7]"."""
    return f"{100 * accuracy:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _difference(question: str) -> Writer:
    """Return a writer of differences, with the interval for a question of `copra.report.comparisons`."""

    def write(frame: "pandas.DataFrame", column: str) -> Cells:
        rows = zip(_differences(frame), frame[column], frame[f"{question}_high"], strict=True)
        cells = [
            "-" if low != low else f"{100 * v:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
            for v, low, high in rows
        ]
        if question == "recipe":
            cells = [ONE_SEED if no else cell for no, cell in zip(_unanswered(frame), cells, strict=True)]
        return cells, "points"

    return write


def _unanswered(frame: "pandas.DataFrame") -> "pandas.Series":
    """Return a mask of the rows of whole recipes that have too few trainings for an interval."""
    return (frame["seed"] == "all") & _differences(frame).notna() & frame["recipe_low"].isna()


def _differences(frame: "pandas.DataFrame") -> "pandas.Series":
    """Return the differences from the reference recipe, or from the same model with its own latents."""
    return frame["minus_own" if "minus_own" in frame else "difference"]


def _p_value(frame: "pandas.DataFrame", column: str) -> Cells:
    return [_or_dash(value, p_value) for value in frame[column]], ""


def p_value(value: float) -> str:
    """Return a p-value with three decimals."""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _three_decimals(frame: "pandas.DataFrame", column: str) -> Cells:
    return [_or_dash(value, lambda v: f"{v:.3f}") for value in frame[column]], ""


def _whole(frame: "pandas.DataFrame", column: str) -> Cells:
    return [_or_dash(value, lambda v: f"{v:.0f}") for value in frame[column]], ""


def _count(frame: "pandas.DataFrame", column: str) -> Cells:
    digits = 0 if frame[column].dtype.kind == "i" else 1
    return [_or_dash(value, lambda v: f"{v:.{digits}f}") for value in frame[column]], ""


def _scaled(unit: str = "") -> Writer:
    def write(frame: "pandas.DataFrame", column: str) -> Cells:
        size, prefix = scale(frame[column])
        return [_or_dash(value, lambda v: three_digits(v / size)) for value in frame[column]], prefix + unit

    return write


def _seconds(frame: "pandas.DataFrame", column: str) -> Cells:
    short = frame[column].max() < 1
    return [
        _or_dash(v, lambda v: three_digits(v * 1000 if short else v)) for v in frame[column]
    ], "ms" if short else "s"


def scale(values: "pandas.Series") -> tuple[float, str]:
    """Return the power of 1000 that a column is divided by and its SI prefix, chosen by the median."""
    middle = float(values.median())
    return next(((size, prefix) for size, prefix in SCALES if middle >= size), (1.0, ""))


def three_digits(value: float) -> str:
    """Return a number with three significant digits; from 100 on whole, grouped by thousands."""
    if value == 0:
        return "0"
    if abs(value) >= 99.95:
        return f"{value:,.0f}"
    return (
        f"{value:.1f}" if abs(value) >= 9.995 else f"{value:.2f}" if abs(value) >= 0.9995 else f"{value:.3f}"
    )


def _or_dash(value: float, write: Callable[[float], str]) -> str:
    return "-" if value != value else write(value)


# Column of the table: heading for people, and the function that writes its cells.
COLUMNS: dict[str, tuple[str, Writer]] = {
    "recipe": ("Recipe", _text),
    "base": ("Base", _text),
    "pruning": ("Pruning", _text),
    "method": ("Method", _text),
    "task": ("Task", _text),
    "order": ("Order of steps", _text),
    "format": ("Format", _text),
    "contrast": ("Contrast", _text),
    "plus": ("Plus", _text),
    "minus": ("Minus", _text),
    "seed": ("Seed", _text),
    "source": ("Latents from", _text),
    "curve": ("Curve", _text),
    "unit": ("Unit", _text),
    "metric": ("Metric", _text),
    "objective": ("Objective", _text),
    "random_seed": ("Order", _whole),
    "removed": ("Removed", _whole),
    "left": ("Left", _whole),
    "drops": ("Layers as they go", _text),
    "question": ("Question", _text),
    "latent": ("Latent", _text),
    "says": ("Says", _text),
    "steps": ("Gold steps", _text),
    "gold": ("Gold answer", _text),
    "generated": ("Generated", _text),
    "parent_accuracy": ("Unpruned", _percent),
    "accuracy": ("Accuracy", _accuracy),
    "deviation": ("s.d. over seeds", _points),
    "share_above_90": ("Seeds above 90% accuracy", _percent),
    "start": ("Started from", _text),
    "start_accuracy": ("Accuracy at the start", _percent),
    "healing_steps": ("Healing steps", _whole),
    "same_answers": ("Same answers", _percent),
    "changed": ("Changed answers", _percent),
    "other_gold": ("Answers of the other question", _percent),
    "primary": ("Primary", _flag),
    "checkpoints_low": ("Difference, these checkpoints", _difference("checkpoints")),
    "checkpoints_p": ("p, these checkpoints", _p_value),
    "checkpoints_p_holm": ("Holm's p, these checkpoints", _p_value),
    "recipe_low": ("Difference, this recipe", _difference("recipe")),
    "recipe_p": ("p, this recipe", _p_value),
    "recipe_p_holm": ("Holm's p, this recipe", _p_value),
    "value": ("Value", _signed_points),
    "t_low": ("t interval over seeds", _interval),
    "t_p": ("p", _p_value),
    "t_p_holm": ("Holm's p", _p_value),
    "bootstrap_low": ("Bootstrap over seeds and questions", _interval),
    "seeds": ("Seeds", _whole),
    "loss": ("Loss", _three_decimals),
    **{kind: (name[:1].upper() + name[1:], _whole) for kind, name in UNIT_NAMES.items()},
    "budget_missed": ("Removed against the budget", _signed_percent),
    "flops": ("FLOPs per answer", _scaled()),
    "cached_prompt_flops": ("FLOPs per answer, prompt cached", _scaled()),
    "flops_ratio": ("FLOPs ratio", _three_decimals),
    "flops_per_token": ("FLOPs per generated token", _scaled()),
    "flops_per_token_ratio": ("FLOPs per token ratio", _three_decimals),
    "attention_flops": ("Attention FLOPs", _scaled()),
    "attention_flops_ratio": ("Attention FLOPs ratio", _three_decimals),
    "generated_tokens": ("Tokens", _count),
    "parent_length_limit": ("Unpruned, cut off", _percent),
    "length_limit": ("Cut off at the limit", _percent),
    "seen_in_training": ("Trained on, left out", _whole),
    "latents": ("Latents", _count),
    "depth": ("Depth", _count),
    "parameters": ("Parameters", _scaled()),
    "parameters_ratio": ("Parameters ratio", _three_decimals),
    "checkpoint_bytes": ("Checkpoint", _scaled("B")),
    "bytes": ("File", _scaled("B")),
    "kv_cache_bytes_per_token": ("KV cache per token", _scaled("B")),
    "kv_cache_bytes_per_token_ratio": ("KV cache ratio", _three_decimals),
    "kv_cache_ratio": ("KV cache ratio", _three_decimals),
    "training_flops": ("Training FLOPs", _scaled()),
    "seconds_batch_1": ("Latency, batch 1", _seconds),
    "seconds_batched": ("Latency, batched", _seconds),
    "cached_prompt_seconds_batch_1": ("Latency, batch 1, prompt cached", _seconds),
    "cached_prompt_seconds_batched": ("Latency, batched, prompt cached", _seconds),
    "seconds_per_answer": ("Time per answer", _seconds),
    "device": ("Device", _text),
    "precision": ("Precision", _text),
    "answer_rule": ("Answer rule", _text),
    "max_new_tokens": ("Longest answer", _whole),
    "trained": ("As trained", _flag),
    "pareto": ("Pareto front", _flag),
    "cut": ("Removed units", _text),
}
TEXTS = tuple(heading for heading, write in COLUMNS.values() if write in (_text, _flag))


def _is_text(heading: str) -> bool:
    return heading in TEXTS


def _latex(view: "pandas.DataFrame", align: list[str]) -> str:
    escaped = view.map(_latex_text).rename(columns=_latex_text)
    body = escaped.to_latex(index=False, escape=False, column_format="".join(side[0] for side in align))
    return "% Needs \\usepackage{booktabs}.\n" + body


def _latex_text(text: str) -> str:
    # A hyphen before a number is a minus sign.
    text = re.sub(r"(?<![\w.-])-(?=\d)", "$-$", text.translate(LATEX))
    return NO_LATEX.sub(lambda found: f"U+{ord(found[0]):04X}", text)
