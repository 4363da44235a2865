"""EleutherAI's evaluation harness gets the answers that copra gives."""

import json
import os
import subprocess
import sys

import pytest
from thinking_models import SPECS, made

import copra
from helpers.copied_code import ROOT
from helpers.plugins import plugin_folders

TASK = """\
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}\\n"
doc_to_target: "{{answer}}"
generation_kwargs: {do_sample: false, max_gen_toks: 8, until: []}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
RUN = "import sys; sys.modules['copra'] = None; from lm_eval.__main__ import cli_evaluate; cli_evaluate()"


@pytest.mark.slow
def test_the_harness_gets_the_same_answers(make_model, word_tokenizer, rows, tmp_path, request):
    """Latents included, in batches of prompts that are padded."""
    modules = plugin_folders(
        ["lm_eval"], ROOT / "requirements-lm-eval.lock", request.config.cache.mkdir("lm-eval")
    )
    made(make_model, word_tokenizer, tmp_path / "model", "llama", SPECS["hidden"])
    questions = [row.question for row in rows]
    answers = [reply.text for reply in copra.load(tmp_path / "model").generate(questions, 8)]
    assert len(set(answers)) > 8
    # Every second target is another answer.
    targets = [text if number % 2 else f"not {text}" for number, text in enumerate(answers)]
    asked = [{"question": each, "answer": target} for each, target in zip(questions, targets, strict=True)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, asked)))
    (tmp_path / "sums.yaml").write_text(TASK)
    command = ["run", "--model", "hf", "--tasks", "sums", "--include_path", ".", "--device", "cpu"]
    command += ["--model_args", "pretrained=model,trust_remote_code=True,dtype=float32", "--batch_size", "5"]
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(modules),
    }
    done = subprocess.run(
        [sys.executable, "-c", RUN, *command, "--output_path", "told", "--log_samples"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (samples,) = (tmp_path / "told").rglob("samples_sums_*.jsonl")
    told = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda each: each["doc_id"])
    assert [each["resps"][0][0] for each in told] == answers
    (summary,) = (tmp_path / "told").rglob("results_*.json")
    found = json.loads(summary.read_text())["results"]["sums"]["exact_match,none"]
    assert found == pytest.approx(0.5)
