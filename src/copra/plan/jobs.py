"""The jobs of an experiment and their dependencies, as in the rules of the workflow."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from copra.experiment.workflow import Workflow
from copra.schema.metrics import split_of
from copra.tasks.task import SPLITS, Split

MODELS = ("base", "train", "prune", "prompt", "quantize")
"""The rules that make a model of the recipe tree, by the node's kind."""

READ_BY: dict[str, tuple[Split, ...]] = {
    "base": ("train", "valid"),
    "train": ("train", "valid"),
    "prune": ("train",),
    "prompt": ("train",),
    "quantize": ("valid",),
}
"""The splits that each of these rules reads."""

PRODUCTS = {
    "data": "data/{}.json",
    **dict.fromkeys(MODELS, "models/{}/copra.json"),
    "score": "scores/{}.json",
    "choose": "plans/{}.json",
    "curve": "curves/{}.parquet",
    "evaluate": "evaluations/{}/metrics.json",
    "sweep": "evaluations/{}/latents.parquet",
    "lens": "evaluations/{}/lens.parquet",
    "latency": "latency.parquet",
    "table": "tables/{}.parquet",
    "export": "tables/{}.csv",
    "figure": "figures/{}.svg",
}
"""The output of each verb's rules, relative to the experiment's folder; verbs in workflow order."""

FOLDERS = ("data", *MODELS)
"""Verbs whose results are the whole folder that holds the output."""

MORE_PRODUCTS = {
    "train": ["tracking/{}"],
    "score": ["scores/{}.parquet"],
    "evaluate": ["evaluations/{}/predictions.parquet"],
    "export": ["tables/{}.md", "tables/{}.tex"],
    "figure": ["figures/{}.png"],
}
"""Further outputs of these verbs, relative to the experiment's folder."""


@dataclass(frozen=True)
class Job:
    """A job: its verb, its name as in the paths of its log and benchmark, and the keys of jobs it needs."""

    verb: str
    name: str
    needs: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return f"{self.verb}/{self.name}" if self.name else self.verb

    def output(self, results: Path) -> Path:
        return results / PRODUCTS[self.verb].format(self.name)

    def results(self, results: Path) -> list[Path]:
        """Return all files and folders that only this job writes, including its log and its benchmark."""
        product = self.output(results)
        more = [results / path.format(self.name) for path in MORE_PRODUCTS.get(self.verb, [])]
        first = product.parent if self.verb in FOLDERS else product
        return [first, *more, self.log(results), self.benchmark(results)]

    def log(self, results: Path) -> Path:
        return results / "logs" / f"{self.key}.log"

    def benchmark(self, results: Path) -> Path:
        return results / "benchmarks" / f"{self.key}.tsv"


def jobs_of(workflow: Workflow) -> dict[str, Job]:
    """Return all jobs of a whole run by key, each after the jobs that it needs.

    They are the jobs of `rule all`, without `all` itself. The needs of tables and figures are listed only as
    far as they affect the longest chain.
    """
    jobs: dict[str, Job] = {}
    for job in _listed(workflow):
        jobs.setdefault(job.key, job)
    return dict(_in_order(jobs))


def _listed(workflow: Workflow) -> Iterator[Job]:
    tree = workflow.tree
    for node in tree.nodes.values():
        yield from (Job("data", f"{node.task}/{split}") for split in SPLITS)
        yield _model(workflow, node.name)
        if node.kind == "prune":
            scores = [_key_of_score(workflow, path) for path in workflow.scores(node.name)]
            yield Job("choose", node.name, (_made(workflow, node.parent), *scores))

    def questions(node: str) -> str:
        return _data(workflow, node, workflow.experiment.evaluation.split)

    for path in workflow.scored:
        name = _name_of_score(workflow, path)
        node = name.split("/")[0]
        yield Job(
            "score", name, (_made(workflow, node), _data(workflow, node, split_of(name.split("/")[-1])))
        )
    for name, nodes in workflow.curved.items():
        for node in nodes:
            scores = [_key_of_score(workflow, path) for path in workflow.curve_scores(name, node)]
            yield Job("curve", f"{name}/{node}", (_made(workflow, node), questions(node), *scores))
    for verb, nodes in _answering(workflow).items():
        for node in nodes:
            yield Job(verb, node, (_made(workflow, node), questions(node)))
    if workflow.timed:
        timed = [_made(workflow, node) for node in workflow.timed]
        yield Job("latency", "", (*timed, f"data/{workflow.experiment.task}/test"))
    yield from _pages(workflow)


