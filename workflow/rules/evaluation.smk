# Evaluation: every question answered, and time measured. A killed job goes on with the answers in
# <results>/state when it runs again.


# On the node's own task, or on another one: then questions that the model was trained on are left out.
rule evaluate:
    input:
        manifest="<results>/models/{node}/copra.json",
        weights=weights("<results>/models/{node}"),
        questions=lambda wildcards: copra.data(evaluation(wildcards), copra.experiment.evaluation.split),
        trained_on=lambda wildcards: copra.trained_on(evaluation(wildcards)),
        tables=lambda wildcards: tables(
            copra.data(evaluation(wildcards), copra.experiment.evaluation.split)
            + copra.trained_on(evaluation(wildcards))
        ),
    output:
        metrics="<results>/evaluations/{other_task}{node}/metrics.json",
        predictions="<results>/evaluations/{other_task}{node}/predictions.parquet",
    log:
        "<logs>/evaluate/{other_task}{node}.log",
    benchmark:
        "<benchmarks>/evaluate/{other_task}{node}.tsv"
    group:
        submissions.group("evaluate/{other_task}{node}")
    threads: copra.experiment.compute.threads * copra.experiment.compute.workers
    resources:
        **SHARED,
        gpu=copra.experiment.compute.gpu,
        jobs_per_gpu=copra.experiment.compute.jobs_per_gpu,
        mem_mb=growing(copra.experiment.compute.memory_mb),
        runtime=submissions.minutes("evaluate/{other_task}{node}"),
        # No params, since they must not make anything run again.
        processes=copra.experiment.compute.workers,
    params:
        settings=lambda wildcards: copra.evaluate_settings(evaluation(wildcards)),
    message:
        "Evaluating {wildcards.other_task}{wildcards.node}"
    shell:
        "copra evaluate --settings {params.settings:q} --threads {threads}"
        " --jobs-per-gpu {resources.jobs_per_gpu} --processes {resources.processes}"
        " --model {input.manifest} --data {input.questions} --state {resources.folder}/state --output {output.metrics}"
        " --trained-on {input.trained_on} > {log} 2>&1"


rule sweep_latents:
    input:
        manifest="<results>/models/{node}/copra.json",
        weights=weights("<results>/models/{node}"),
        questions=lambda wildcards: copra.data(wildcards.node, copra.experiment.evaluation.split),
        tables=lambda wildcards: tables(copra.data(wildcards.node, copra.experiment.evaluation.split)),
    output:
        latents="<results>/evaluations/{node}/latents.parquet",
    log:
        "<logs>/sweep_latents/{node}.log",
    benchmark:
        "<benchmarks>/sweep_latents/{node}.tsv"
    group:
        submissions.group("sweep_latents/{node}")
    threads: copra.experiment.compute.threads * copra.experiment.compute.workers
    resources:
        **SHARED,
        gpu=copra.experiment.compute.gpu,
        jobs_per_gpu=copra.experiment.compute.jobs_per_gpu,
        mem_mb=growing(copra.experiment.compute.memory_mb),
        runtime=submissions.minutes("sweep_latents/{node}"),
        # No params, since they must not make anything run again.
        processes=copra.experiment.compute.workers,
    params:
        settings=lambda wildcards: copra.sweep_latents_settings(wildcards.node),
    message:
        "Evaluating {wildcards.node} with other numbers of latents"
    shell:
        "copra sweep-latents --settings {params.settings:q} --threads {threads}"
        " --jobs-per-gpu {resources.jobs_per_gpu} --processes {resources.processes}"
        " --model {input.manifest} --data {input.questions} --state {resources.folder}/state --output {output.latents}"
        " > {log} 2>&1"


