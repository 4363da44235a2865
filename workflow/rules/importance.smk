# Importance: how much each layer, head and key/value group matters to a model.


rule score:
    input:
        manifest="<results>/models/{node}/copra.json",
        weights=weights("<results>/models/{node}"),
        rows=lambda wildcards: copra.data(wildcards.node, split_of(wildcards.scoring)),
        tables=lambda wildcards: tables(copra.data(wildcards.node, split_of(wildcards.scoring))),
        text=lambda wildcards: here(copra.text_source(wildcards.objective)),
    output:
        summary="<results>/scores/{node}/{objective}/{scoring}.json",
        scores="<results>/scores/{node}/{objective}/{scoring}.parquet",
    log:
        "<logs>/score/{node}/{objective}/{scoring}.log",
    benchmark:
        "<benchmarks>/score/{node}/{objective}/{scoring}.tsv"
    group:
        submissions.group("score/{node}/{objective}/{scoring}")
    threads: copra.experiment.compute.threads
    resources:
        **SHARED,
        gpu=min(1, copra.experiment.compute.gpu),
        jobs_per_gpu=copra.experiment.compute.jobs_per_gpu,
        mem_mb=growing(copra.experiment.compute.memory_mb),
        runtime=submissions.minutes("score/{node}/{objective}/{scoring}"),
    params:
        settings=lambda wildcards: copra.score_settings(**wildcards),
        # A function of the output makes nothing run again.
        files=lambda wildcards, output: copra.place_of(copra.text_source(wildcards.objective)),
    message:
        "Scoring {wildcards.node} on objective {wildcards.objective}: {wildcards.scoring}"
    shell:
        "copra score --settings {params.settings:q} --files {params.files:q} --threads {threads}"
        " --jobs-per-gpu {resources.jobs_per_gpu} --model {input.manifest}"
        " --data {input.rows} --state {resources.folder}/state --output {output.scores} > {log} 2>&1"


# Before any fine-tuning: accuracy and loss as units go, each pruning made in memory.
rule curve:
    input:
        manifest="<results>/models/{node}/copra.json",
        weights=weights("<results>/models/{node}"),
        questions=lambda wildcards: copra.data(wildcards.node, copra.experiment.evaluation.split),
        scores=lambda wildcards: copra.curve_scores(**wildcards),
        tables=lambda wildcards: tables(
            copra.data(wildcards.node, copra.experiment.evaluation.split) + copra.curve_scores(**wildcards)
        ),
    output:
        curve="<results>/curves/{curve}/{node}.parquet",
    log:
        "<logs>/curve/{curve}/{node}.log",
    benchmark:
        "<benchmarks>/curve/{curve}/{node}.tsv"
    group:
        submissions.group("curve/{curve}/{node}")
    threads: copra.experiment.compute.threads
    resources:
        **SHARED,
        gpu=min(1, copra.experiment.compute.gpu),
        jobs_per_gpu=copra.experiment.compute.jobs_per_gpu,
        mem_mb=growing(copra.experiment.compute.memory_mb),
        runtime=submissions.minutes("curve/{curve}/{node}"),
    params:
        settings=lambda wildcards: copra.curve_settings(**wildcards),
        scores=lambda wildcards, input: above(input.scores, 2),
    message:
        "Measuring curve {wildcards.curve} of {wildcards.node}"
    shell:
        "copra curve --settings {params.settings:q} --threads {threads}"
        " --jobs-per-gpu {resources.jobs_per_gpu} --model {input.manifest}"
        " --data {input.questions} --scores {params.scores} --state {resources.folder}/state"
        " --output {output.curve} > {log} 2>&1"
