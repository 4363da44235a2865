"""Comparison of the provenance records in results with the config, as a trigger for Snakemake.

Each result holds, in its own file, the settings that its rule passed and checksums of its small input files
(`copra.commands.common.made_by`). Snakemake records settings too, in .snakemake, but not for results that
were copied, fetched or archived without that folder, and not for a result that replaced another one.
"""

import html
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pyarrow import parquet
from snakemake.persistence import NO_PARAMS_CHANGE, ParamsChange, PersistenceBase

from copra.utils.files import MADE_BY, MANIFEST, canonical_json, file_sha256

SVG_HEAD = 100_000
"""Number of characters at the start of an SVG file that contain its metadata."""


def read_record(path: Path) -> dict[str, Any] | None:
    """Return the provenance record in a file; None if it is of another kind, has none or is unreadable."""
    try:
        if path.suffix == ".json":
            value = json.loads(path.read_bytes())
        elif path.suffix == ".parquet":
            value = json.loads((parquet.read_schema(path).metadata or {}).get(b"copra", b"{}"))
            if MADE_BY not in value:  # The record of a split is in the JSON file beside it.
                return read_record(path.with_suffix(".json"))
        elif path.suffix == ".svg":
            with open(path, encoding="utf-8") as file:
                found = re.search(r"<dc:description>(.*?)</dc:description>", file.read(SVG_HEAD), re.DOTALL)
            value = json.loads(html.unescape(found[1])) if found else {}
        elif path.suffix == ".html":
            found = re.search(r'<script type="application/json" id="copra">(.*?)</script>', path.read_text())
            value = json.loads(found[1]) if found else {}
        else:
            return None
    except (OSError, ValueError):  # pyarrow's errors are ValueErrors
        return None
    return value.get(MADE_BY) if isinstance(value, dict) else None


def disagreement(settings: str, outputs: Iterable[str], inputs: Iterable[str]) -> str | None:
    """Return the recorded provenance of a job's outputs if it differs from these settings (JSON) and inputs.

    None if they agree, or if there is no record. A manifest without a record counts as different. The code
    fingerprint is compared only if `settings` contain one.
    """
    wanted = json.loads(settings)
    there = [output for output in map(Path, outputs) if output.is_file()]
    if not there:
        return None
    present = {file_sha256(file) for file in map(Path, inputs) if file.is_file() and not _has_proxy(file)}
    for output in there:
        made_by = read_record(output)
        if made_by is None:
            if output.name == MANIFEST:
                return "no record in its manifest"
            continue
        made_with = made_by["settings"]
        if "code" not in wanted:
            made_with = {key: value for key, value in made_with.items() if key != "code"}
        if canonical_json(made_with) != canonical_json(wanted):
            return canonical_json(made_with)
        if not present.issuperset(made_by["files"]):
            return "other input files of the same names"
    return None


def _has_proxy(file: Path) -> bool:
    """True for large files, for which records hold the checksum of the small file beside them.

    Reading gigabytes of weights per job would make planning slow.
    """
    return file.suffix in (".safetensors", ".tar") or (
        file.suffix == ".parquet" and file.with_suffix(".json").is_file()
    )


def compare_records() -> None:
    """Patch Snakemake to rerun jobs whose results record other settings or inputs.

    Snakemake handles this as a change of params, and prints it as the reason.
    """
    has_metadata, params_changed = PersistenceBase.has_metadata, PersistenceBase.params_changed

    def difference(job: Any) -> ParamsChange:
        settings = job.params.get("settings")
        if settings is None or not job.output:
            return NO_PARAMS_CHANGE
        # Large files are ancient(): the small files beside them trigger reruns.
        inputs = [file for file in job.input if not file.is_ancient]
        made_otherwise = disagreement(settings, job.output, inputs)
        if made_otherwise is None:
            return NO_PARAMS_CHANGE
        return ParamsChange({made_otherwise}, {settings}, set(job.output))

    def has_any(self: PersistenceBase, job: Any) -> bool:
        # Snakemake compares params only if this is true.
        return has_metadata(self, job) or bool(difference(job))

    def changed(self: PersistenceBase, job: Any, file: str | None = None) -> ParamsChange:
        return params_changed(self, job, file) or (difference(job) if file is None else NO_PARAMS_CHANGE)

    PersistenceBase.has_metadata, PersistenceBase.params_changed = has_any, changed
