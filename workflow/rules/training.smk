# Training: one job a stage. A killed job goes on from the state in results/state when it runs again.


rule train:
    input:
        parent=lambda wildcards: f"{copra.parent(wildcards.node)}/copra.json",
        weights=lambda wildcards: ancient(f"{copra.parent(wildcards.node)}/model.safetensors"),
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
        mem_mb=copra.experiment.compute.memory_mb,
        runtime=copra.experiment.compute.runtime_minutes,
        # No param, since it must not make anything run again.
        save_every_seconds=copra.experiment.compute.save_every_seconds,
    params:
        settings=lambda wildcards: copra.train_settings(wildcards.node),
    message:
        "Training {wildcards.node}"
    shell:
        "copra train --settings {params.settings:q} --threads {threads} --parent {input.parent}"
        " --data {input.train} --state results/state --save-every {resources.save_every_seconds}"
        " --output {output.manifest} > {log} 2>&1"
