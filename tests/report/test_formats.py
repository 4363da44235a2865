import re
import shutil
import subprocess

import pandas
import pytest

from copra.report.formats import for_people, three_digits, write_formats


@pytest.fixture
def frame():
    return pandas.DataFrame(
        {
            "recipe": ["llama+cot", "llama+cot+drop-1+coconut"],
            "seed": ["all", "all"],
            "reference": [True, False],
            "base": ["my_llama", "my_llama"],
            "pruning": ["dense", "drop-1"],
            "method": ["cot", "co&co 50%"],
            "order": ["cot", "cot > drop-1 > coconut"],
            "accuracy": [0.95238, 1 / 3],
            "low": [0.931, 0.3],
            "high": [0.96812, 0.36],
            "deviation": [float("nan")] * 2,
            "difference": [float("nan"), -0.0119],
            "checkpoints_low": [float("nan"), -0.025],
            "checkpoints_high": [float("nan"), 0.001],
            "checkpoints_p": [float("nan"), 0.00004],
            "recipe_low": [float("nan"), -0.0334],
            "recipe_high": [float("nan"), 0.01],
            "recipe_p": [float("nan"), 0.21],
            "recipe_p_holm": [float("nan"), 0.42],
            "flops": [4.2e9, 1.234e9],
            "flops_ratio": [1.0, 0.2938],
            "parameters": [1235814400, 990000000],
            "kv_cache_bytes_per_token": [32768, 16384],
            "seconds_batch_1": [0.5, 0.0123],
            "pareto": [True, False],
        }
    )


def test_what_people_read(frame):
    view = for_people(frame)
    assert list(view) == [
        "Base",
        "Pruning",
        "Method",
        "Order of steps",
        "Accuracy (%)",
        "Difference, these checkpoints (points)",
        "p, these checkpoints",
        "Difference, this recipe (points)",
        "p, this recipe",
        "Holm's p, this recipe",
        "FLOPs per answer (G)",
        "FLOPs ratio",
        "Parameters (G)",
        "KV cache per token (kB)",
        "Latency, batch 1 (ms)",
        "Pareto front",
    ]
    assert list(view["Accuracy (%)"]) == ["95.2 [93.1, 96.8]", "33.3 [30.0, 36.0]"]
    assert list(view["Difference, these checkpoints (points)"]) == ["-", "-1.2 [-2.5, +0.1]"]
    assert list(view["p, these checkpoints"]) == ["-", "<0.001"]
    assert list(view["Difference, this recipe (points)"]) == ["-", "-1.2 [-3.3, +1.0]"]
    assert list(view["p, this recipe"]) == ["-", "0.210"]
    assert list(view["Holm's p, this recipe"]) == ["-", "0.420"]
    assert list(view["FLOPs per answer (G)"]) == ["4.20", "1.23"]
    assert list(view["FLOPs ratio"]) == ["1.000", "0.294"]
    assert list(view["KV cache per token (kB)"]) == ["32.8", "16.4"]
    assert list(view["Latency, batch 1 (ms)"]) == ["500", "12.3"]
    assert list(view["Pareto front"]) == ["yes", ""]


def test_seeds_are_shown_where_there_are_several(frame):
    view = for_people(frame.assign(seed=["all", "3"], deviation=[0.0123, float("nan")], pareto=True))
    assert list(view["Seed"]) == ["all", "3"]
    assert list(view["s.d. over seeds (points)"]) == ["1.2", "-"]
    assert list(view["Pareto front"]) == ["yes", ""]


def test_bytes_are_shown_where_weights_are_quantized(frame):
    parameters = frame["parameters"]
    alike = for_people(frame.assign(checkpoint_bytes=4 * parameters))
    assert not [heading for heading in alike if heading.startswith("Checkpoint")]
    view = for_people(frame.assign(checkpoint_bytes=[4 * parameters[0], 1.3 * parameters[1]]))
    assert list(view["Checkpoint (GB)"]) == ["4.94", "1.29"]


def test_what_is_left_is_shown_where_it_differs(frame):
    view = for_people(frame.assign(layers=[3, 2], kv_groups=[12.0, 6.0], heads=24, neurons=[576, 500]))
    assert list(view["Layers"]) == ["3", "2"]
    assert list(view["KV groups"]) == ["12", "6"]
    assert list(view["Neurons"]) == ["576", "500"]
    assert "Query heads" not in view