rule swap_latents:
    input:
        manifest="<results>/models/{node}/copra.json",
        weights=weights("<results>/models/{node}"),
        questions=lambda wildcards: copra.data(wildcards.node, copra.experiment.evaluation.split),
        tables=lambda wildcards: tables(copra.data(wildcards.node, copra.experiment.evaluation.split)),
    output:
        latents="<results>/evaluations/{node}/latents_from.parquet",
    log:
        "<logs>/swap_latents/{node}.log",
    benchmark:
        "<benchmarks>/swap_latents/{node}.tsv"
    group:
        submissions.group("swap_latents/{node}")
    threads: copra.experiment.compute.threads * copra.experiment.compute.workers
    resources:
        **SHARED,
        gpu=copra.experiment.compute.gpu,
        jobs_per_gpu=copra.experiment.compute.jobs_per_gpu,
        mem_mb=growing(copra.experiment.compute.memory_mb),
        runtime=submissions.minutes("swap_latents/{node}"),
        # No params, since they must not make anything run again.
        processes=copra.experiment.compute.workers,
    params:
        settings=lambda wildcards: copra.swap_latents_settings(wildcards.node),
    message:
        "Evaluating {wildcards.node} with latents of other sources"
    shell:
        "copra swap-latents --settings {params.settings:q} --threads {threads}"
        " --jobs-per-gpu {resources.jobs_per_gpu} --processes {resources.processes}"
        " --model {input.manifest} --data {input.questions} --state {resources.folder}/state --output {output.latents}"
        " > {log} 2>&1"


rule logit_lens:
    input:
        manifest="<results>/models/{node}/copra.json",
        weights=weights("<results>/models/{node}"),
        questions=lambda wildcards: copra.data(wildcards.node, copra.experiment.evaluation.split),
        tables=lambda wildcards: tables(copra.data(wildcards.node, copra.experiment.evaluation.split)),
    output:
        lens="<results>/evaluations/{node}/lens.parquet",
    log:
        "<logs>/logit_lens/{node}.log",
    benchmark:
        "<benchmarks>/logit_lens/{node}.tsv"
    group:
        submissions.group("logit_lens/{node}")
    threads: copra.experiment.compute.threads
    resources:
        **SHARED,
        gpu=min(1, copra.experiment.compute.gpu),
        jobs_per_gpu=copra.experiment.compute.jobs_per_gpu,
        mem_mb=growing(copra.experiment.compute.memory_mb),
        runtime=submissions.minutes("logit_lens/{node}"),
    params:
        settings=lambda wildcards: copra.logit_lens_settings(wildcards.node),
    message:
        "Looking into the latents of {wildcards.node}"
    shell:
        "copra logit-lens --settings {params.settings:q} --threads {threads}"
        " --jobs-per-gpu {resources.jobs_per_gpu} --model {input.manifest}"
        " --data {input.questions} --output {output.lens} > {log} 2>&1"


# All models in one job that has the machine to itself: times mean something only beside each other.
rule latency:
    input:
        manifests=expand("<results>/models/{node}/copra.json", node=copra.timed),
        weights=[path for node in copra.timed for path in weights(f"<results>/models/{node}")],
        questions=f"<results>/data/{copra.experiment.task}/test.json",
        tables=tables([f"<results>/data/{copra.experiment.task}/test.json"]),
    output:
        times="<results>/latency.parquet",
    log:
        "<logs>/latency.log",
    benchmark:
        "<benchmarks>/latency.tsv"
    threads: workflow.cores
    resources:
        gpu=min(1, copra.experiment.compute.gpu),
        mem_mb=growing(copra.experiment.compute.memory_mb),
        runtime=submissions.minutes("latency"),
    params:
        settings=lambda wildcards: copra.latency_settings(),
    message:
        "Measuring seconds per answer"
    shell:
        "copra latency --settings {params.settings:q} --models {input.manifests}"
        " --data {input.questions} --output {output.times} > {log} 2>&1"


# A job has the machine to itself: its times mean something only beside each other.
rule convert:
    input:
        manifest="<results>/models/{node}/copra.json",
        weights=weights("<results>/models/{node}"),
        questions=lambda wildcards: copra.data(wildcards.node, copra.experiment.evaluation.split),
        tables=lambda wildcards: tables(copra.data(wildcards.node, copra.experiment.evaluation.split)),
    output:
        measured="<results>/conversions/{node}/measured.parquet",
        files=directory("<results>/conversions/{node}/files"),
    log:
        "<logs>/convert/{node}.log",
    benchmark:
        "<benchmarks>/convert/{node}.tsv"
    threads: workflow.cores
    resources:
        mem_mb=growing(copra.experiment.compute.memory_mb),
        runtime=copra.experiment.compute.runtime_minutes,
    params:
        settings=lambda wildcards: copra.convert_settings(wildcards.node),
    message:
        "Converting {wildcards.node} to the formats of other programs"
    shell:
        "copra convert --settings {params.settings:q}"
        " --model {input.manifest} --data {input.questions}"
        " --folder {output.files} --output {output.measured} > {log} 2>&1"
