"""copra publish: write a checkpoint with a model card into a folder, and push it to the Hub if asked to."""

import shutil
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import huggingface_hub
import pandas

from copra.commands.experiment import workflow_of
from copra.commands.models import add_model, checkpoint_of
from copra.experiment.workflow import Workflow
from copra.models.checkpoint import checked_manifest
from copra.models.manifest import Manifest
from copra.models.pack import LOG
from copra.report.card import model_card
from copra.report.evaluations import read_evaluation
from copra.utils.errors import CopraError
from copra.utils.files import MANIFEST, METRICS, read_parquet, replacing

CARD = "README.md"


def arguments(parser: ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("folder", type=Path, help="folder to write; it must not exist")
    parser.add_argument("--license", help="identifier of the model's license, such as apache-2.0")
    parser.add_argument("--push", metavar="REPO", help="also push it to this repository of the Hub")
    parser.add_argument("--private", action="store_true", help="make the repository private")


def run(options: Namespace) -> None:
    source = checkpoint_of(options)
    if options.folder.exists():
        raise CopraError(f"{options.folder}: is there already. Name another folder, or remove it.")
    manifest = checked_manifest(source)
    known = _known(manifest, source, options)
    repo = options.push or str(options.folder)
    card = model_card(manifest, repo, license=options.license, **known)
    with replacing(options.folder) as temporary:
        temporary.mkdir()
        for name in (*manifest.files, MANIFEST):
            if name != LOG:
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / name, temporary / name)
        (temporary / CARD).write_text(str(card))
    print(f"{options.folder}: {manifest.node} with its card, {CARD}")
    if options.push:
        print(_push(options.folder, options.push, options.private))


def _known(manifest: Manifest, source: Path, options: Namespace) -> dict[str, Any]:
    """Return what the experiment of a model knows about it, as arguments of its card."""
    if not all(file.is_file() for file in options.config):
        return {}
    workflow = workflow_of(options.config)
    if (Path(workflow.folder) / "models" / manifest.node).resolve() != source.resolve():
        return {}
    files = " ".join(map(str, options.config))
    results = Path(workflow.folder)
    wanted = f"{results}/models/{manifest.node}/{MANIFEST}"
    known: dict[str, Any] = {"commands": [f"snakemake --configfile {files} --cores all {wanted}"]}
    evaluation = results / "evaluations" / manifest.node
    if (evaluation / METRICS).is_file():
        found = read_evaluation(evaluation)
        known |= {"task": workflow.node(manifest.node).task, "metrics": found.metrics}
        known["question"] = str(found.predictions.iloc[0]["question"])
    if (table := _table(workflow, manifest.node)) is not None:
        known["table"] = table
    return known


def _table(workflow: Workflow, node: str) -> pandas.DataFrame | None:
    """Return the main table of an experiment; None if it is not made, or has not the recipe of a node."""
    file = Path(workflow.folder) / "tables" / "accuracy_vs_flops.parquet"
    if not file.is_file() or node not in workflow.ends:
        return None
    return read_parquet(file)


def _push(folder: Path, repo: str, private: bool) -> str:
    """Upload a folder to a repository, which is made if need be; return its address.

    Raises:
        CopraError: the Hub cannot be reached, or refuses.
    """
    api = huggingface_hub.HfApi()
    try:
        address = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repo, commit_message="Publish with copra")
    except (OSError, ValueError) as error:  # those of huggingface_hub are kinds of these
        raise CopraError(
            f"--push {repo}: {error} The folder is whole. Log in with `hf auth login`, check the name, then: "
            f"hf upload {repo} {folder}"
        ) from error
    return str(address)