def test_what_people_read_of_a_pruning_curve():
    rows = pandas.DataFrame(
        {
            "curve": "layers",
            "recipe": "llama+cot",
            "node": ["llama@0+cot", "llama@1+cot"],
            "seed": ["0", "1"],
            "unit": "layers",
            "metric": ["cosine", "random"],
            "objective": ["cot", None],
            "random_seed": [float("nan"), 3.0],
            "removed": [0, 2],
            "left": [16, 14],
            "accuracy": [0.5, float("nan")],
            "low": [0.25, float("nan")],
            "high": [0.75, float("nan")],
            "loss": [0.123456, 12.5],
            "loss_on": "cot",
            "kv_cache_ratio": [1, 0.875],
            "cut": ["nothing", "3, 14"],
        }
    )
    view = for_people(rows)
    assert list(view) == [
        "Recipe",
        "Seed",
        "Curve",
        "Unit",
        "Metric",
        "Objective",
        "Order",
        "Removed",
        "Left",
        "Accuracy (%)",
        "Loss",
        "KV cache ratio",
        "Removed units",
    ]
    assert view.iloc[0].tolist()[5:] == [
        "cot",
        "-",
        "0",
        "16",
        "50.0 [25.0, 75.0]",
        "0.123",
        "1.000",
        "nothing",
    ]
    assert view.iloc[1].tolist()[5:] == ["", "3", "2", "14", "-", "12.500", "0.875", "3, 14"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.1234, "0.123"), (1.234, "1.23"), (9.996, "10.0"), (99.96, "100"), (123456, "123,456")],
)
def test_three_digits(value, text):
    assert three_digits(value) == text


def test_csv_keeps_full_precision(frame, tmp_path):
    write_formats(frame, tmp_path / "t.csv", tmp_path / "t.md", tmp_path / "t.tex")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.csv", "t.md", "t.tex"]
    read = pandas.read_csv(tmp_path / "t.csv")
    assert list(read) == list(frame)
    assert list(read["accuracy"]) == list(frame["accuracy"])


def test_markdown_is_one_table(frame, tmp_path):
    write_formats(frame, tmp_path / "t.csv", tmp_path / "t.md", tmp_path / "t.tex")
    lines = (tmp_path / "t.md").read_text().splitlines()
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {17}
    assert "95.2 [93.1, 96.8]" in lines[2]


def test_a_note_follows_the_table_in_markdown_alone(frame, tmp_path):
    write_formats(frame, tmp_path / "t.csv", tmp_path / "t.md", tmp_path / "t.tex", "One seed: no claim")
    assert (tmp_path / "t.md").read_text().splitlines()[-2:] == ["", "One seed: no claim."]
    assert len(pandas.read_csv(tmp_path / "t.csv")) == len(frame)
    assert "no claim" not in (tmp_path / "t.tex").read_text()


def test_latex_is_escaped(frame, tmp_path):
    write_formats(frame, tmp_path / "t.csv", tmp_path / "t.md", tmp_path / "t.tex")
    text = (tmp_path / "t.tex").read_text()
    for part in (r"\toprule", r"my\_llama", r"co\&co 50\%", "cot $>$ drop-1", "$<$0.001", r"Accuracy (\%)"):
        assert part in text
    assert "$-$1.2 [$-$2.5, +0.1]" in text
    body = text.split("\n", 1)[1]
    assert not re.search(r"(?<!\\)[%_#]", body)
    assert {line.count(" & ") for line in body.splitlines() if line.endswith(r"\\")} == {15}


# Steps and tokens as models write them, in a table of what latents would say.
ODD = {
    "question": "He pays $5.\nHow much is left?",
    "says": r"<|end|> 9%, <s> 8%, ␣x 7%, \n 6%, \| 5%, 中 4%, ü 3%, « 2%, � 1%",
    "steps": "<<3*4=12>> | <<12*2=24>>",
}


def test_a_cell_of_markdown_stays_one_cell_and_is_shown_as_it_is(tmp_path):
    write_formats(pandas.DataFrame([ODD]), tmp_path / "t.csv", tmp_path / "t.md", tmp_path / "t.tex")
    (line,) = (tmp_path / "t.md").read_text().splitlines()[2:]
    cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    assert cells == [
        r"He pays \$5. How much is left?",
        r"<\|end\|> 9%, \<s> 8%, ␣x 7%, \n 6%, \\\| 5%, 中 4%, ü 3%, « 2%, � 1%",
        r"<<3\*4=12>> \| <<12\*2=24>>",
    ]


def test_latex_has_the_codes_of_characters_that_its_fonts_lack(tmp_path):
    write_formats(pandas.DataFrame([ODD]), tmp_path / "t.csv", tmp_path / "t.md", tmp_path / "t.tex")
    text = (tmp_path / "t.tex").read_text()
    assert r"\textvisiblespace{}x 7\%" in text
    assert r"U+4E2D 4\%, ü 3\%, U+00AB 2\%, U+FFFD 1\%" in text


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs LaTeX")
@pytest.mark.parametrize("odd", [False, True])
def test_latex_compiles(frame, tmp_path, odd):
    frame = pandas.DataFrame([ODD]) if odd else frame
    write_formats(frame, tmp_path / "t.csv", tmp_path / "t.md", tmp_path / "t.tex")
    document = r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{t}\end{document}"
    (tmp_path / "main.tex").write_text(document)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 0
