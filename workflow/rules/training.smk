# Training: one job a stage. A killed job goes on from its state (<results>/state) when it runs again.


rule train:
    input:
        parent=lambda wildcards: f"{copra.parent(wildcards.node)}/copra.json",
        teacher=lambda wildcards: copra.teacher(wildcards.node),
        pretrained=lambda wildcards: copra.pretrained(wildcards.node),
        weights=lambda wildcards: [
            path
            for model in dict.fromkeys(
                [
                    copra.parent(wildcards.node),
                    *map(os.path.dirname, copra.teacher(wildcards.node) + copra.pretrained(wildcards.node)),
                ]
            )
            for path in weights(model)
        ],
        data=lambda wildcards: copra.data(wildcards.node, "train", "valid"),
        tables=lambda wildcards: tables(copra.data(wildcards.node, "train", "valid")),
    output:
        manifest="<results>/models/{node}/copra.json",
        weights=multiext("<results>/models/{node}/", *WEIGHTS),
        log="<results>/models/{node}/training.jsonl",
    log:
        "<logs>/train/{node}.log",
    benchmark:
        "<benchmarks>/train/{node}.tsv"
    wildcard_constraints:
        node=copra.trained,
    group:
        submissions.group("train/{node}")
    threads: copra.experiment.compute.threads * copra.experiment.compute.workers
    resources:
        **SHARED,
        gpu=copra.experiment.compute.gpu,
        jobs_per_gpu=copra.experiment.compute.jobs_per_gpu,
        mem_mb=growing(copra.experiment.compute.memory_mb),
        runtime=submissions.minutes("train/{node}"),
        # No params, since they must not make anything run again.
        processes=copra.experiment.compute.workers,
        save_every_seconds=copra.experiment.compute.save_every_seconds,
        save_every_steps=copra.experiment.compute.save_every_steps or 0,
    params:
        settings=lambda wildcards: copra.train_settings(wildcards.node),
    message:
        "Training {wildcards.node}"
    shell:
        "copra train --settings {params.settings:q} --threads {threads}"
        " --jobs-per-gpu {resources.jobs_per_gpu} --processes {resources.processes}"
        " --sharding {resources.sharding} --parent {input.parent}"
        " --teacher {input.teacher} --pretrained {input.pretrained} --data {input.data[0]} --state {resources.folder}/state --save-every {resources.save_every_seconds}"
        " --save-steps {resources.save_every_steps} --tracking {resources.tracking}"
        " --tracking-folder {resources.folder}/tracking"
        " --output {output.manifest} > {log} 2>&1"


# The same model, asked by worked examples: no weight changes.
rule prompt:
    input:
        parent=lambda wildcards: f"{copra.parent(wildcards.node)}/copra.json",
        weights=lambda wildcards: weights(copra.parent(wildcards.node)),
        train=lambda wildcards: copra.data(wildcards.node, "train"),
        tables=lambda wildcards: tables(copra.data(wildcards.node, "train")),
        files=lambda wildcards: here(copra.prompt_source(wildcards.node)),
    output:
        manifest="<results>/models/{node}/copra.json",
        weights=multiext("<results>/models/{node}/", *WEIGHTS),
    log:
        "<logs>/prompt/{node}.log",
    benchmark:
        "<benchmarks>/prompt/{node}.tsv"
    wildcard_constraints:
        node=copra.prompted,
    group:
        submissions.group("prompt/{node}")
    threads: 1
    resources:
        **SHARED,
        mem_mb=2000,
        runtime=submissions.minutes("prompt/{node}", 10),
    params:
        settings=lambda wildcards: copra.prompt_settings(wildcards.node),
        # A function of the output makes nothing run again.
        files=lambda wildcards, output: copra.place_of(copra.prompt_source(wildcards.node)),
    message:
        "Prompting {wildcards.node}"
    shell:
        "copra prompt --settings {params.settings:q} --files {params.files:q} --parent {input.parent}"
        " --data {input.train} --output {output.manifest} > {log} 2>&1"