def _model(workflow: Workflow, name: str) -> Job:
    """Return the job that makes a node."""
    node = workflow.node(name)
    before = [other for other in (node.parent, node.teacher, node.pretrained) if other]
    needs = [_data(workflow, name, split) for split in READ_BY[node.kind]]
    needs += [_made(workflow, other) for other in before]
    return Job(node.kind, name, (*needs, *([f"choose/{name}"] if node.kind == "prune" else [])))


def _answering(workflow: Workflow) -> dict[str, list[str]]:
    """Return the nodes that answer questions, by verb."""
    evaluated = [*workflow.ends, *workflow.before_and_after, *workflow.staged]
    return {"evaluate": evaluated, "sweep": workflow.swept, "lens": workflow.seen_through}


def _pages(workflow: Workflow) -> Iterator[Job]:
    """Yield the jobs of tables and figures."""
    evaluated = {
        "accuracy_vs_flops": [f"evaluate/{node}" for node in workflow.ends],
        "before_fine_tuning": [f"evaluate/{node}" for node in workflow.before_and_after],
        "accuracy_vs_latents": [f"sweep/{node}" for node in workflow.swept],
        "latent_lens": [f"lens/{node}" for node in workflow.seen_through],
        "pruning_curves": [f"curve/{name}" for name in workflow.measured],
        "drop_orders": [_key_of_score(workflow, path) for path in workflow.ordered_scores],
    }
    evaluated["accuracy_vs_flops"] += ["latency"] if workflow.timed else []
    tables = dict.fromkeys(workflow.within("tables", path).split(".")[0] for path in workflow.tables())
    for table in tables:
        yield Job("table", table, tuple(evaluated[table]))
        yield Job("export", table, (f"table/{table}",))
    drawn_from = {
        "training_curves": [_made(workflow, node) for node in workflow.trainings],
        "curriculum": [f"evaluate/{node}" for node in workflow.staged],
        "after_fine_tuning": ["table/accuracy_vs_flops"],
    }
    for path in workflow.figures():
        name = workflow.within("figures", path).rsplit(".", 1)[0]
        kind, _, of = name.partition("/")
        if kind in ("layer_distances", "head_importance"):
            needs = [f"score/{of}/passes"]
        elif kind == "latent_lens":
            needs = [f"lens/{of}"]
        elif kind == "drop_orders":
            needs = evaluated["drop_orders"]
        else:
            needs = drawn_from.get(kind, [f"table/{kind}"])
        yield Job("figure", name, tuple(needs))


def _made(workflow: Workflow, name: str) -> str:
    return f"{workflow.node(name).kind}/{name}"


def _data(workflow: Workflow, name: str, split: Split) -> str:
    return f"data/{workflow.node(name).task}/{split}"


def _name_of_score(workflow: Workflow, path: str) -> str:
    return workflow.within("scores", path).removesuffix(".json")


def _key_of_score(workflow: Workflow, path: str) -> str:
    return f"score/{_name_of_score(workflow, path)}"


def _in_order(jobs: Mapping[str, Job]) -> Iterator[tuple[str, Job]]:
    """Yield the jobs by key, each after the jobs that it needs."""
    done: set[str] = set()

    def visit(keys: Iterable[str]) -> Iterator[tuple[str, Job]]:
        for key in keys:
            if key not in done:
                done.add(key)
                yield from visit(jobs[key].needs)
                yield key, jobs[key]

    yield from visit(jobs)
