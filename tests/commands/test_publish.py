"""copra publish: the folder is whole and answers elsewhere, its card says what it is; the way to the Hub."""

import re
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import numpy
import pytest
import yaml
from huggingface_hub import ModelCard

from copra.cli import main
from copra.models.checkpoint import load_checkpoint, save_checkpoint
from copra.report.tables import accuracy_vs_flops
from helpers.evaluations import write_evaluation
from helpers.manifests import provenance
from helpers.thinkers import make_thinker
from helpers.tiny import TRAINING, tiny_config

NODE, CONTROL = "llama@0+cot+coconut", "llama@0+cot+pause"
QUESTION = "2 and 3 ?"


@pytest.fixture
def results(word_base, tmp_path, monkeypatch):
    """The results of an experiment with a model, its evaluation, that of its control, and their table."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    coconut = {"kind": "coconut", "max_latent_stage": 2, "training": TRAINING}
    steps = {"steps__coconut": coconut, "steps__pause": {**coconut, "thought": "embedding"}}
    config = tiny_config(**steps, recipes=[["cot", "coconut"], ["cot", "pause"]])
    Path("config.yaml").write_text(yaml.safe_dump(config))
    base = word_base()
    spec = make_thinker(base, 2)
    known = provenance(NODE, decoding=spec, lineage=[{"step": "cot"}, {"step": "coconut"}])
    results = tmp_path / "results" / "config"
    save_checkpoint(results / "models" / NODE, base.model, base.tokenizer, known, {"training.jsonl": "log"})
    folders = {}
    for node, share in ((NODE, 0.75), (CONTROL, 0.5)):
        right = numpy.arange(40) < 40 * share
        folders[node] = write_evaluation(results / "evaluations", node, right, split="test")
    recipes = [
        {
            "recipe": f"llama+cot+{method}",
            "base": "llama",
            "pruning": "dense",
            "method": method,
            "order": f"cot > {method}",
            "kind": method,
            "chance": None,
            "nodes": [node],
        }
        for method, node in (("coconut", NODE), ("pause", CONTROL))
    ]
    table = accuracy_vs_flops(folders, None, {"recipes": recipes})
    (results / "tables").mkdir()
    table.to_parquet(results / "tables" / "accuracy_vs_flops.parquet")
    return results


def publish(*words, status=0):
    assert main(["publish", *map(str, words)]) == status


def test_the_folder_answers_elsewhere_as_its_card_says(results, tmp_path):
    publish("llama+cot+coconut", "published", "--license", "mit")
    names = {file.name for file in Path("published").iterdir()}
    assert {"README.md", "copra.json", "model.safetensors", "thinking.py", "tokenizer.json"} <= names
    assert "training.jsonl" not in names
    card = ModelCard.load("published/README.md")
    card.validate = None  # which asks the Hub
    assert (card.data.license, card.data.library_name) == ("mit", "transformers")
    (found,) = card.data.eval_results
    assert (found.metric_value, found.dataset_name) == (0.75, "sums")
    text = card.text
    assert "**coconut (this recipe)** | 75.0 [" in text
    assert "| pause | 50.0 [" in text
    assert f"snakemake --configfile config.yaml --cores all results/config/models/{NODE}/copra.json" in text
    assert "thinks in 2 latents" in text
    # The code of the card runs where copra is not installed, and says what copra says.
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    code = code.replace("how many?", QUESTION).replace("256", "9")
    hidden = "import sys; sys.modules['copra'] = None\n"
    done = subprocess.run([sys.executable, "-c", hidden + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    import copra

    assert done.stdout.strip() == copra.load("published").answer(QUESTION, 9).text.strip()


def test_a_folder_of_a_checkpoint_is_published_with_what_it_says_itself(results, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    publish(results / "models" / NODE, "published")
    text = Path("published/README.md").read_text()
    assert "## Accuracy" not in text
    assert "a model from scratch, then cot > coconut" in text
    assert load_checkpoint(Path("published")).manifest.node == NODE


def test_local_paths_stay_at_home(results, word_base, tmp_path):
    base = word_base()
    folder = tmp_path / "secret"
    save_checkpoint(
        folder, base.model, base.tokenizer, provenance("m@0+cot", base={"path": "/home/me/model"})
    )
    publish(folder, "published")
    text = Path("published/README.md").read_text()
    assert "/home/me" not in text
    assert "a local model" in text
    assert "The license of the base model applies." in text


def test_it_is_pushed_where_that_is_asked_for(results, monkeypatch, capsys):
    calls = []

    class Api:
        def create_repo(self, repo, **options):
            calls.append(("create", repo, options))
            return f"https://example.org/{repo}"

        def upload_folder(self, **options):
            calls.append(("upload", options))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    publish(NODE, "published", "--push", "me/model", "--private")
    assert calls[0] == ("create", "me/model", {"private": True, "exist_ok": True})
    assert calls[1][1]["repo_id"] == "me/model"
    assert "https://example.org/me/model" in capsys.readouterr().out
    assert 'from_pretrained("me/model", trust_remote_code=True)' in Path("published/README.md").read_text()


def test_without_the_hub_the_folder_is_whole(results, monkeypatch, capsys):
    def refuse(*_, **__):
        raise OSError("no route to host.")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    publish(NODE, "published", "--push", "me/model", status=1)
    message = capsys.readouterr().err
    assert "--push me/model: no route to host." in message
    assert "hf upload me/model published" in message
    assert Path("published/README.md").is_file()
    publish(NODE, "published", status=1)
    assert "published: is there already" in capsys.readouterr().err
