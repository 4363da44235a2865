"""Hints about what a run finds on this machine: GPUs and a torch for them, the Hub, room on the disk."""

import runpy
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from copra.experiment.config import Experiment
from copra.models.base_config import config_of
from copra.schema.conversion import missing_packages
from copra.utils.errors import CopraError
from copra.utils.gpu import gpus
from copra.utils.quantities import amount


def surroundings(experiment: Experiment) -> list[str]:
    """Return notes on this machine.

    Raises:
        CopraError: one line per base or data set on the Hub that this user may not read.
    """
    return [*_gpu_notes(experiment), *_access_notes(experiment), *_conversion_notes(experiment)]


def disk_note(folder: Path, needed: float) -> str | None:
    """Return a note if less than `needed` bytes are free where the results are, or will be; else None."""
    place = next(each for each in (folder, *folder.absolute().parents) if each.is_dir())
    free = shutil.disk_usage(place).free
    if free >= needed:
        return None
    return (
        f"{amount(needed)}B are needed in {folder}, and {amount(free)}B are free. Free some space, or link "
        "the folder to a larger disk."
    )


def torch_build() -> tuple[str, bool]:
    """Return torch's version, and True if it can compute on a GPU; without importing torch.

    A build for AMD's GPUs counts as well.
    """
    spec = find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    found = runpy.run_path(str(Path(spec.origin).with_name("version.py")))
    return found["__version__"], bool(found["cuda"] or found.get("hip"))


def _gpu_notes(experiment: Experiment) -> Iterator[str]:
    wanted, here = experiment.compute.gpu, len(gpus())
    version, has_gpu = torch_build()
    if (wanted or here) and not has_gpu:
        yield (
            f"torch {version} is a build for CPUs, so that no job will compute on a GPU. docs/running.md, "
            "Installing, says how to get the other build."
        )
    elif wanted > here:
        found, then = ("no GPU", "compute on the CPU") if here == 0 else (f"{here} of them", "are refused")
        yield f"compute.gpu is {wanted}, and this machine has {found}: jobs that run here {then}."


def _conversion_notes(experiment: Experiment) -> Iterator[str]:
    if experiment.conversions and (missing := missing_packages(experiment.conversions.formats)):
        yield f"conversions.formats: needs packages that are not here: pip install {' '.join(missing)}"


def _access_notes(experiment: Experiment) -> Iterator[str]:
    """Ask the Hub whether this user may read what has not been fetched, before hours are spent.

    What cannot be asked is a note.
    """
    bases, tasks = experiment.bases, experiment.tasks
    wanted = [
        (f"bases.{name}.path", base.path, "model")
        for name, base in bases.items()
        if base.path and base.folder is None and base.gguf is None and config_of(base) is None
    ]
    wanted += [(f"tasks.{name}.hub_name", task.hub, "dataset") for name, task in tasks.items() if task.hub]
    if not wanted:
        return
    # Its import takes a third of a second.
    from huggingface_hub import auth_check, is_offline_mode
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    problems: list[str] = []
    for key, name, kind in [] if is_offline_mode() else wanted:
        place = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{name}"
        try:
            auth_check(name, repo_type=kind)
        except GatedRepoError:
            problems.append(
                f"{key}: {name!r} is gated. Ask for access at {place}, then log in: hf auth login"
            )
        except RepositoryNotFoundError:
            problems.append(
                f"{key}: the Hub has no {name!r} that you may read. Check the name; if it is private, log "
                "in: hf auth login"
            )
        except Exception as error:  # networks fail in dozens of ways
            yield f"{key}: the Hub could not be asked for {name!r} ({error})."
    if problems:
        raise CopraError("\n".join(problems))
