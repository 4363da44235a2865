# Pruning: from scores to a plan, from a plan to a smaller checkpoint with its proof.


rule select:
    input:
        parent=lambda wildcards: f"{copra.parent(wildcards.node)}/copra.json",
        scores=lambda wildcards: copra.scores(wildcards.node),
        tables=lambda wildcards: tables(copra.scores(wildcards.node)),
    output:
        plan="<results>/plans/{node}.json",
    log:
        "<logs>/select/{node}.log",
    benchmark:
        "<benchmarks>/select/{node}.tsv"
    localrule: True
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        settings=lambda wildcards: copra.select_settings(wildcards.node),
    message:
        "Selecting the cut of {wildcards.node}"
    shell:
        "copra select --settings {params.settings:q} --parent {input.parent}"
        " --scores {input.tables} --output {output.plan} > {log} 2>&1"


rule prune:
    input:
        parent=lambda wildcards: f"{copra.parent(wildcards.node)}/copra.json",
        weights=lambda wildcards: weights(copra.parent(wildcards.node)),
        plan="<results>/plans/{node}.json",
        train=lambda wildcards: copra.data(wildcards.node, "train"),
        tables=lambda wildcards: tables(copra.data(wildcards.node, "train")),
    output:
        manifest="<results>/models/{node}/copra.json",
        weights=multiext("<results>/models/{node}/", *WEIGHTS),
    log:
        "<logs>/prune/{node}.log",
    benchmark:
        "<benchmarks>/prune/{node}.tsv"
    wildcard_constraints:
        node=copra.pruned,
    group:
        submissions.group("prune/{node}")
    threads: copra.experiment.compute.threads
    resources:
        **SHARED,
        gpu=min(1, copra.experiment.compute.gpu),
        jobs_per_gpu=copra.experiment.compute.jobs_per_gpu,
        mem_mb=growing(copra.experiment.compute.memory_mb),
        runtime=submissions.minutes("prune/{node}", 60),
    params:
        settings=lambda wildcards: copra.prune_settings(wildcards.node),
    message:
        "Pruning to {wildcards.node}"
    shell:
        "copra prune --settings {params.settings:q} --threads {threads}"
        " --jobs-per-gpu {resources.jobs_per_gpu} --parent {input.parent}"
        " --plan {input.plan} --data {input.train} --output {output.manifest} > {log} 2>&1"
