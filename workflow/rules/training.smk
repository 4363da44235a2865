# Training: one job a stage. A killed job goes on from the state in results/state when it runs again.


rule train:
    input:
        parent=lambda wildcards: f"{copra.parent(wildcards.node)}/copra.json",
        weights=lambda wildcards: ancient(f"{copra.parent(wildcards.node)}/model.safetensors"),
        teacher=lambda wildcards: copra.teacher(wildcards.node),
        train=lambda wildcards: f"{copra.data(wildcards.node)}/train.parquet",
        valid=lambda wildcards: f"{copra.data(wildcards.node)}/valid.parquet",
    output:
        manifest="results/models/{node}/copra.json",
        weights="results/models/{node}/model.safetensors",
        log="results/models/{node}/training.jsonl",
    log:
        "results/logs/train/{node}.log",
    benchmark:
        "results/benchmarks/train/{node}.tsv"
    wildcard_constraints:
        node=copra.trained,
    threads: copra.experiment.compute.threads
    resources:
        gpu=copra.experiment.compute.gpu,
        mem_mb=growing(copra.experiment.compute.memory_mb),
        runtime=growing(copra.experiment.compute.runtime_minutes),
        # No param, since it must not make anything run again.
        save_every_seconds=copra.experiment.compute.save_every_seconds,
    params:
        settings=lambda wildcards: copra.train_settings(wildcards.node),
    message:
        "Training {wildcards.node}"
    shell:
        "copra train --settings {params.settings:q} --threads {threads} --parent {input.parent}"
        " --teacher {input.teacher} --data {input.train} --state results/state --save-every {resources.save_every_seconds}"
        " --output {output.manifest} > {log} 2>&1"


# The same model, asked by worked examples: no weight changes.
rule prompt:
    input:
        parent=lambda wildcards: f"{copra.parent(wildcards.node)}/copra.json",
        weights=lambda wildcards: ancient(f"{copra.parent(wildcards.node)}/model.safetensors"),
        train=lambda wildcards: f"{copra.data(wildcards.node)}/train.parquet",
        files=lambda wildcards: copra.prompt_files(wildcards.node),
    output:
        manifest="results/models/{node}/copra.json",
        weights="results/models/{node}/model.safetensors",
    log:
        "results/logs/prompt/{node}.log",
    benchmark:
        "results/benchmarks/prompt/{node}.tsv"
    wildcard_constraints:
        node=copra.prompted,
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        settings=lambda wildcards: copra.prompt_settings(wildcards.node),
    message:
        "Prompting {wildcards.node}"
    shell:
        "copra prompt --settings {params.settings:q} --parent {input.parent}"
        " --data {input.train} --output {output.manifest} > {log} 2>&1"
